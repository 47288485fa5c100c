"""Distillation from end to end: teacher, data, student, training, evaluation, output."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from modelzip_cli import __version__, load_file
from modelzip_cli.containers.atomic import write_bytes
from modelzip_cli.errors import BadData, CannotWrite, GateFailed, ModelzipError, OutputExists, UsageError, inert
from modelzip_cli.output import check_output
from modelzip_cli.recipe import Recipe
from modelzip_cli.report import Gate
from modelzip_cli.running.data import DataOptions, open_data
from modelzip_cli.running.evaluate import Evaluation, check_gates, chosen_rows, evaluate, largest_class, use_threads
from modelzip_cli.running.features import Features
from modelzip_cli.running.inputs import Batch, Examples, Rows, order, split
from modelzip_cli.running.labels import check_labels
from modelzip_cli.running.lesson import Lesson
from modelzip_cli.running.model import Model, Network, open_model
from modelzip_cli.running.perceptron import settled
from modelzip_cli.running.resume import load_point, resume_path, save_point
from modelzip_cli.running.student_file import student_bytes
from modelzip_cli.running.students import Student, StudentSpec, calibration, make_student
from modelzip_cli.running.training import State, Trainer, better_temperature
from modelzip_cli.running.weights import load_weights
from modelzip_cli.single import Settings, compress_file

HELD_SHARE, HELD_MOST, HELD_SEQUENCES = 0.1, 1000, 128  # of the data; examples, or sequences of them, at most
BATCH, SEQUENCES = 64, 16  # examples of a step
MANY_EPOCHS = 10  # from which a high temperature pays for pictures
EPOCHS, LEAST_STEPS = 20, 300
LEARNING_RATE = 3e-3  # from fresh weights; a student that begins with the teacher's takes a share of it
CUT_SHARE, CUT_SHARE_SEQUENCES = 0.5, 0.2
SMALL_PARAMETERS = 1e6  # above, the learning rate falls with the square root of the size
PROBE = (
    "The 3 quick brown foxes jump over the lazy dog: Ünïcödé, naïve café, 42%!"  # two tokenizers should differ in it
)
CLEARLY = 2.0  # standard errors by which a teacher must be better than always giving the most frequent answer


class TeacherAtChance(ModelzipError):
    """The teacher is no better on the data than always giving the most frequent answer: nothing can be learnt of it."""


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


@dataclass(frozen=True)
class Where:
    """Inputs and outputs of a run."""

    teacher: Path
    output: Path
    data: str
    test: str | None
    network: Network
    options: DataOptions
    force: bool
    resume: bool
    threads: int
    quantized: Path | None = None  # where --then puts what it makes


@dataclass(frozen=True)
class Row:
    """One line of the final table."""

    label: str
    evaluation: Evaluation


@dataclass(frozen=True)
class Distilled:
    """What became of a run."""

    teacher: Model
    student: Model
    how: str
    lesson: Lesson
    state: State
    rows: tuple[Row, ...]
    train: int
    tested_on: str
    outputs: tuple[Path, ...]
    gates: tuple[Gate, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float
    stopped: int | None = None  # the signal that ended it

    def row(self, label: str) -> Evaluation:
        """The evaluation of one of teacher, before, after."""
        return next(row.evaluation for row in self.rows if row.label == label)


@dataclass
class Watch:
    """Who is told how a run goes, and the gates it has to pass."""

    say: Callable[[str], None] = lambda _: None
    step: Callable[[State, Lesson], None] = lambda state, lesson: None
    gates: tuple[tuple[str, float], ...] = ()
    warnings: list[str] = field(default_factory=list)


def distill(asked: Asked, where: Where, watch: Watch) -> Distilled:
    """Carry out `asked`: nothing is written before the student was trained, evaluated and has passed its gates."""
    started = time.monotonic()
    use_threads(where.threads)
    for output in (where.output, where.quantized):
        if output is not None:
            check_output(where.teacher, output, force=where.force or where.resume, dry_run=False, make_folders=False)
    point = resume_path(where.output)
    if point.exists() and not (where.resume or where.force):
        raise OutputExists(f"{inert(str(point))}: a run was stopped here: --resume goes on from it, -f begins anew")
    watch.say("opening the teacher")
    teacher = open_model(where.teacher, where.network)
    examples = open_data(where.data, teacher.wanted, where.options)
    train, held = choose_rows(examples, asked)
    tested = open_data(where.test, teacher.wanted, where.options) if where.test else examples
    tested_rows = chosen_rows(tested, None) if where.test else held
    teacher = settled(teacher, examples, train)
    check_labels(examples, teacher.check(examples.batch(train[:2])).shape[-1])
    watch.warnings += [*examples.warnings, *(tested.warnings if where.test else ())]

    def measure(model: Model, *, latency: bool = True) -> Evaluation:
        return evaluate(model, tested, tested_rows, reference=teacher, latency=latency)

    watch.say("evaluating the teacher")
    rows = [Row("teacher", measure(teacher))]
    check_teacher(rows[0].evaluation, tested, tested_rows, teacher.label)

    watch.say(f"making the student: {asked.spec}")
    student = make_student(
        teacher,
        asked.spec,
        kind=asked.kind,
        score=asked.score,
        network=where.network,
        batches=lambda: calibration(examples, train, asked.seed, teacher),
        seed=asked.seed,
    )
    check_student(student.model, teacher, examples.batch(train[:2]))
    rows.append(Row("before", measure(student.model, latency=False)))

    lesson = choose_lesson(asked, student, examples, len(train))
    make = trainer_maker(teacher, student, examples, train, held)
    with interruptible() as stopped:
        if asked.temperature == 0:
            watch.say("trying temperatures 1 and 4")
            lesson = replace(lesson, temperature=better_temperature(make, lesson, lambda: bool(stopped())))
        trainer = make(lesson)
        marks = fingerprint(where, asked, lesson, examples)
        if where.resume:
            load_point(point, trainer, marks)

        def save(state: State) -> None:
            if not state.ended or stopped():
                try:
                    save_point(point, trainer, marks)
                except CannotWrite as error:  # the run is worth more than its resume point
                    watch.warnings.append(f"no resume point at step {state.step}: {error}")

        state = trainer.run(save, lambda: bool(stopped()), lambda state: watch.step(state, lesson))
        signal_number = stopped()
    if state.ended:
        watch.warnings.append(f"{state.ended}: the student is that of step {state.best_step}")

    watch.say("writing the student")
    data = student_bytes(
        student.model, where.output.suffix, recipe_of(where, asked, lesson, state), examples.batch(train[:2])
    )
    final = replace(student.model, bytes=len(data))
    rows[1] = replace(rows[1], evaluation=replace(rows[1].evaluation, bytes=len(data)))
    rows.append(Row("after", measure(final)))
    gates = require(check_gates(watch.gates, rows[-1].evaluation))
    write_bytes(where.output, data, replace=where.force or where.resume)
    outputs = [where.output]
    if asked.then is not None and where.quantized is not None:
        outputs.append(where.quantized)
        rows.append(quantize(asked.then, where, where.quantized, final, measure))
    if signal_number is None:
        point.unlink(missing_ok=True)
    return Distilled(
        teacher,
        final,
        f"{asked.kind}, {asked.spec}",
        lesson,
        state,
        tuple(rows),
        len(train),
        tested.label if where.test else f"{len(held)} held-out examples of {examples.label}",
        tuple(outputs),
        gates,
        student.notes,
        tuple(watch.warnings),
        time.monotonic() - started,
        signal_number,
    )


def output_suffix(teacher: Path, spec: StudentSpec) -> str:
    """`.pt2` for a student that is cut from a graph; else the container that the teacher has."""
    if spec.is_cut or teacher.suffix == ".pt2" or (spec.arch or "").endswith(".pt2"):
        return ".pt2"
    return ".safetensors" if teacher.suffix == ".safetensors" or teacher.is_dir() else ".pth"


def choose_rows(examples: Examples, asked: Asked) -> tuple[Rows, Rows]:
    """The rows to learn from and those held out, of the `limit` that the seed chooses. Raises BadData for too few."""
    chosen = chosen_rows(examples, asked.limit, asked.seed)
    if len(chosen) < 4:
        raise BadData(f"{examples.label}: {len(chosen)} examples are too few to learn from and to hold some out")
    train, held = split(chosen, HELD_SHARE, asked.seed, "held")
    most = HELD_SEQUENCES if examples.a_label_a_position else HELD_MOST
    return train, held[:most] if len(held) > most else held


def check_teacher(found: Evaluation, examples: Examples, rows: Rows, label: str) -> None:
    """Refuse a teacher that is no better than the most frequent label, and labels that are all the same."""
    most = largest_class(examples, rows)
    if most is None or found.accuracy is None:
        return
    if most == 1:
        raise BadData(f"{examples.label}: all labels are the same: accuracy would say nothing")
    error = (most * (1 - most) / max(1, found.labels)) ** 0.5
    if found.accuracy <= most + CLEARLY * error:
        hint = (
            "are these the tokens that it was trained on?"
            if examples.a_label_a_position
            else "are inputs prepared as in its training (--mean, --std), and labels in its order?"
        )
        raise TeacherAtChance(
            f"{label}: the teacher is right in {found.accuracy:.1%} of {found.labels:,} cases, and always giving the "
            f"most frequent answer would be in {most:.1%}: {hint}"
        )


def check_student(student: Model, teacher: Model, batch: Batch) -> None:
    """Refuse a student whose scores are not for the same classes or tokens. Raises UsageError."""
    reads = [model.wanted.tokenizer for model in (teacher, student)]
    if all(reads) and len({tuple(read(PROBE)) for read in reads if read is not None}) > 1:
        raise UsageError(
            f"{student.label}: has another tokenizer than {teacher.label}: their scores are for different tokens"
        )
    ours, theirs = student.check(batch).shape, teacher.check(batch).shape
    if ours != theirs:
        raise UsageError(
            f"{student.label}: gives scores {[*ours]} where {teacher.label} gives {[*theirs]}: teacher and student "
            "need the same classes, or the same tokens"
        )


def choose_lesson(asked: Asked, student: Student, examples: Examples, count: int) -> Lesson:
    """Fill in the defaults: measured figures stand in docs/distill.md."""
    sequences = examples.a_label_a_position
    batch = asked.batch or (SEQUENCES if sequences else BATCH)
    steps = asked.steps or max(LEAST_STEPS, EPOCHS * count // batch)
    pictures = examples.batch(order(len(examples), 0)[:1]).inputs[0].ndim == 4
    hot = pictures and steps * batch >= MANY_EPOCHS * count
    labels = (0.1 if hot else 0.5) if asked.labels is None else asked.labels
    if not examples.labelled:
        if asked.labels:
            raise UsageError(f"{examples.label} has no labels: leave --labels away")
        labels = 0.0
    parameters = student.model.parameters
    rate = LEARNING_RATE * min(1.0, (SMALL_PARAMETERS / max(1, parameters)) ** 0.5)
    if asked.kind == "strong":
        rate *= CUT_SHARE_SEQUENCES if sequences else CUT_SHARE
    return Lesson(
        asked.loss,
        asked.temperature or (4.0 if hot else 1.0),
        labels,
        asked.learning_rate or float(f"{rate:.3g}"),
        batch,
        steps,
        asked.seed,
        asked.seconds,
    )


def trainer_maker(
    teacher: Model, student: Student, examples: Examples, train: Rows, held: Rows
) -> Callable[[Lesson], Trainer]:
    """How to begin a training from the student as it was made, any number of times."""
    start = {name: tensor.clone() for name, tensor in student.model.module.state_dict().items()}

    def make(lesson: Lesson) -> Trainer:
        student.model.module.load_state_dict(start)
        features = None
        if lesson.loss == "features":
            if student.teacher_graph is None:
                raise UsageError(
                    "--loss features compares what is inside: it needs a student that is cut from the teacher"
                )
            graph = student.model.module
            assert isinstance(graph, torch.fx.GraphModule)
            inputs = examples.batch(train[:2]).inputs
            features = Features(student.teacher_graph, graph, inputs, teacher.label, lesson.seed)
        if lesson.loss == "jacobian" and not examples.batch(train[:1]).inputs[0].is_floating_point():
            raise UsageError(f"--loss jacobian follows gradients to the input, and {examples.label} holds tokens")
        return Trainer(teacher, student.model, examples, train, held, lesson, features)

    return make


@contextmanager
def interruptible() -> Iterator[Callable[[], int | None]]:
    """Let the first signal to stop be seen by who asks, so that no step is torn; a second one stops at once."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for other, handler in before.items():
            signal.signal(other, handler)

    for watched in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(watched) is not signal.SIG_IGN:
            before[watched] = signal.signal(watched, note)
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fingerprint(where: Where, asked: Asked, lesson: Lesson, examples: Examples) -> dict[str, Any]:
    """What has to be the same for a run to go on from a resume point."""
    from modelzip_cli.source import open_source

    source = open_source(where.teacher, key=where.network.key)
    source.close()
    return {
        "teacher": [source.sha256, source.file.size],
        "data": examples.fingerprint,
        "student": str(asked.spec),
        "kind": asked.kind,
        "score": asked.score,
        "limit": asked.limit,
        **lesson.to_json(),
        "threads": where.threads,
        "modelzip": __version__,
        "torch": torch.__version__,
    }


def recipe_of(where: Where, asked: Asked, lesson: Lesson, state: State) -> dict[str, Any]:
    """What a student says of itself."""
    return {
        "modelzip": __version__,
        "teacher": where.teacher.name,
        "kind": asked.kind,
        "student": str(asked.spec),
        **({"arch": str(asked.spec)} if asked.spec.arch else {}),
        "lesson": lesson.to_json(),
        "step": state.best_step,
    }


def require(gates: tuple[Gate, ...]) -> tuple[Gate, ...]:
    """Raise GateFailed for the first gate that was not passed."""
    for gate in gates:
        if not gate.passed:
            reached = "is not known without labels" if gate.value is None else f"is {gate.value:.4f}"
            raise GateFailed(f"{gate.metric} {reached}, the limit {gate.limit:g}; nothing was written")
    return gates


def quantize(scheme: str, where: Where, path: Path, student: Model, measure: Callable[[Model], Evaluation]) -> Row:
    """Quantize the student that was just written, into `path`, and see what it still does."""
    settings = Settings(where.threads, force=where.force or where.resume)
    compress_file(where.output, path, Recipe(scheme=scheme), settings, command="quantize")
    module = copy.deepcopy(student.module)
    load_weights(module, load_file(path), inert(str(path)), "the student")
    return Row(scheme, measure(replace(student, module=module, bytes=path.stat().st_size)))


def as_json(asked: Asked) -> Mapping[str, Any]:
    """What was asked, as the report holds it."""
    values = {name: value for name, value in asdict(asked).items() if value is not None and name != "spec"}
    return {"student": str(asked.spec), **values}
