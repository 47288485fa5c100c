"""What one pass over the weights of a checkpoint found, what each scheme would make of it, and what to do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelzip_cli.errors import inert
from modelzip_cli.figures import decibel, size
from modelzip_cli.grouping import Group, group, most_of
from modelzip_cli.predict import ENOUGH_DB, Prediction, recommended
from modelzip_cli.render import Block, Pairs, Table
from modelzip_cli.survey import FAR, TensorSurvey, bars_of, entropy, merged

if TYPE_CHECKING:
    from modelzip_cli.inspection import Inspection

NAME_WIDTH = 200
LEVELS = "▁▂▃▄▅▆▇█"
HEAVY = 1e-4  # share of outliers from which a group is marked
WEAK_DB = 15.0  # a group that the recommended scheme would leave below this gets int8 in the command
MOST_ADVICE = 3


def statistics_blocks(found: Inspection, *, verbose: bool = False) -> list[Block]:
    """Tables of groups and of schemes, advice, and a command to copy."""
    surveyed = [tensor for tensor in found.tensors if tensor.name in found.statistics]
    if verbose:
        groups = [Group((tensor.name,), None, (place,)) for place, tensor in enumerate(surveyed)]
    else:
        keys = [(tensor.shape, tensor.dtype) for tensor in surveyed]
        groups = group([tensor.name for tensor in surveyed], keys)
        groups.sort(key=lambda item: -sum(surveyed[place].bytes for place in item.members))
    sizes = [tensor.bytes for tensor in surveyed]
    shown, rest = (groups, []) if verbose else most_of(groups, sizes)
    rows = [_row(item, [found.statistics[surveyed[place].name] for place in item.members], sizes) for item in shown]
    if rest:
        below = [place for item in rest for place in item.members]
        label = f"({len(rest)} smaller groups)"
        rows.append((label, str(len(below)), size(sum(sizes[p] for p in below)), "", "", "", "", "", ""))
    columns = ("weights", "n", "bytes", "log2 |w|", "from .. to", "rms", "H(exp)", "zeros", "note")
    blocks: list[Block] = [Table(columns, "lrrllrrrl", tuple(rows))]
    best = recommended(list(found.predictions))
    lines = [_line(one, one is best) for one in found.predictions]
    blocks.append(Table(("scheme", "predicted size", "ratio", "dB", ""), "lrrrl", tuple(lines)))
    members = [(item, [surveyed[place].name for place in item.members]) for item in groups]
    pairs = [("not weights", f"{size(found.not_weights)} of the file ({found.not_weights / found.bytes:.1%})")]
    pairs += [("advice", text) for text in _advice(found, members)[:MOST_ADVICE]]
    if best is not None and not found.compressed:
        pairs.append(("next", _command(found, best, members)))
    return [*blocks, Pairs(tuple(pairs))]


def sparkline(counts: Sequence[int]) -> str:
    """A bar of one character for each count; the largest is full, and only 0 is blank."""
    largest = max(counts, default=0)
    return "".join(LEVELS[-(-len(LEVELS) * n // largest) - 1] if n else " " for n in counts)


def _row(item: Group, members: list[TensorSurvey], sizes: Sequence[int]) -> tuple[str, ...]:
    weights = sum(one.weights for one in members)
    histogram = merged([one.histogram for one in members])
    low, bars = bars_of(histogram)
    span = "" if low is None else f"2^{low} .. 2^{low + len(bars)}"
    rms = (sum(one.signal for one in members) / max(weights, 1)) ** 0.5
    zeros = sum(one.zeros for one in members) / max(weights, 1)
    return (
        inert(item.label, longest=NAME_WIDTH),
        str(len(members)),
        size(sum(sizes[place] for place in item.members)),
        sparkline(bars),
        span,
        f"{rms:.3g}",
        f"{entropy(histogram):.2f}",
        f"{zeros:.1%}" if zeros else "-",
        "; ".join(_notes(members)),
    )


def _notes(members: list[TensorSurvey]) -> list[str]:
    weights = sum(one.weights for one in members)
    notes = []
    if any(one.nonfinite for one in members):
        notes.append(f"{sum(one.nonfinite for one in members):,} NaN or infinite")
    outliers = sum(one.outliers for one in members)
    if outliers:
        mark = "! " if outliers > HEAVY * weights else ""
        notes.append(f"{mark}{outliers / weights:.1g} beyond {FAR:g} rms")
    dead = sum(one.dead_rows for one in members if one.rows > 1)
    if dead:
        notes.append(f"{dead} of {sum(one.rows for one in members)} rows are zero")
    origins = {one.came_from for one in members}
    if len(origins) == 1 and (origin := origins.pop()) is not None:
        notes.append(f"every value fits {origin}")
    if all(one.minimum == one.maximum for one in members):
        notes.append("constant")
    elif all(one.minimum >= 0 for one in members):
        notes.append("no negative weights")
    return notes


def _line(one: Prediction, best: bool) -> tuple[str, ...]:
    error = decibel(one.sqnr_db) if one.treated else "-"
    what = "nothing to treat" if not one.treated else "exact" if one.sqnr_db is None else ""
    return one.scheme, size(one.bytes), f"{one.ratio:.2f}x", error, "recommended" if best else what


def _advice(found: Inspection, members: list[tuple[Group, list[str]]]) -> list[str]:
    advice = []
    origins = {one.came_from for one in found.statistics.values()}
    wide = {tensor.dtype for tensor in found.tensors if tensor.name in found.statistics}
    if len(origins) == 1 and (origin := next(iter(origins))) and len(wide) == 1:
        scheme = {"bf16": "bf16", "f16": "fp16", "f32": "fp32"}[origin]
        advice.append(
            f"all weights are {wide.pop()} but fit {origin}: `modelzip quantize {shlex.quote(found.path)} "
            f"--scheme {scheme} --layout dense` loses nothing"
        )
    for item, names in members:
        if any(found.statistics[name].nonfinite for name in names):
            advice.append(f"{inert(item.label, longest=80)} holds NaN or infinity; --allow-nonfinite keeps it as it is")
    heavy = [
        item.label
        for item, names in members
        if sum(found.statistics[n].outliers for n in names) > HEAVY * sum(found.statistics[n].weights for n in names)
    ]
    if heavy:
        shown = ", ".join(inert(label, longest=60) for label in heavy[:3]) + (", ..." if len(heavy) > 3 else "")
        advice.append(f"heavy tails (!) in {shown}: small groups (-g32) or a table (nf4, codebook) suit them")
    return advice


def _command(found: Inspection, best: Prediction, members: list[tuple[Group, list[str]]]) -> str:
    """A command that works when pasted: the recommended scheme, and int8 where that would lose too much."""
    command = f"modelzip quantize {shlex.quote(found.path)} --scheme {best.scheme}"
    if (best.sqnr_db or ENOUGH_DB) < ENOUGH_DB:
        return command
    weak = [
        name
        for _, names in members
        for name in names
        if best.by_tensor.get(name, 0.0) > 10 ** (-WEAK_DB / 10) and best.scheme != "int8"
    ]
    if 0 < len(weak) <= MOST_ADVICE:
        command += "".join(f" --set {shlex.quote(f'{name}=int8')}" for name in weak)
    return command
