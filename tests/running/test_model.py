"""A model that runs: what it takes, and what is found in what it returns."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modelzip_cli.errors import ModelDoesNotRun
from modelzip_cli.running.inputs import Batch, Images, Wanted
from modelzip_cli.running.model import Model, scores_in, wanted_by


def test_tokens_outside_of_the_vocabulary_are_told():
    model = Model(nn.Embedding(10, 4), "lm.pth", "", Wanted(kind="tokens"), 0)
    with pytest.raises(ModelDoesNotRun, match=r"int64 \[1, 3\] of 4 to 12: IndexError: .*shape and tokens that"):
        model.check(Batch((torch.tensor([[4, 5, 12]]),), None))


Output = namedtuple("Output", ["logits", "loss"])
LOGITS = torch.ones(2, 3)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"loss": torch.zeros(()), "logits": LOGITS},
        {"out": LOGITS, "aux": torch.zeros(1)},
        SimpleNamespace(last_hidden_state=LOGITS),
        Output(LOGITS, None),
        (LOGITS, torch.zeros(1)),
        [[LOGITS]],
    ],
    ids=["tensor", "mapping", "torchvision", "attribute", "named tuple", "tuple", "list"],
)
def test_scores_are_found_in_what_models_return(output):
    assert scores_in(output) is LOGITS


@pytest.mark.parametrize("output", [None, {}, (), {"features": LOGITS}, 3.0])
def test_an_output_without_scores_is_refused(output):
    with pytest.raises(ModelDoesNotRun, match="in which no tensor of scores is found"):
        scores_in(output)


def test_a_network_that_begins_with_an_embedding_takes_tokens():
    assert wanted_by(nn.Sequential(nn.Dropout(), nn.Embedding(5, 4), nn.Linear(4, 2))).kind == "tokens"
    assert wanted_by(nn.Sequential(nn.Linear(4, 2), nn.Embedding(5, 4))).kind == "floats"
    assert wanted_by(nn.Identity()) == Wanted()


def test_the_configuration_of_timm_says_how_pictures_are_prepared():
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    net.pretrained_cfg = {"input_size": (3, 32, 48), "mean": (0.5,) * 3, "std": (0.2,) * 3, "crop_pct": 0.9}
    wanted = wanted_by(net)
    assert wanted.shape == (3, None, None)
    assert wanted.images == Images((32, 48), (0.5,) * 3, (0.2,) * 3, 0.9, "the configuration of the network")


def test_tied_parameters_count_once():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    net[1].weight = net[0].weight
    assert Model(net, "", "", Wanted(), 0).parameters == 20
