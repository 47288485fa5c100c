"""What a student is asked to learn and how, with the defaults for what nobody said; docs/distill.md has the figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from modelzip_cli.errors import BadData, UsageError
from modelzip_cli.running.inputs import Examples, Rows
from modelzip_cli.running.model import Model
from modelzip_cli.running.students import StudentSpec

BATCH, SEQUENCES = 64, 16  # examples of a step
MANY_EPOCHS = 10  # from which a high temperature pays for pictures
EPOCHS, LEAST_STEPS = 20, 300
LEARNING_RATE = 3e-3  # from fresh weights; a student that begins with the teacher's takes a share of it
CUT_SHARE, CUT_SHARE_SEQUENCES = 0.5, 0.2
SMALL_PARAMETERS = 1e6  # above, the learning rate falls with the square root of the size


@dataclass(frozen=True)
class Asked:
    """What `distill` was asked for; None: the default for the data."""

    spec: StudentSpec
    kind: str = "strong"
    score: str = "l2"
    loss: str = "soft"
    labels: float | None = None
    temperature: float | None = None  # 0: try which
    learning_rate: float | None = None
    batch: int | None = None
    limit: int | None = None
    steps: int | None = None
    seconds: float | None = None
    seed: int = 0
    then: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the report holds it, without what was not said."""
        values = {name: value for name, value in asdict(self).items() if value is not None and name != "spec"}
        return {"student": str(self.spec), **values}


@dataclass(frozen=True)
class Lesson:
    """How a student learns: (1 - labels) * soft + labels * cross-entropy, and what `loss` adds to it.

    `temperature` divides both sides' scores; `labels` 1 leaves the teacher out; `steps` of `batch` examples; `seconds`:
    after which training ends, whatever the steps.
    """

    loss: str
    temperature: float
    labels: float
    learning_rate: float
    batch: int
    steps: int
    seed: int
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As recipes and reports hold it."""
        return asdict(self)


def choose_lesson(asked: Asked, teacher: Model, student: Model, examples: Examples, train: Rows) -> Lesson:
    """Fill in the defaults. Raises UsageError for what the data do not allow, BadData for too few of them."""
    sequences = examples.a_label_a_position
    inputs = examples.batch(train[:1]).inputs[0]
    if asked.loss == "jacobian" and not inputs.is_floating_point():
        raise UsageError(f"--loss jacobian follows gradients to the input, and {examples.label} holds tokens")
    if asked.labels and not examples.labelled:
        raise UsageError(f"{examples.label} has no labels: leave --labels away")
    batch = batch_size(asked, teacher, student, examples, len(train))
    steps = asked.steps or max(LEAST_STEPS, EPOCHS * len(train) // batch)
    hot = inputs.ndim == 4 and steps * batch >= MANY_EPOCHS * len(train)
    labels = (0.1 if hot else 0.5) if asked.labels is None else asked.labels
    rate = LEARNING_RATE * min(1.0, (SMALL_PARAMETERS / max(1, student.parameters)) ** 0.5)
    if asked.kind == "strong":
        rate *= CUT_SHARE_SEQUENCES if sequences else CUT_SHARE
    return Lesson(
        asked.loss,
        asked.temperature or (4.0 if hot else 1.0),
        labels if examples.labelled else 0.0,
        asked.learning_rate or float(f"{rate:.3g}"),
        batch,
        steps,
        asked.seed,
        asked.seconds,
    )


def batch_size(asked: Asked, teacher: Model, student: Model, examples: Examples, count: int) -> int:
    """Examples of a step: what an exported model is fixed to, else what was asked for, at most `count`."""
    fixed = student.wanted.batch or teacher.wanted.batch
    if fixed is None:
        return min(asked.batch or (SEQUENCES if examples.a_label_a_position else BATCH), count)
    if fixed > count:
        raise BadData(
            f"{examples.label}: {count} examples to learn from do not fill the batch of {fixed} that the exported "
            "model is fixed to: give more, or export it with a dynamic batch"
        )
    return fixed
