"""What a student minimises: distance to the teacher's outputs, to labels, to the teacher's gradients or features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelzip_cli.running.inputs import IGNORED, seed_of

LOSSES = ("soft", "jacobian", "features")
JACOBIAN_WEIGHT = 0.1  # 1.0 drowns the outputs: measured on perceptrons
FEATURES_WEIGHT = 1.0


def soft_loss(student: Tensor, teacher: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over examples or over the `counted` positions.

    Scores [..., classes]; `counted` bool [...]. Returns a scalar, nats. Source: Hinton, Vinyals, Dean, Distilling the
    Knowledge in a Neural Network, 2015, arXiv:1503.02531, section 2.
    """
    ours = (student.flatten(0, -2) / temperature).log_softmax(-1)
    theirs = (teacher.flatten(0, -2) / temperature).log_softmax(-1)
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    if counted is not None:
        divergence = divergence[counted.flatten()]
    return divergence.mean() * temperature**2


def label_loss(student: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of scores [..., classes] for labels [...], mean over those that count; a scalar, nats."""
    return F.cross_entropy(student.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def jacobian_loss(student: Tensor, teacher: Tensor, inputs: Tensor, directions: Tensor) -> Tensor:
    """Squared distance of d(v . student) / dx and d(v . teacher) / dx, one unit vector v an example; mean over them.

    Scores [batch, classes] that were computed from `inputs`, float with gradient; `directions` [batch, classes].
    Source: Srinivas and Fleuret, Knowledge Transfer with Jacobian Matching, 2018, arXiv:1803.00443, section 3; random
    projections: Czarnecki et al., Sobolev Training, 2017, arXiv:1706.04859, section 2.
    """
    (wanted,) = torch.autograd.grad((teacher * directions).sum(), inputs, retain_graph=True)
    (ours,) = torch.autograd.grad((student * directions).sum(), inputs, create_graph=True)
    return (ours - wanted.detach()).flatten(1).square().sum(1).mean()


def unit_vectors(shape: torch.Size, *key: int) -> Tensor:
    """A random unit vector for each example, [batch, classes]; depends on the shape and on `key` alone."""
    generator = torch.Generator().manual_seed(seed_of(*key))
    return F.normalize(torch.randn(shape, generator=generator), dim=-1)


def features_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Mean over layers of the squared distance over the teacher's mean square; pairs of the same shape, a scalar.

    Source: Romero et al., FitNets, 2014, arXiv:1412.6550, section 2.2, with each layer on its own scale.
    """
    terms = [
        (ours - theirs).square().mean() / theirs.square().mean().clamp_min(1e-12)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).mean()
