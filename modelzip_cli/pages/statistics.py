"""What one pass over the weights of a checkpoint found, what each scheme would make of it, and what to do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from glob import escape
from typing import TYPE_CHECKING

from modelzip_cli.errors import inert
from modelzip_cli.figures import decibel, size
from modelzip_cli.grouping import Group, group, most_of
from modelzip_cli.predict import ENOUGH_DB, TARGETS, Prediction, recommended
from modelzip_cli.render import Block, Pairs, Table
from modelzip_cli.survey import FAR, TensorSurvey, bars_of, entropy, merged

if TYPE_CHECKING:
    from modelzip_cli.inspection import Inspection

NAME_WIDTH = 60
LEVELS = "▁▂▃▄▅▆▇█"
HEAVY = 1e-4  # share of outliers from which a group is marked
WEAK_DB = 15.0  # a group that the recommended scheme would leave below this gets int8 in the command
MOST_ADVICE = 3
LEAST_READY = 0.01  # share of groups that are 2:4, below which nobody pruned for it


def statistics_blocks(found: Inspection, *, verbose: bool = False) -> list[Block]:
    """Tables of groups and of schemes, advice, and a command to copy."""
    statistics = found.statistics or {}
    surveyed = [tensor for tensor in found.tensors if tensor.name in statistics]
    if verbose:
        groups = [Group((tensor.name,), None, (place,)) for place, tensor in enumerate(surveyed)]
    else:
        keys = [(tensor.shape, tensor.dtype) for tensor in surveyed]
        groups = group([tensor.name for tensor in surveyed], keys)
        groups.sort(key=lambda item: -sum(surveyed[place].bytes for place in item.members))
    sizes = [tensor.bytes for tensor in surveyed]
    shown, rest = (groups, []) if verbose else most_of(groups, sizes)
    members = [(item, [statistics[surveyed[place].name] for place in item.members]) for item in groups]
    bits = [found.bits_of("lossless"), found.bits_of("ecq")]
    rows: list[tuple[str, ...]] = [_row(item, inside, bits) for item, inside in members[: len(shown)]]
    if rest:
        rows.append((f"({len(rest)} smaller groups)", *[""] * 7))
    blocks: list[Block] = []
    if rows:
        columns: tuple[str, ...] = (
            "weights",
            "log2 |w|",
            "from..to",
            "rms",
            "H",
            "exact",
            f"{TARGETS[0]:g} dB",
            "note",
        )
        if not any(row[5] or row[6] for row in rows):  # nothing is predicted of a compressed file
            columns, rows = (*columns[:5], "note"), [(*row[:5], row[7]) for row in rows]
        blocks.append(Table(columns, "lll" + "r" * (len(columns) - 4) + "l", tuple(rows)))
    best = recommended(list(found.predictions))
    if best is not None:
        lines = [_line(one, one is best) for one in found.predictions]
        blocks.append(Table(("scheme", "predicted size", "ratio", "dB", ""), "lrrrl", tuple(lines)))
    pairs = [("not weights", f"{size(found.not_weights)} of the file ({found.not_weights / found.bytes:.1%})")]
    pairs += [("advice", text) for text in _advice(found, best, members)[:MOST_ADVICE]]
    if best is not None and found.path != "-":  # what came through a pipe has gone
        pairs.append(("next", _command(found, best)))
    elif best is None and not found.compressed:
        pairs.append(("next", "nothing to do: no scheme would treat a tensor of this file by default"))
    return [*blocks, Pairs(tuple(pairs))]


def sparkline(counts: Sequence[int]) -> str:
    """A bar of one character for each count; the largest is full, and only 0 is blank."""
    largest = max(counts, default=0)
    return "".join(LEVELS[-(-len(LEVELS) * n // largest) - 1] if n else " " for n in counts)


def _row(item: Group, members: list[TensorSurvey], bits: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    weights = sum(one.weights - one.nonfinite for one in members)
    histogram = merged([one.histogram for one in members])
    low, bars = bars_of(histogram)
    return (
        inert(item.label, longest=NAME_WIDTH),
        sparkline(bars),
        "" if low is None else f"{low}..{low + len(bars)}",
        f"{(sum(one.signal for one in members) / weights) ** 0.5:.3g}" if weights else "",
        f"{entropy(histogram):.2f}" if weights else "",
        *(_mean_bits(members, each) for each in bits),
        "; ".join(_notes(members)),
    )


def _mean_bits(members: list[TensorSurvey], bits: Mapping[str, float]) -> str:
    known = [one for one in members if one.name in bits and one.weights]
    weights = sum(one.weights for one in known)
    return f"{sum(bits[one.name] * one.weights for one in known) / weights:.2f}" if weights else ""


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if 2000 * part >= whole else f"{part:,}"


def _notes(members: list[TensorSurvey]) -> list[str]:
    weights = sum(one.weights for one in members)
    if not weights:
        return ["empty"]
    notes = []
    nonfinite, zeros = sum(one.nonfinite for one in members), sum(one.zeros for one in members)
    if nonfinite:
        notes.append(f"{nonfinite:,} NaN or infinite")
    if nonfinite == weights:
        return notes
    outliers = sum(one.outliers for one in members)
    if outliers:
        mark = "! " if outliers > HEAVY * weights else ""
        notes.append(f"{mark}{_share(outliers, weights)} beyond {FAR:g} rms")
    if zeros == weights:
        return [*notes, "all zeros"]
    if zeros:
        notes.append(f"{_share(zeros, weights)} zeros")
        fours = [(one.two_of_four, one.weights) for one in members if one.two_of_four is not None]
        ready = sum(share * size for share, size in fours) / max(sum(size for _, size in fours), 1)
        if ready >= LEAST_READY:
            notes.append(f"{ready:.1%} of the groups of four are 2:4")
    dead, rows = (sum(values) for values in zip(*((one.dead_rows, one.rows) for one in members), strict=True))
    if dead and rows > len(members):
        notes.append(f"{dead:,} of {rows:,} rows {'is' if dead == 1 else 'are'} zero")
    if all(one.minimum == one.maximum for one in members):
        return [*notes, "constant"]
    if all(one.minimum >= 0 for one in members):
        notes.append("no negative weights")
    origin = _common([one.fits for one in members])
    if origin:
        notes.append(f"all fit {origin}")
    return notes


def _common(fits: Sequence[Sequence[str]]) -> str | None:
    """The first of the dtypes that all have."""
    return next((name for name in fits[0] if all(name in other for other in fits)), None) if fits else None


def _line(one: Prediction, best: bool) -> tuple[str, ...]:
    name = one.scheme if one.min_sqnr is None else f"{one.scheme} {one.min_sqnr:g} dB"
    if one.sparsity is not None:
        name = f"prune {100 * one.sparsity:g} %"
    if not one.treated:
        return name, "-", "-", "-", "nothing would get smaller"
    what = "exact" if one.sqnr_db is None else ""
    error = decibel(one.sqnr_db)
    return (
        name,
        size(one.bytes),
        f"{one.ratio:.2f}x",
        error,
        "; ".join([what] * bool(what) + ["recommended"] * best),
    )


def _advice(found: Inspection, best: Prediction | None, members: list[tuple[Group, list[TensorSurvey]]]) -> list[str]:
    if best is None or found.compressed:
        inside = [one for _, surveyed in members for one in surveyed]
        damaged = sum(one.nonfinite > 0 for one in inside)
        return [f"NaN or infinity in {damaged} of {len(inside)} float tensors"] if damaged else []
    advice = []
    statistics = [one for _, inside in members for one in inside if one.weights]
    wide = {tensor.dtype for tensor in found.tensors if found.statistics and tensor.name in found.statistics}
    origin = _common([one.fits for one in statistics])
    if origin and len(wide) == 1 and found.path != "-":
        scheme = {"bf16": "bf16", "f16": "fp16", "f32": "fp32"}[origin]
        command = shlex.join(["modelzip", "quantize", found.path, "--scheme", scheme, "--layout", "dense"])
        advice.append(f"all weights are {wide.pop()} but fit {origin}: `{command}{_options(best)}` loses nothing")
    damaged_groups = [item.label for item, inside in members if any(one.nonfinite for one in inside)]
    if damaged_groups:
        advice.append(f"NaN or infinity in {_listed(damaged_groups)}; --allow-nonfinite keeps such tensors as they are")
    heavy = []
    for item, inside in members:
        treated = [one for one in inside if one.name in best.by_tensor]
        if sum(one.outliers for one in treated) > HEAVY * sum(one.weights for one in treated):
            heavy.append(item.label)
    if heavy:
        advice.append(f"heavy tails (!) in {_listed(heavy)}: of fixed bits, small groups (-g32) or nf4 suit them")
    return advice


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(inert(label, longest=40) for label in labels[:3]) + (", ..." if len(labels) > 3 else "")


def _options(one: Prediction) -> str:
    """What the command needs beside the scheme."""
    key = f" --key {shlex.quote(one.recipe.key)}" if one.recipe.key else ""
    return key + (" --allow-nonfinite" if one.recipe.allow_nonfinite else "")


def _command(found: Inspection, best: Prediction) -> str:
    """A command that works when pasted: the recommended scheme, and int8 where that would lose too much."""
    path = shlex.quote(found.path)
    if best.scheme == "lossless":
        return f"modelzip compress {path} --lossless{_options(best)}"
    if best.min_sqnr is not None:
        return f"modelzip compress {path} --min-sqnr {best.min_sqnr:g}{_options(best)}"
    command = f"modelzip quantize {path} --scheme {best.scheme}{_options(best)}"
    if best.sqnr_db is None or best.sqnr_db < ENOUGH_DB or best.scheme == "int8":
        return command
    weak = [name for name, noise in best.by_tensor.items() if noise > 10 ** (-WEAK_DB / 10)]
    if len(weak) <= MOST_ADVICE and all(name.isprintable() and not name.startswith("re:") for name in weak):
        command += "".join(f" --set {shlex.quote(f'{escape(name)}=int8')}" for name in weak)
    return command
