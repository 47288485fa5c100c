from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from modelzip_cli.running.batchnorm import reestimate
from modelzip_cli.running.graph import set_training
from tests.running.graphs import graph_of, teacher_graph
from tests.teaching import make_teacher, same_weights

BATCHES = [(x,) for x in torch.randn(4, 32, 6, generator=torch.Generator().manual_seed(1)) * 3 + 1]


@pytest.fixture(params=["eager", "graph"])
def teacher(request):
    """The same network as a module and as a graph."""
    return make_teacher()[0] if request.param == "eager" else teacher_graph()


def test_the_first_norm_gets_the_statistics_of_all_the_data(teacher):
    stem = make_teacher()[0].stem
    x = torch.stack([stem(x).relu() for (x,) in BATCHES]).detach().double().numpy()  # [batches, examples, channels]
    assert reestimate(teacher, BATCHES)
    state = {name: tensor.double().numpy() for name, tensor in teacher.state_dict().items()}
    np.testing.assert_allclose(state["blocks.0.norm.running_mean"], x.mean(axis=(0, 1)), rtol=1e-5, atol=1e-6)
    by_batch = x.var(axis=1, ddof=1).mean(axis=0) + x.mean(axis=1).var(axis=0)
    np.testing.assert_allclose(state["blocks.0.norm.running_var"], by_batch, rtol=1e-5)
    whole = x.reshape(-1, 16).var(axis=0)
    np.testing.assert_allclose(state["blocks.0.norm.running_var"], whole, rtol=0.04)  # batches: n - 1 for n


def test_what_comes_after_a_norm_is_normalised_by_the_batch_meanwhile(teacher):
    """As in training: the statistics of the second norm are of activations that the first one normalised by a batch."""
    eager = make_teacher()[0]
    eager.blocks[0].norm.train()
    second = []
    eager.blocks[1].norm.register_forward_pre_hook(lambda _, args: second.append(args[0].detach()))
    for batch in BATCHES:
        eager(*batch)
    reestimate(teacher, BATCHES)
    mean = teacher.state_dict()["blocks.1.norm.running_mean"]
    torch.testing.assert_close(mean, torch.stack([x.mean(0) for x in second]).mean(0), atol=1e-5, rtol=1e-5)


def test_a_module_and_its_graph_get_the_same_statistics():
    eager, graph = make_teacher()[0], teacher_graph()
    reestimate(eager, BATCHES)
    reestimate(graph, BATCHES)
    ours, theirs = eager.state_dict(), graph.state_dict()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], msg=name)


def test_dropout_stays_off_and_nothing_but_statistics_changes(teacher):
    again = copy.deepcopy(teacher)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    reestimate(teacher, BATCHES)
    torch.rand(3)
    reestimate(again, BATCHES)
    assert same_weights(teacher, again)  # no random numbers
    changed = {name for name, tensor in teacher.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"blocks.{n}.norm.running_{what}" for n in range(3) for what in ("mean", "var")}


def test_mode_and_momentum_are_as_before_also_after_an_error():
    eager = make_teacher()[0]
    eager.blocks[0].norm.momentum, eager.blocks[1].norm.momentum = 0.25, None
    eager.blocks[2].train()
    before = [(part.training, getattr(part, "momentum", 0)) for part in eager.modules()]
    reestimate(eager, BATCHES)
    with pytest.raises(RuntimeError):
        reestimate(eager, [(torch.zeros(2, 5),)])
    assert [(part.training, getattr(part, "momentum", 0)) for part in eager.modules()] == before


@pytest.mark.parametrize("training", [True, False])
def test_a_graph_is_in_the_mode_that_it_was_in_also_after_an_error(training):
    graph, eager = teacher_graph(), make_teacher()[0].train(training)
    set_training(graph, training)
    reestimate(graph, BATCHES)
    eager.load_state_dict(graph.state_dict())
    with pytest.raises(RuntimeError):
        reestimate(graph, [(torch.zeros(2, 5),)])
    scores = []
    for module in (graph, eager):
        torch.manual_seed(0)
        scores.append(module(*BATCHES[0]))
    assert torch.equal(*scores)


def test_one_batch_is_too_little_to_tell(teacher):
    before = copy.deepcopy(teacher)
    assert not reestimate(teacher, BATCHES[:1])
    assert same_weights(teacher, before)


def test_a_network_without_running_statistics_stays_as_it_is():
    module = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False))
    before = copy.deepcopy(module)
    assert not reestimate(module, BATCHES)
    graph = graph_of(module, torch.randn(2, 6))
    assert not reestimate(graph, BATCHES)
    assert same_weights(module, before)
    assert same_weights(graph, before)
