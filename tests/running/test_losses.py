from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from modelzip_cli.running.inputs import IGNORED
from modelzip_cli.running.losses import features_loss, jacobian_loss, label_loss, soft_loss, unit_vectors

scores = hnp.arrays(np.float64, (4, 5), elements=st.floats(-20, 20))


def log_softmax(x: np.ndarray) -> np.ndarray:
    """In float64, over the last axis."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    """KL(softmax(teacher / T) || softmax(student / T)) of each row."""
    ours, theirs = log_softmax(student / temperature), log_softmax(teacher / temperature)
    return (np.exp(theirs) * (theirs - ours)).sum(axis=-1)


@given(student=scores, teacher=scores, temperature=st.floats(0.5, 10))
def test_soft_labels_are_a_divergence_at_a_temperature_times_its_square(student, teacher, temperature):
    found = soft_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    expected = temperature**2 * divergence(student, teacher, temperature).mean()
    np.testing.assert_allclose(float(found), expected, rtol=1e-9, atol=1e-9)


def test_soft_labels_are_the_mean_over_the_positions_that_count():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    counted = np.array([[True, True, False], [True, False, False]])
    found = soft_loss(torch.from_numpy(student), torch.from_numpy(teacher), 2.0, torch.from_numpy(counted))
    assert float(found) == pytest.approx(4 * divergence(student, teacher, 2.0)[counted].mean())


def test_a_student_that_gives_what_the_teacher_gives_has_nothing_to_learn():
    x = torch.randn(3, 4)
    assert float(soft_loss(x, x + 5, 4.0)) == pytest.approx(0, abs=1e-6)  # scores are known up to a constant


@given(student=hnp.arrays(np.float64, (6, 4), elements=st.floats(-20, 20)))
def test_labels_cost_the_negative_logarithm_of_their_probability(student):
    labels = np.array([0, 3, 1, 1, 2, 0])
    expected = -log_softmax(student)[np.arange(6), labels].mean()
    assert float(label_loss(torch.from_numpy(student), torch.from_numpy(labels))) == pytest.approx(expected)


def test_positions_without_a_label_cost_nothing():
    student = np.random.default_rng(1).normal(size=(2, 3, 5))
    labels = np.array([[0, IGNORED, 4], [IGNORED, 2, 1]])
    kept = labels != IGNORED
    expected = -log_softmax(student)[kept][np.arange(4), labels[kept]].mean()
    assert float(label_loss(torch.from_numpy(student), torch.from_numpy(labels))) == pytest.approx(expected)


def jacobian(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """d scores / d input of each example, [batch, classes, inputs], row by row."""
    return torch.stack([torch.autograd.functional.jacobian(lambda row: module(row[None])[0], row) for row in x])


@pytest.fixture
def networks():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)), nn.Sequential(nn.Linear(3, 4), nn.Sigmoid())


def test_jacobians_are_compared_along_the_directions(networks):
    teacher, student = networks
    x = torch.randn(5, 3, requires_grad=True)
    directions = unit_vectors(torch.Size([5, 4]), 0, 0)
    found = jacobian_loss(student(x), teacher(x), x, directions).detach()
    apart = torch.einsum("bc,bci->bi", directions, jacobian(student, x) - jacobian(teacher, x))
    assert float(found) == pytest.approx(float(apart.detach().square().sum(1).mean()), rel=1e-5)


def test_the_student_alone_learns_from_jacobians(networks):
    teacher, student = networks
    x = torch.randn(5, 3, requires_grad=True)
    jacobian_loss(student(x), teacher(x), x, unit_vectors(torch.Size([5, 4]), 0, 0)).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert float(student[0].weight.grad.abs().sum()) > 0


def test_directions_are_unit_vectors_of_shape_and_key_alone():
    shape = torch.Size([7, 3])
    one = unit_vectors(shape, 4, 2)
    torch.rand(5)
    assert torch.equal(one, unit_vectors(shape, 4, 2))
    assert not torch.equal(one, unit_vectors(shape, 4, 3))
    torch.testing.assert_close(one.norm(dim=1), torch.ones(7))


def test_features_are_compared_on_the_scale_of_the_teacher():
    rng = np.random.default_rng(2)
    theirs = [rng.normal(size=(3, 4)), 100 * rng.normal(size=(2, 3, 5))]
    ours = [x + rng.normal(size=x.shape) for x in theirs]
    expected = np.mean([((a - b) ** 2).mean() / (b**2).mean() for a, b in zip(ours, theirs, strict=True)])
    found = features_loss([torch.from_numpy(x) for x in ours], [torch.from_numpy(x) for x in theirs])
    assert float(found) == pytest.approx(expected)


def test_a_feature_that_is_zero_in_the_teacher_is_no_division_by_zero():
    assert torch.isfinite(features_loss([torch.ones(2, 2)], [torch.zeros(2, 2)]))
