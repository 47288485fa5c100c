"""What models do on data, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelzip_cli.figures import size
from modelzip_cli.render import Bars, Block, Heading, Pairs, Table

if TYPE_CHECKING:
    from modelzip_cli.report import Gate
    from modelzip_cli.running.distill import Distilled
    from modelzip_cli.running.evaluate import Evaluation
    from modelzip_cli.running.narrow import Narrowed


def evaluation_table(rows: Sequence[tuple[str, Evaluation]]) -> Table:
    """A row a model; columns that no row has a figure for are left out."""
    sequences = any(found.sequences for _, found in rows)
    what = "token" if sequences else "label"
    columns: list[tuple[str, list[str]]] = [
        ("accuracy", [_share(found.accuracy, found.accuracy_error) for _, found in rows]),
        ("top 5", [_share(found.top5) for _, found in rows]),
        (f"nats/{what}", [_number(found.nats, 4) for _, found in rows]),
        ("perplexity", [_number(found.perplexity if sequences else None, 3) for _, found in rows]),
        ("agreement", [_share(found.agreement) for _, found in rows]),
        ("KL", [_number(found.kl, 4) for _, found in rows]),
    ]
    sizes = sorted({batch for _, found in rows for batch in found.latency})
    columns += [(f"batch {batch}", [_time(found.latency.get(batch)) for _, found in rows]) for batch in sizes]
    columns += [
        ("size", [size(found.bytes) if found.bytes else "-" for _, found in rows]),
        ("parameters", [f"{found.parameters:,}" for _, found in rows]),
    ]
    shown = [(title, cells) for title, cells in columns if any(cell != "-" for cell in cells)]
    lines = [(label, *(cells[place] for _, cells in shown)) for place, (label, _) in enumerate(rows)]
    return Table(("model", *(title for title, _ in shown)), "l" + "r" * len(shown), tuple(lines), turns=True)


def _share(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" + (f" ±{100 * error:.2f}" if error is not None else "")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f} ms"


def evaluation_blocks(
    heading: str,
    rows: Sequence[tuple[str, Evaluation]],
    pairs: Sequence[tuple[str, str]],
    gates: Sequence[Gate],
    warnings: Sequence[str],
) -> list[Block]:
    """The result of `eval`."""
    lines = [*pairs, *(("warning", warning) for warning in warnings), *_gate_lines(gates)]
    return [Heading(heading), evaluation_table(rows), Pairs(tuple(lines), _styles(gates))]


def distillation_blocks(found: Distilled, outputs: Sequence[tuple[str, int]], threads: int) -> list[Block]:
    """The result of `distill`: teacher, student before and after it learnt, and quantized."""
    lesson, state = found.lesson, found.state
    rows = [(row.label if row.label == "teacher" else f"student {row.label}", row.evaluation) for row in found.rows]
    best = next(point for point in state.history if point["step"] == state.best_step)
    learnt = f"T {lesson.temperature:g}, {lesson.labels:g} labels" if lesson.labels < 1 else "labels alone"
    pairs = [
        ("student", found.how),
        *(("note", note) for note in found.notes),
        (
            "learnt",
            f"{state.step:,} of {lesson.steps:,} steps of {lesson.batch} on {found.train:,} examples; {lesson.loss}, "
            f"{learnt}, learning rate {lesson.learning_rate:g}",
        ),
        ("best", f"step {state.best_step:,}: {best['agreement']:.2%} agreement on held-out data"),
        ("measured", f"on {found.tested_on}; {_threads(threads)}"),
        *(("output", f"{path}  {size(count)}") for path, count in outputs),
        *(("warning", warning) for warning in found.warnings),
        *([("resume", f"the same command with --resume goes on from step {state.step:,}")] if found.can_resume else []),
        *_gate_lines(found.gates),
    ]
    heading = f"{found.teacher.label}: {found.teacher.parameters:,} parameters -> {found.student.parameters:,}"
    return [
        Heading(heading, f"{found.seconds:.1f} s"),
        evaluation_table(rows),
        Pairs(tuple(pairs), _styles(found.gates)),
    ]


def narrowing_blocks(found: Narrowed, seconds: float, threads: int) -> list[Block]:
    """The result of `prune --channels`."""
    planned = "" if found.path is not None else "  (dry run: nothing is written)"
    before, after = found.source.parameters, found.narrow.parameters
    heading = f"{found.source.label} -> {found.narrow.label}{planned}"
    blocks: list[Block] = [
        Heading(heading, f"{seconds:.1f} s"),
        Bars(
            (
                ("before", before, f"{before:,} parameters  {size(found.source.bytes)}"),
                ("after", after, f"{after:,} parameters  {size(found.narrow.bytes)}  {before / after:.2f}x"),
            )
        ),
    ]
    if found.before is not None and found.after is not None:
        blocks.append(evaluation_table([("before", found.before), ("after", found.after)]))
    pairs = [("channels" if place == 0 else "note", note) for place, note in enumerate(found.notes)]
    if found.data is not None:
        pairs.append(("measured", f"on {found.data}, as the statistics of BatchNorm; {_threads(threads)}"))
    pairs += [("warning", warning) for warning in found.warnings]
    pairs.append(("hint", "not trained yet: modelzip distill --student width=SHARE cuts the same and learns"))
    return [*blocks, Pairs(tuple(pairs), (("warning", "warn"),))]


def _threads(count: int) -> str:
    return f"latency on {count} thread{'s' if count > 1 else ''}"


def _gate_lines(gates: Sequence[Gate]) -> list[tuple[str, str]]:
    return [
        (
            "gate",
            f"{gate.metric} {'unknown' if gate.value is None else format(gate.value, '.6g')} against {gate.limit:g}: "
            f"{'passed' if gate.passed else 'NOT MET'}",
        )
        for gate in gates
    ]


def _styles(gates: Sequence[Gate]) -> tuple[tuple[str, str], ...]:
    return (("warning", "warn"), ("gate", "good" if all(gate.passed for gate in gates) else "bad"))
