"""A run of quantize or restore."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelzip_cli.errors import inert
from modelzip_cli.figures import count, decibel, duration, size
from modelzip_cli.grouping import Group, group, most_of
from modelzip_cli.pages.evaluation import evaluation_table
from modelzip_cli.render import Bars, Block, Heading, Pairs, Table
from modelzip_cli.report import OF_A_LAYER

if TYPE_CHECKING:
    from modelzip_cli.report import Report, TensorRow

NAME_WIDTH = 200
STREAM = "-"  # a path that means standard input or output
DECIBELS_A_BIT = 20 * math.log10(2)
BEYOND_SHANNON = 0.11  # bits that `ecq` takes beyond a Gaussian's rate-distortion function (docs/benchmarks.md)
ECQ_BESIDE = 8 * 2000  # bits of its tables, classes and names in the header
WORTH_A_LINE = 0.97
FINEST, COARSEST = 45.0, 3.2  # dB that the finest step keeps, and a little more than the coarsest
ENOUGH_DB = 20.0


def report_blocks(report: Report, *, verbose: bool = False) -> list[Block]:
    """A run of quantize or restore."""
    target = report.output.path if report.output else report.extra["planned"]["path"]
    after = report.output.bytes if report.output else report.extra["planned"]["bytes"]
    came_from = "standard input" if report.source.path == STREAM else report.source.path
    goes_to = "standard output" if target == STREAM else target
    planned = "" if report.output else "  (dry run: nothing is written)"
    blocks: list[Block] = [
        Heading(f"{came_from} -> {goes_to}{planned}", duration(report.seconds)),
        Bars(
            (
                ("before", report.source.bytes, size(report.source.bytes)),
                ("after", after, f"{size(after)}  {report.totals['ratio']:.2f}x"),
            )
        ),
    ]
    rows = [row for row in report.tensors if row.status != "dropped"]
    if report.command != "restore" or verbose or any(row.scheme for row in rows):
        blocks.append(_tensor_table(rows, verbose=verbose, pruned="pruning" in report.extra))
    if report.stages:
        blocks.append(evaluation_table(report.stages))
    blocks.append(Pairs(tuple(_report_pairs(report, target)), tuple(_gate_styles(report))))
    return blocks


def _tensor_table(rows: Sequence[TensorRow], *, verbose: bool, pruned: bool) -> Table:
    """A line for each group of tensors; where weights were pruned, with zeros and energy."""
    if verbose:
        groups = [Group((row.name,), None, (place,)) for place, row in enumerate(rows)]
    else:
        keys = [(row.shape, row.dtype, row.scheme, row.status, row.reason) for row in rows]
        groups = group([row.name for row in rows], keys)
        groups.sort(key=lambda found: -sum(rows[place].bytes_before for place in found.members))
    shown: list[Group] = groups
    rest: list[Group] = []
    if not verbose:
        shown, rest = most_of(groups, [row.bytes_before for row in rows])
    lines = [_group_line(found, rows) for found in shown]
    dim = {number for number, found in enumerate(shown) if rows[found.members[0]].scheme is None}
    if rest:
        members = [place for found in rest for place in found.members]
        before, after = (sum(getattr(rows[place], key) for place in members) for key in ("bytes_before", "bytes_after"))
        dim.add(len(lines))
        lines.append((f"({len(rest)} smaller groups)", str(len(members)), "", size(before), size(after), "", ""))
    heads: tuple[str, ...] = ("tensors", "n", "now", "before", "after", "dB", "note")
    sides = "lrlrrrl"
    if pruned:
        zeros = [_zeros([rows[place] for place in found.members]) for found in shown] + [("", "")] * bool(rest)
        lines = [(*line[:5], *more, *line[5:]) for line, more in zip(lines, zeros, strict=True)]
        heads, sides = (*heads[:5], "zeros", "energy", *heads[5:]), "lrlrrrrrl"
    return Table(heads, sides, tuple(lines), frozenset(dim))


def _zeros(rows: Sequence[TensorRow]) -> tuple[str, str]:
    """Exact zeros of a group of tensors, those before where there were any, and the least energy that one has left."""
    known = [row for row in rows if row.energy_kept is not None]
    weights = sum(math.prod(row.shape) for row in known)
    if not known or not weights:
        return "", ""
    after, before = (
        sum((getattr(row, key) or 0.0) * math.prod(row.shape) for row in known) / weights
        for key in ("sparsity", "sparsity_before")
    )
    least = min(row.energy_kept or 0.0 for row in known)
    return (f"{before:.1%} -> {after:.1%}" if before else f"{after:.1%}"), f"{least:.1%}"


def _group_line(found: Group, rows: Sequence[TensorRow]) -> tuple[str, ...]:
    members = [rows[place] for place in found.members]
    first = members[0]
    before, after = sum(row.bytes_before for row in members), sum(row.bytes_after for row in members)
    worst = min((row.sqnr_db for row in members if row.sqnr_db is not None), default=None)
    now = first.scheme or ("pruned" if first.pruned else first.status)
    return (
        inert(found.label, longest=NAME_WIDTH),
        str(len(members)),
        now,
        size(before),
        size(after),
        decibel(worst),
        first.reason or "",
    )


def _report_pairs(report: Report, target: str) -> list[tuple[str, str]]:
    totals = report.totals
    weights = [row for row in report.tensors if row.status != "dropped"]
    treated = [row for row in weights if row.status == "compressed"]
    pairs = []
    if report.command == "restore":
        checked = ", every checksum matches" if report.output and report.source.compressed else ""
        pairs.append(("tensors", f"{len(weights)}{checked}"))
    if report.command != "restore" or treated:
        coverage = totals["coverage"] or 0.0
        pairs.append(("coverage", f"{len(treated)} of {len(weights)} tensors, {coverage:.1%} of the weight bytes"))
    if totals["bits_per_weight"] is not None:
        bits = f"{totals['bits_per_weight']:.2f} bits a weight, {count(totals['treated_parameters'] or 0)} weights"
        pairs.append(("stored", f"{bits}; state dict {totals['weight_ratio']:.2f}x smaller"))
    if totals["sqnr_db"] is not None:
        pairs.append(
            ("error", f"SQNR {totals['sqnr_db']:.2f} dB, cosine {totals['cosine']:.6f} (weights, not accuracy)")
        )
    elif treated and report.output:
        pairs.append(("error", "none: every weight is restored exactly"))
    if "depth" in report.extra:
        depth = report.extra["depth"]
        gone = ", ".join(map(str, depth["dropped"]))
        left = depth["layers"] - len(depth["dropped"])
        pairs.append(("depth", f"{left} of {depth['layers']} layers of {depth['stack']}; without {gone}"))
    if "pruning" in report.extra:
        pairs += _pruning_pairs(report.extra["pruning"], judged=bool(report.stages))
    elif totals["sparsity"]:
        pairs.append(("sparsity", f"{totals['sparsity']:.2%} zeros (before: {totals['sparsity_before'] or 0:.2%})"))
    worst = sorted((row for row in treated if row.sqnr_db is not None), key=lambda row: row.sqnr_db or 0)[:3]
    if len(treated) > 1 and worst:
        pairs.append(
            ("worst", "   ".join(f"{inert(row.name, longest=NAME_WIDTH)} {row.sqnr_db:.1f} dB" for row in worst))
        )
    fed = sum(row.feedback for row in report.tensors)
    if fed:
        others = "; the others were rounded to the nearest" if fed < len(treated) else ""
        pairs.append(("feedback", f"{fed} of {len(treated)} tensors{others}"))
    if report.stages:
        pairs.append(("measured", f"on {report.extra['data']}"))
        pairs += [("note", note) for note in report.extra["notes"]]
    dropped = [row for row in report.tensors if row.status == "dropped" and row.reason != OF_A_LAYER]
    if dropped:
        top = sorted({row.name.split(".")[0] for row in dropped})
        names = ", ".join(inert(name, longest=60) for name in top[:4]) + (", ..." if len(top) > 4 else "")
        total = size(sum(row.bytes_before for row in dropped))
        pairs.append(
            ("dropped", f"{len(dropped)} tensors beside the weights, {total}: {names} (--keep-extras keeps them)")
        )
    pairs += [("warning", warning) for warning in report.warnings]
    pairs += [
        (
            "gate",
            f"{gate.metric} {_figure(gate.value)} against {gate.limit:g}: {'passed' if gate.passed else 'NOT MET'}",
        )
        for gate in report.gates
    ]
    pairs.append(("memory", f"peak {size(report.peak_rss_bytes)}"))
    native = report.output is not None and report.output.layout == "native" and report.command != "restore"
    if native and (ecq := ecq_bits(report)) is not None:
        advice = f"modelzip compress {shlex.quote(report.source.path)} --min-sqnr {totals['sqnr_db']:.1f}"
        alone = ", nothing pruned" if report.command == "prune" else ""
        pairs.append(("ecq", f"would keep these dB in about {ecq:.1f} bits a weight or less{alone}: {advice}"))
    if native and target != STREAM:
        pairs.append(("restore", f"modelzip restore {shlex.quote(target)}"))
        pairs.append(("in Python", f"from modelzip_cli import load_file; load_file({target!r})"))
    elif report.output is None:
        pairs.append(("next", "run it again without -n"))
    return pairs


def _pruning_pairs(pruning: Mapping[str, Any], *, judged: bool) -> list[tuple[str, str]]:
    """What was asked, what was reached, what is left."""
    asked = "" if pruning["asked"] is None else f"{pruning['asked']:.6g} asked, "
    if pruning["sparsity"] is None:
        pairs = [("zeros", f"{asked}the run counts them")]
    else:
        reached = f"{pruning['sparsity']:.6g} reached: {pruning['zeros']:,} of {pruning['parameters']:,} weights"
        before = f" (before: {pruning['sparsity_before']:.6g})" if "sparsity_before" in pruning else ""
        pairs = [("zeros", f"{asked}{reached} in {pruning['tensors']} tensors{before}")]
    if pruning.get("energy_kept") is not None:
        pairs.append(("energy", f"{pruning['energy_kept']:.2%} of the sum of squares is left"))
        if pruning["energy_kept"] < 1 - 10 ** (-ENOUGH_DB / 10) and not judged:
            pairs.append(("hint", "pruned without recovery: train on, or distil, to win back what was lost"))
    return pairs


def ecq_bits(report: Report) -> float | None:
    """What `ecq` would take at most for the SQNR that quantize or prune kept, in bits a weight; None where that is no
    gain.

    Of all weights with the same variance those of a Gaussian take the most bits: R(D) = log2(SQNR) / 2 (Cover and
    Thomas, Elements of Information Theory, theorem 13.3.2).
    """
    kept, stored = report.totals["sqnr_db"], report.totals["bits_per_weight"]
    if report.stages or any(row.feedback for row in report.tensors):
        return None  # dB of weights say little where outputs were looked at
    if report.source.path == STREAM or not kept or not stored or not COARSEST < kept < FINEST:
        return None
    lossy = [row.scheme or "" for row in report.tensors if row.sqnr_db is not None]
    if report.command != "prune" and (report.command != "quantize" or all(name.startswith("ecq") for name in lossy)):
        return None
    bits = kept / DECIBELS_A_BIT + BEYOND_SHANNON + ECQ_BESIDE / (report.totals["treated_parameters"] or 1)
    return bits if bits < WORTH_A_LINE * stored else None


def _figure(value: float | None) -> str:
    return "(nothing lost)" if value is None else f"{value:.6g}"


def _gate_styles(report: Report) -> list[tuple[str, str]]:
    return [("warning", "warn"), ("gate", "good" if all(gate.passed for gate in report.gates) else "bad")]
