"""A formula for strong distillation, taken literally: y = f_small(x; theta_small + alpha grad L(theta_large, x)).

    python benchmarks/literal_formula.py [--seeds 2] [--write]

A student of the sample image model learns from a tenth of the data, 300 steps of 64, one thread: a fresh one from
labels, and one cut from the teacher from its soft labels too, as `distill` does. In every step of training its weights
are shifted by the gradient of the teacher's loss on the labels of the batch, cut to the student's shapes: the channels
of the cut, or the first ones. On the test set it runs without the shift, which would need the teacher and the label of
each example. `alpha` is the formula's factor; `% of the norm` scales each tensor's shift to a share of its weights'
norm. Nothing else differs between the rows. With `--write` the table goes into docs/distill.md.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import common
import torch
import torch.nn.functional as F
from common import HERE
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule

from modelzip_cli.running.channels import find_channels
from modelzip_cli.running.cutting import cut
from modelzip_cli.running.data import DataOptions, open_data
from modelzip_cli.running.distill import choose_rows
from modelzip_cli.running.evaluate import chosen_rows, evaluate
from modelzip_cli.running.inputs import Batch, Examples, Rows
from modelzip_cli.running.ladder import Network, open_model
from modelzip_cli.running.lesson import Asked, Lesson, choose_lesson
from modelzip_cli.running.losses import label_loss
from modelzip_cli.running.model import Model, scores_in
from modelzip_cli.running.students import StudentSpec, calibration, make_student
from modelzip_cli.running.training import Trainer
from modelzip_cli.running.widths import choose

SAMPLES = HERE.parent / "sample_models"
PAGE = HERE.parent / "docs" / "distill.md"
WIDTH, LIMIT, STEPS = 0.34, 778, 300

Places = dict[str, Tensor]  # by parameter of the student: where its weights stand in the teacher's, flattened; int64


@dataclass(frozen=True)
class Shift:
    """A factor of the gradient, or, where `relative`, of the weights' norm in the gradient's direction."""

    factor: float
    relative: bool = False

    def __str__(self) -> str:
        return f"{100 * self.factor:+g} % of the norm" if self.relative else f"alpha {self.factor:g}"

    def of(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What is added to a weight, of its shape."""
        if not self.relative:
            return self.factor * gradient
        return self.factor * weight.norm() * F.normalize(gradient.flatten(), dim=0).view_as(gradient)


SHIFTS = (*map(Shift, (0.0, 0.1, 1.0, -1.0, 10.0)), Shift(0.1, relative=True), Shift(-0.1, relative=True))
KINDS = {"weak": "fresh, labels", "strong": "cut, soft labels"}


@dataclass(frozen=True)
class Learnt:
    """A student: accuracy on the test set and the mean of its shifts, in %; steps taken, and that of its weights."""

    accuracy: float
    moved: float
    steps: int
    best: int


class LiteralTrainer(Trainer):
    """Trains a student through shifted weights; held-out examples see it without the shift, as the test set does.

    `moved`: for each step, the norm of the shift as a share of the norm of all weights.
    """

    def __init__(
        self,
        teacher: Model,
        student: Model,
        examples: Examples,
        rows: tuple[Rows, Rows],
        lesson: Lesson,
        shift: Shift,
        places: Places,
    ) -> None:
        super().__init__(teacher, student, examples, *rows, lesson, None)
        self.moved: list[float] = []
        self._shift, self._places = shift, places

    def _loss(self, batch: Batch, rows: Rows, step: int) -> Tensor:
        weights = dict(self.student.module.named_parameters())
        shifts = self._shifts(weights, batch)
        self.moved.append(float(norm(shifts) / norm(weights)))
        shifted = {name: weight + shifts[name] for name, weight in weights.items()}
        scores = scores_in(functional_call(self.student.module, shifted, batch.inputs)).float()
        wanted = self._outputs.of(rows, batch) if self.lesson.labels < 1 else None
        return self._outputs_and_labels(scores, wanted, batch)

    def _shifts(self, weights: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The shift of each of the student's weights, from the gradient of the teacher's loss on a batch."""
        assert batch.labels is not None
        named = dict(self._teacher.module.named_parameters())
        loss = label_loss(self._teacher.run(batch.inputs), batch.labels)
        gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        return {
            name: self._shift.of(weight.detach(), gradients[name].flatten()[self._places[name]])
            for name, weight in weights.items()
        }


def norm(tensors: Mapping[str, Tensor]) -> Tensor:
    """The norm of all tensors as one vector."""
    return torch.stack([tensor.detach().norm() for tensor in tensors.values()]).norm()


def places_by_kind(graph: nn.Module) -> dict[str, Places]:
    """What a cut student keeps of the teacher, and the first of each axis for a fresh one. `graph` is spent on it.

    Found by the cut of a graph whose weights are their own places; float32 holds those up to 2^24.
    """
    assert isinstance(graph, GraphModule)
    channels = find_channels(graph)
    keep = choose(graph, channels, WIDTH)
    with torch.no_grad():
        for weight in graph.parameters():
            weight.copy_(torch.arange(weight.numel()).view_as(weight))
    kept = {name: weight.detach().long() for name, weight in cut(graph, channels, keep).named_parameters()}
    all_places = {name: weight.detach().long() for name, weight in graph.named_parameters()}
    return {
        "strong": kept,
        "weak": {name: all_places[name][tuple(map(slice, places.shape))] for name, places in kept.items()},
    }


def check_places(teacher: Model, student: Model, places: Places) -> None:
    """Raise SystemExit if a student that was just cut does not have the teacher's weights at these places."""
    wide = dict(teacher.module.named_parameters())
    for name, weight in student.module.named_parameters():
        if not torch.equal(weight, wide[name].flatten()[places[name]]):
            raise SystemExit(f"{name}: the student was not cut where this script believes it was")


def learn(teacher: Model, kind: str, places: Places, shift: Shift, seed: int) -> Learnt:
    """Make a student, train it through the shift, and evaluate it without."""
    labels = 1.0 if kind == "weak" else None
    asked = Asked(StudentSpec(width=WIDTH), kind=kind, limit=LIMIT, steps=STEPS, seed=seed, labels=labels)
    examples, test = (
        open_data(str(SAMPLES / name), teacher.wanted, DataOptions())
        for name in ("digits_train.npz", "digits_test.npz")
    )
    train, held = choose_rows(examples, asked)
    student = make_student(
        teacher,
        asked.spec,
        kind=kind,
        score=asked.score,
        network=Network(),
        batches=lambda: calibration(examples, train, seed, teacher),
        seed=seed,
    )
    if kind == "strong":
        check_places(teacher, student.model, places)
    lesson = choose_lesson(asked, teacher, student.model, examples, train)
    trainer = LiteralTrainer(teacher, student.model, examples, (train, held), lesson, shift, places)
    state = trainer.run(lambda _: None, lambda: False, lambda _: None)
    accuracy = evaluate(student.model, test, chosen_rows(test, None), latency=False).accuracy
    assert accuracy is not None
    return Learnt(100 * accuracy, 100 * statistics.mean(trainer.moved), state.step, state.best_step)


def cells(found: Sequence[Learnt]) -> tuple[str, str]:
    """Two cells of the table: accuracy with its spread over the seeds, and the shift."""
    accuracies = [one.accuracy for one in found]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return f"{statistics.mean(accuracies):.1f} ± {spread:.1f}", f"{statistics.mean(one.moved for one in found):.2g}"


def write(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Put the table into the page."""
    lines = ["| " + " | ".join(row) + " |" for row in (columns, ["---", *["---:"] * (len(columns) - 1)], *rows)]
    page = common.fill(PAGE.read_text(), "literal formula", "benchmarks/literal_formula.py", "\n".join(lines))
    PAGE.write_text(page)


def main() -> int:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="into docs/distill.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of torch, about its own tree specs
    started = time.perf_counter()
    path = SAMPLES / "digits_cnn.pt2"
    teacher = open_model(path, Network())
    places = places_by_kind(open_model(path, Network()).module)
    rows: list[tuple[str, ...]] = []
    for shift in SHIFTS:
        row = [str(shift)]
        for kind, name in KINDS.items():
            found = [learn(teacher, kind, places[kind], shift, seed) for seed in range(options.seeds)]
            print(shift, name, *found, sep="; ", flush=True)
            row += cells(found)
        rows.append(tuple(row))
    print(common.versions("modelzip", "torch"))
    columns = ("shift", *(name for kind in KINDS.values() for name in (f"{kind}: accuracy %", "shift, % of weights")))
    common.print_table(f"students of width {WIDTH}, {options.seeds} seeds", columns, rows)
    print(f"{time.perf_counter() - started:.0f} s")
    if options.write:
        write(columns, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
