"""What is left after pruning learns from the dense model, and what was pruned stays zero."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from modelzip_cli.running.inputs import Batch
from modelzip_cli.running.model import Model
from modelzip_cli.running.recover import recover
from modelzip_cli.running.repair import distance
from modelzip_cli.running.training import State
from tests.running.graphs import teacher_graph
from tests.teaching import COUNT, make_teacher, model_of, points, same_weights

STEPS = 30
HELD = np.arange(160, COUNT)


def pruned(dense: Model, share: float = 0.7) -> tuple[Model, dict[str, Tensor]]:
    """A copy whose matrices have lost their smallest weights, and which these are not."""
    module, kept = copy.deepcopy(dense.module), {}
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                kept[name] = weight.abs() > weight.abs().flatten().quantile(share)
                weight.mul_(kept[name])
    return model_of(module, "pruned"), kept


def learnt(dense: Model, model: Model, kept: dict[str, Tensor], seed: int = 0, steps: int = STEPS) -> State:
    """Train the pruned model in place."""
    examples = points()
    train = np.arange(160)
    return recover(model, dense, kept, examples, train, HELD, steps, seed, lambda state, lesson: None)


def far(model: Model, dense: Model) -> float:
    """From the dense model, on data that nothing was learnt from."""
    x = torch.from_numpy(make_teacher()[1][HELD])
    return distance(model, dense, [Batch((x,), None)])


@pytest.mark.parametrize("graph", [False, True])
def test_zeros_stay_and_the_outputs_come_nearer(graph):
    dense = model_of(teacher_graph() if graph else make_teacher()[0])
    untouched = copy.deepcopy(dense.module)
    model, kept = pruned(dense)
    before, weights = far(model, dense), {name: one.clone() for name, one in model.module.named_parameters()}
    learnt(dense, model, kept)
    for name, one in model.module.named_parameters():
        assert not torch.equal(one, weights[name])
        if name in kept:
            assert not one[~kept[name]].any()
            assert one[kept[name]].all()
    assert far(model, dense) < before / 2
    assert same_weights(dense.module, untouched)


def test_the_same_seed_gives_the_same_bytes_and_another_others():
    dense = model_of(make_teacher()[0])
    models = [pruned(dense) for _ in range(3)]
    for (model, kept), seed in zip(models, (4, 4, 5), strict=True):
        torch.rand(seed)  # of others, which must not matter
        learnt(dense, model, kept, seed)
    one, same, other = (model.module for model, _ in models)
    assert same_weights(one, same)
    assert not same_weights(one, other)


def test_what_is_frozen_learns_too_and_steps_are_told():
    dense = model_of(make_teacher()[0])
    model, kept = pruned(dense)
    for parameter in model.module.parameters():
        parameter.requires_grad_(False)
    told: list[tuple[int, int]] = []
    recover(
        model,
        dense,
        kept,
        points(labelled=False),
        np.arange(160),
        HELD,
        4,
        0,
        lambda state, lesson: told.append((state.step, lesson.steps)),
    )
    assert told[-1] == (4, 4)
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    assert not model.module.training


def test_a_model_that_only_gets_worse_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr("modelzip_cli.running.recover.LEARNING_RATE", 1e3)
    dense = model_of(make_teacher()[0])
    model, kept = pruned(dense, share=0.1)
    before = copy.deepcopy(model.module)
    state = learnt(dense, model, kept, steps=5)
    assert state.best_step == 0
    assert same_weights(model.module, before)
