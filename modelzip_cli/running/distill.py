"""Distillation from end to end: teacher, data, student, training, evaluation, output."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelzip_cli import __version__, load_file
from modelzip_cli.containers.atomic import write_bytes
from modelzip_cli.errors import BadData, CannotWrite, GateFailed, ModelzipError, OutputExists, UsageError, inert
from modelzip_cli.output import SUFFIXES, check_output
from modelzip_cli.recipe import Recipe
from modelzip_cli.report import Gate
from modelzip_cli.running.data import DataOptions, open_data
from modelzip_cli.running.evaluate import Evaluation, check_gates, chosen_rows, evaluate, largest_class, use_threads
from modelzip_cli.running.features import Features
from modelzip_cli.running.inputs import Batch, Examples, Rows, order, split
from modelzip_cli.running.labels import check_labels
from modelzip_cli.running.ladder import Network, open_model
from modelzip_cli.running.lesson import Asked, Lesson, choose_lesson
from modelzip_cli.running.model import Model
from modelzip_cli.running.perceptron import settled
from modelzip_cli.running.resume import Point, read_point, restore, resume_path, save_point
from modelzip_cli.running.signals import interruptible
from modelzip_cli.running.student_file import student_bytes
from modelzip_cli.running.students import Student, StudentSpec, calibration, make_student
from modelzip_cli.running.training import TEMPERATURES, State, Trainer, better_temperature
from modelzip_cli.running.weights import load_weights
from modelzip_cli.single import Settings, compress_file

HELD_SHARE, HELD_MOST, HELD_SEQUENCES = 0.1, 1000, 128  # of the data; examples, or sequences of them, at most
PROBE = (
    "The 3 quick brown foxes jump over the lazy dog: Ünïcödé, naïve café, 42%!"  # two tokenizers should differ in it
)
CHECKED = 128  # examples on which a teacher has to be better than always giving the most frequent answer
CLEARLY = 2.0  # standard errors by which it has to be; where few examples allow none, half of what is left to 1


class TeacherAtChance(ModelzipError):
    """The teacher is no better on the data than always giving the most frequent answer: nothing can be learnt of it."""


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
    """What became of a run. `stopped`: the signal that ended it before it was over."""

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
    stopped: int | None = None
    can_resume: bool = False


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
    check_outputs(where)
    point = read_point(resume_path(where.output)) if where.resume else None
    watch.say("opening the teacher")
    teacher = open_model(where.teacher, where.network)
    examples = open_data(where.data, teacher.wanted, where.options)
    tested = open_data(where.test, teacher.wanted, where.options) if where.test else examples
    watch.warnings += [*examples.warnings, *(tested.warnings if where.test else ())]
    train, held = choose_rows(examples, asked.limit, asked.seed)
    tested_rows = chosen_rows(tested, None) if where.test else held
    teacher = settled(teacher, examples, train)

    def measure(model: Model, *, latency: bool = True) -> Evaluation:
        return evaluate(model, tested, tested_rows, reference=teacher, latency=latency)

    watch.say("evaluating the teacher")
    check_teacher(teacher, examples, train, asked.seed)
    rows = [Row("teacher", measure(teacher))]
    require_known(watch.gates, rows[0].evaluation)

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
    example = examples.batch(train[:2])
    check_student(student.model, teacher, example)
    if where.output.suffix == ".pt2" and not student.model.is_graph:
        student_bytes(student.model, ".pt2", {}, example)  # what cannot be exported should say so before it has learnt
    rows.append(Row("before", measure(student.model, latency=False)))

    lesson = choose_lesson(asked, teacher, student.model, examples, train)
    make = trainer_maker(teacher, student, examples, train, held)
    lesson, state, signal_number = teach(asked, where, watch, lesson, make, point, examples)

    watch.say("writing the student")
    data = student_bytes(student.model, where.output.suffix, recipe_of(where, asked, lesson, state), example)
    final = replace(student.model, bytes=len(data))
    rows[1] = replace(rows[1], evaluation=replace(rows[1].evaluation, bytes=len(data)))
    rows.append(Row("after", measure(final)))
    unfinished = [] if state.stopped else [resume_path(where.output)]
    try:
        gates = require(check_gates(watch.gates, rows[-1].evaluation))
        write_bytes(where.output, data, replace=where.force or where.resume)
        outputs = [where.output]
        if asked.then is not None and where.quantized is not None:
            rows.append(quantize(asked.then, where, where.quantized, final, measure))
            outputs.append(where.quantized)
            unfinished += outputs
            gates = require(check_gates(watch.gates, rows[-1].evaluation))
    except GateFailed:
        remove(unfinished)
        raise
    if not state.stopped:
        remove([resume_path(where.output)])
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
        can_resume=state.stopped and resume_path(where.output).exists(),
    )


def teach(
    asked: Asked,
    where: Where,
    watch: Watch,
    lesson: Lesson,
    make: Callable[[Lesson], Trainer],
    point: Point | None,
    examples: Examples,
) -> tuple[Lesson, State, int | None]:
    """Let the student learn, from `point` on if there is one; gives the lesson, how it went, and what signal ended it.

    A resume point that cannot be written is a warning: the run is worth more.
    """
    with interruptible() as signalled:
        if asked.temperature == 0 and point is not None:
            chosen = point.fingerprint.get("temperature")
            lesson = replace(lesson, temperature=chosen) if chosen in TEMPERATURES else lesson
        elif asked.temperature == 0:
            watch.say("trying temperatures 1 and 4")
            lesson = replace(lesson, temperature=better_temperature(make, lesson, lambda: bool(signalled())))
        trainer = make(lesson)
        marks = fingerprint(where, asked, lesson, examples)
        if point is not None:
            restore(trainer, point, marks)
        lost: list[str] = []

        def save(state: State) -> None:
            try:
                save_point(resume_path(where.output), trainer, marks)
            except CannotWrite as error:
                lost.append(f"no resume point at step {state.step}: {error}")

        state = trainer.run(save, lambda: bool(signalled()), lambda state: watch.step(state, lesson))
        watch.warnings += lost[:1]
        if state.ended:
            watch.warnings.append(f"{state.ended}: the student is that of step {state.best_step}")
        return lesson, state, signalled() if state.stopped else None


def check_outputs(where: Where) -> None:
    """Refuse, before any work, outputs that cannot be written or are there already."""
    shown, again = inert(str(where.output)), where.force or where.resume
    if where.output.suffix not in (".pt2", *SUFFIXES):
        raise UsageError(f"{shown}: a student is a file, whose suffix says what is in it: .pt2, {', '.join(SUFFIXES)}")
    for path in (where.output, where.quantized):
        if path is not None:
            check_output(where.teacher, path, force=again, dry_run=False, make_folders=False)
    point = resume_path(where.output)
    if point.exists() and not again:
        raise OutputExists(f"{inert(str(point))}: a run was stopped here: --resume goes on from it, -f begins anew")


def output_suffix(teacher: Path, spec: StudentSpec) -> str:
    """`.pt2` for a student that is cut from a graph; else the container that the teacher has."""
    if spec.is_cut or teacher.suffix == ".pt2" or (spec.arch or "").endswith(".pt2"):
        return ".pt2"
    return ".safetensors" if teacher.suffix == ".safetensors" or teacher.is_dir() else ".pth"


def choose_rows(examples: Examples, limit: int | None, seed: int) -> tuple[Rows, Rows]:
    """The rows to learn from and those held out, of the `limit` that the seed chooses. Raises BadData for too few."""
    chosen = chosen_rows(examples, limit, seed)
    if len(chosen) < 4:
        raise BadData(f"{examples.label}: {len(chosen)} examples are too few to learn from and to hold some out")
    train, held = split(chosen, HELD_SHARE, seed, "held")
    most = HELD_SEQUENCES if examples.a_label_a_position else HELD_MOST
    return train, held[:most] if len(held) > most else held


def check_teacher(teacher: Model, examples: Examples, rows: Rows, seed: int) -> None:
    """Refuse data that do not fit the teacher, and a teacher that is no better on them than the most frequent label."""
    check_labels(examples, teacher.check(examples.batch(rows[:2])).shape[-1])
    some = np.sort(rows[order(len(rows), seed, "checked")[:CHECKED]])
    most = largest_class(examples, some)
    if most is None:
        return
    if most == 1:
        raise BadData(
            f"{examples.label}: the labels of {len(some)} examples are all the same: accuracy would say nothing"
        )
    found = evaluate(teacher, examples, some, latency=False)
    error = (most * (1 - most) / found.labels) ** 0.5
    if found.accuracy is not None and found.accuracy <= most + min(CLEARLY * error, (1 - most) / 2):
        hint = (
            "are these the tokens that it was trained on?"
            if examples.a_label_a_position
            else "are inputs prepared as in its training (--mean, --std), and labels in its order?"
        )
        raise TeacherAtChance(
            f"{teacher.label}: the teacher is right in {found.accuracy:.1%} of {found.labels:,} cases, and always "
            f"giving the most frequent answer would be in {most:.1%}: {hint}"
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
            inputs = examples.batch(train[: lesson.batch]).inputs
            features = Features(student.teacher_graph, graph, inputs, teacher.label, lesson.seed)
        return Trainer(teacher, student.model, examples, train, held, lesson, features)

    return make


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
        **({"arch": asked.spec.arch, "arch_args": dict(asked.spec.arguments)} if asked.spec.arch else {}),
        "lesson": lesson.to_json(),
        "step": state.best_step,
    }


def require_known(gates: tuple[tuple[str, float], ...], found: Evaluation) -> None:
    """Raise GateFailed for a gate that no student could pass, for want of labels."""
    require(tuple(gate for gate in check_gates(gates, found) if gate.value is None))


def require(gates: tuple[Gate, ...]) -> tuple[Gate, ...]:
    """Raise GateFailed for the first gate that was not passed."""
    for gate in gates:
        if not gate.passed:
            reached = "is not known without labels" if gate.value is None else f"is {gate.value:.4f}"
            raise GateFailed(f"{gate.metric} {reached}, the limit {gate.limit:g}; nothing was written")
    return gates


def remove(paths: list[Path]) -> None:
    """Remove files, those that are there."""
    for path in paths:
        path.unlink(missing_ok=True)


def quantize(scheme: str, where: Where, path: Path, student: Model, measure: Callable[[Model], Evaluation]) -> Row:
    """Quantize the student that was just written, into `path`, and see what it still does."""
    settings = Settings(where.threads, force=where.force or where.resume)
    compress_file(where.output, path, Recipe(scheme=scheme), settings, command="quantize")
    module = copy.deepcopy(student.module)
    load_weights(module, load_file(path), inert(str(path)), "the student")
    return Row(scheme, measure(replace(student, module=module, bytes=path.stat().st_size)))
