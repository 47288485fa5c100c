"""A small teacher, data on which it is right, and short ways to let a student learn from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from modelzip_cli.running.graph import set_training
from modelzip_cli.running.inputs import Batch, Examples, Rows, Wanted
from modelzip_cli.running.lesson import Lesson
from modelzip_cli.running.model import Model
from modelzip_cli.running.training import State, Trainer
from tests.residual import FEATURES, Residual, Small

COUNT = 200


class Points(Examples):
    """Examples in memory: `x` [examples, ...], labels `y` or None; `read` holds the rows of each batch."""

    def __init__(self, x: np.ndarray, y: np.ndarray | None) -> None:
        self.label, self.fingerprint = "points", "of points"
        self.x, self.labels, self.labelled = x, y, y is not None
        self.read: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Rows) -> Batch:
        self.read.append([*map(int, rows)])
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows].astype(np.int64))
        return Batch((torch.from_numpy(self.x[rows]),), labels)


def make_teacher() -> tuple[Residual, np.ndarray, np.ndarray]:
    """The same network each time, in evaluation mode, sure of itself; inputs, and its answers but for one in ten."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        net, x = Residual().train(), torch.randn(COUNT, FEATURES)
        net.head.weight *= 8
        for _ in range(40):
            net(x)
        net.eval()
        net.head.bias -= net(x).median(dim=0).values  # so that all three classes come up
        y = net(x).argmax(dim=1)
    y[::10] = (y[::10] + 1) % 3
    return net, x.numpy(), y.numpy()


def model_of(module: nn.Module, label: str = "teacher.pt2", **more: Any) -> Model:
    """A model that takes six features; `wanted`: what else it takes."""
    wanted = Wanted(shape=(FEATURES,), **more.pop("wanted", {}))
    set_training(module, False)
    return Model(module, label, "a test", wanted, 100, **more)


def points(*, labelled: bool = True) -> Points:
    """The data of the teacher."""
    _, x, y = make_teacher()
    return Points(x, y if labelled else None)


def lesson(**changes: Any) -> Lesson:
    """Ten steps of soft labels at temperature 2, with a third of labels."""
    values = {
        "loss": "soft",
        "temperature": 2.0,
        "labels": 0.3,
        "learning_rate": 1e-2,
        "batch": 32,
        "steps": 10,
        "seed": 5,
    }
    return Lesson(**(values | changes))


def small(seed: int = 3) -> Small:
    """The same student each time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small()


def trainer(student: nn.Module | None = None, teacher: Model | None = None, **changes: Any) -> Trainer:
    """A student before its first step; `examples`, `train`, `held`, `features`, and what a lesson has."""
    examples = changes.pop("examples", None) or points()
    train = changes.pop("train", np.arange(0, 160))
    held = changes.pop("held", np.arange(160, COUNT))
    features = changes.pop("features", None)
    teacher = teacher or model_of(make_teacher()[0])
    student = model_of(student or small(), "student", wanted={"batch": teacher.wanted.batch})
    return Trainer(teacher, student, examples, train, held, lesson(**changes), features)


def learn(learner: Trainer, *, stop_at: int | None = None) -> State:
    """Run to the end, or until so many steps are done."""
    return learner.run(lambda _: None, lambda: learner.state.step == stop_at, lambda _: None)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same names and the same bytes."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
