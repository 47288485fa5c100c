from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from torch import nn
from train import DocsLM

from modelzip_cli.running.initialise import initialise
from tests.running.graphs import graph_of, teacher_graph
from tests.teaching import same_weights


class Kinds(nn.Module):
    """A layer of each kind that has weights; pictures [batch, 4, 6, 6] -> [batch, 300]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 64, 3, padding=1)
        self.grouped = nn.Conv2d(64, 64, 3, padding=1, groups=4, bias=False)
        self.batch_norm = nn.BatchNorm2d(64)
        self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.group_norm = nn.GroupNorm(4, 32)
        self.instance_norm = nn.InstanceNorm2d(32, affine=True, track_running_stats=True)
        self.along = nn.Conv1d(32, 48, 5)
        self.layer_norm = nn.LayerNorm(140)
        self.rms_norm = nn.RMSNorm(140)
        self.linear = nn.Linear(140, 300)
        self.scale = nn.Parameter(torch.full((300,), 3.0))  # a norm that is written out
        self.position = nn.Parameter(torch.ones(48, 140))
        self.matrix = nn.Parameter(torch.ones(300, 300))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.batch_norm(self.grouped(self.conv(x)))
        hidden = self.instance_norm(self.group_norm(self.up(hidden)))
        hidden = self.rms_norm(self.layer_norm(self.along(hidden.flatten(2)))) + self.position
        hidden = self.linear(hidden.mean(1))
        hidden = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6) * self.scale
        return hidden @ self.matrix


@cache
def _kinds():
    module = Kinds()
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.fill_(9)
    return graph_of(module, torch.randn(2, 4, 6, 6))


@cache
def _language_model():
    return graph_of(DocsLM(16, layers=1, heads=2), torch.randint(90, (2, 8)), kind="tokens")


@pytest.fixture
def kinds():
    """The graph of all layers; everything in it is 9."""
    return copy.deepcopy(_kinds())


LAYERS = (
    "conv",
    "grouped",
    "batch_norm",
    "up",
    "group_norm",
    "instance_norm",
    "along",
    "layer_norm",
    "rms_norm",
    "linear",
)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_begins_as_torch_lets_it_begin(kinds, layer):
    initialise(kinds, 0)
    theirs = getattr(Kinds(), layer).state_dict()
    for name, expected in theirs.items():
        tensor = kinds.state_dict()[f"{layer}.{name}"].float()
        assert tensor.shape == expected.shape
        if expected.numel() < 2 or expected.min() == expected.max():
            assert torch.equal(tensor, expected.float()), name
        else:  # uniform over the same range, unlike each other
            bound = math.sqrt(3) * float(expected.std())
            size = math.sqrt(expected.numel())
            assert abs(float(tensor.mean())) < 3 * bound / size
            assert float(tensor.std()) == pytest.approx(float(expected.std()), rel=2 / size)
            assert float(tensor.abs().max()) == pytest.approx(float(expected.abs().max()), rel=4 / size)


def test_weights_without_a_layer_begin_small_or_as_one(kinds):
    initialise(kinds, 0)
    state = kinds.state_dict()
    assert torch.equal(state["scale"], torch.ones(300))
    assert float(state["position"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(state["matrix"].abs().max()) == pytest.approx(1 / math.sqrt(300), rel=0.01)


def test_the_seed_alone_says_what_is_drawn(kinds):
    other, third = copy.deepcopy(kinds), copy.deepcopy(kinds)
    initialise(kinds, 1)
    torch.rand(4)
    initialise(other, 1)
    initialise(third, 2)
    assert same_weights(kinds, other)
    assert not torch.equal(kinds.linear.weight, third.linear.weight)
    before = torch.get_rng_state()
    initialise(third, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_embeddings_begin_small_and_stay_tied():
    graph = copy.deepcopy(_language_model())
    initialise(graph, 0)
    state = graph.state_dict()
    assert graph.get_parameter("head.weight") is graph.get_parameter("tok.weight")
    assert float(state["tok.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(state["pos.weight"].std()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(state["blocks.0.norm1.weight"], torch.ones(16))


def test_the_row_of_padding_is_zero():
    module = nn.Sequential(nn.Embedding(50, 8, padding_idx=3), nn.Linear(8, 2))
    graph = graph_of(module, torch.randint(50, (2, 4)), kind="tokens")
    initialise(graph, 0)
    rows = graph.state_dict()["0.weight"].abs().sum(1)
    assert rows[3] == 0
    assert int((rows == 0).sum()) == 1


def test_running_statistics_are_those_of_the_first_day():
    graph = teacher_graph()
    initialise(graph, 0)
    state = graph.state_dict()
    assert torch.equal(state["blocks.1.norm.running_mean"], torch.zeros(16))
    assert torch.equal(state["blocks.1.norm.running_var"], torch.ones(16))
    assert state["blocks.1.norm.num_batches_tracked"] == 0
