"""Repair without training: kept only where the outputs come nearer to those of the dense model."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modelzip_cli.running.inputs import Batch, Wanted
from modelzip_cli.running.model import Model
from modelzip_cli.running.repair import CORRECTED, REESTIMATED, distance, repair, with_weights
from tests.running.graphs import teacher_graph
from tests.running.networks import Net, noise
from tests.teaching import make_teacher, model_of, same_weights

DATA = [Batch((torch.from_numpy(part),), None) for part in np.split(make_teacher()[1], 4)]


def plain(*layers: nn.Module, features: bool = False) -> Model:
    """A model without BatchNorm."""
    return Model(nn.Sequential(*layers).eval(), "plain", "a test", Wanted(), 0, features=features)


def copied(model: Model) -> Model:
    """The same with weights of its own."""
    return replace(model, module=copy.deepcopy(model.module))


def rounded(model: Model, step: float) -> Model:
    """A copy with matrices on a coarse grid, one that is off the middle."""
    found = copied(model)
    with torch.no_grad():
        for weight in found.module.parameters():
            if weight.ndim > 1:
                weight.copy_((weight / step).floor() * step)
    return found


@pytest.mark.parametrize("graph", [False, True])
def test_batchnorm_is_estimated_again_where_that_helps(graph):
    dense = model_of(teacher_graph() if graph else make_teacher()[0])
    model = rounded(dense, 0.3)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    far = distance(model, dense, DATA)
    assert repair(model, dense, DATA) == REESTIMATED
    assert distance(model, dense, DATA) < far
    changed = {name for name, tensor in model.module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "running" in name}


@pytest.mark.parametrize("graph", [False, True])
def test_what_brings_the_outputs_no_nearer_is_undone(graph):
    dense = model_of(teacher_graph() if graph else make_teacher()[0])
    model = copied(dense)  # nothing to repair: other statistics can only harm
    assert repair(model, dense, DATA) == ""
    assert same_weights(model.module, dense.module)


def test_one_batch_is_too_little_for_batchnorm_but_not_for_biases():
    dense = model_of(make_teacher()[0])
    model = rounded(dense, 0.3)
    assert repair(model, dense, DATA[:1]) in ("", CORRECTED)
    statistics = {name: tensor for name, tensor in model.module.state_dict().items() if "running" in name}
    assert all(torch.equal(tensor, dense.module.state_dict()[name]) for name, tensor in statistics.items())


def mean_output(model: Model, batches: list[Batch]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.run(batch.inputs) for batch in batches]).flatten(0, -2).mean(0)


def test_the_mean_output_of_a_linear_model_is_right_again():
    torch.manual_seed(0)
    dense = plain(nn.Linear(6, 5), nn.Linear(5, 4), features=True)
    model, data = rounded(dense, 0.2), [Batch((noise(30, 6) + 1,), None), Batch((noise(10, 6) - 3,), None)]
    assert not torch.allclose(mean_output(model, data), mean_output(dense, data), atol=0.05)
    assert repair(model, dense, data) == CORRECTED
    torch.testing.assert_close(mean_output(model, data), mean_output(dense, data), atol=1e-5, rtol=1e-5)
    changed = [name for name, one in model.module.named_parameters() if one.ndim == 1]
    assert changed == ["0.bias", "1.bias"]


def test_the_mean_output_of_a_convolution_is_right_again():
    torch.manual_seed(0)
    dense = plain(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(2), features=True)
    model, data = rounded(dense, 0.1), [Batch((noise(5, 2, 6, 6) + 1,), None)]
    assert repair(model, dense, data) == CORRECTED
    means = [each.module(data[0].inputs[0]).mean((0, 2)) for each in (model, dense)]
    torch.testing.assert_close(*means, atol=1e-5, rtol=1e-5)


def test_biases_that_would_harm_are_undone():
    """The dense layers' errors make up for each other; each put right for itself they do not."""
    net = Net(lambda net, x: net.one(x) + net.two(x), one=nn.Linear(3, 4), two=nn.Linear(3, 4, bias=False))
    dense = Model(net.eval(), "sum", "a test", Wanted(), 0)
    model = copied(dense)
    with torch.no_grad():
        model.module.one.weight[0] += 1
        model.module.two.weight[0] -= 1
    before = copy.deepcopy(model.module)
    assert repair(model, dense, [Batch((noise(20, 3) + 1,), None)]) == ""
    assert same_weights(model.module, before)


def test_a_model_without_anything_to_repair_stays():
    dense = plain(nn.Linear(6, 5, bias=False), nn.LayerNorm(5))
    model = rounded(dense, 0.2)
    before = copy.deepcopy(model.module)
    assert repair(model, dense, [Batch((noise(20, 6),), None)]) == ""
    assert same_weights(model.module, before)


def test_biases_of_a_model_in_half_precision():
    torch.manual_seed(0)
    dense = plain(nn.Linear(6, 5).bfloat16(), features=True)
    model, data = rounded(dense, 0.25), [Batch((noise(40, 6).bfloat16() + 1,), None)]
    assert repair(model, dense, data) == CORRECTED
    assert model.module[0].bias.dtype == torch.bfloat16


def test_padding_does_not_count_for_biases():
    net = Net(lambda net, x, mask: net.head(net.tok(x)), tok=nn.Embedding(4, 3), head=nn.Linear(3, 4))
    with torch.no_grad():
        net.tok.weight[0] = 1e4  # of padding
    dense = Model(net.eval(), "lm", "a test", Wanted(kind="tokens", inputs=2), 0, features=True)
    model, mask = copied(dense), torch.tensor([[1, 1, 1], [1, 0, 0]])
    with torch.no_grad():
        model.module.head.weight += 0.5
    data = [Batch((torch.tensor([[1, 2, 3], [2, 0, 0]]), mask), None)]
    assert repair(model, dense, data) == CORRECTED
    with torch.no_grad():
        means = [each.run(data[0].inputs)[mask.bool()].mean(0) for each in (model, dense)]
    torch.testing.assert_close(*means, atol=1e-4, rtol=1e-4)


def test_the_distance_is_the_mean_over_batches_and_nan_is_far():
    one, other = plain(nn.Linear(3, 3)), plain(nn.Linear(3, 3))
    data = [Batch((noise(4, 3),), None), Batch((noise(9, 3),), None)]
    assert distance(one, one, data) == 0
    each = [distance(one, other, [batch]) for batch in data]
    assert distance(one, other, data) == pytest.approx(sum(each) / 2)
    with torch.no_grad():
        p, q = (model.scores(data[0]).log_softmax(1) for model in (other, one))
    assert each[0] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)
    with torch.no_grad():
        one.module[0].bias[0] = math.nan
    assert distance(one, other, data) == math.inf


def test_weights_are_put_into_a_copy_by_the_names_of_the_file():
    dense = model_of(make_teacher()[0])
    before = copy.deepcopy(dense.module)
    names = {name: f"module.{name}" for name in dense.module.state_dict()}
    tensors = {"module.stem.weight": torch.zeros(16, 6, dtype=torch.float16), "other": torch.zeros(3)}
    model = with_weights(dense, tensors, names, 77)
    assert model.bytes == 77
    assert not model.module.stem.weight.any()
    assert torch.equal(model.module.stem.bias, before.stem.bias)
    assert same_weights(dense.module, before)
