"""A run of quantize or restore."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelzip_cli.errors import inert
from modelzip_cli.figures import count, decibel, duration, size
from modelzip_cli.grouping import Group, group, most_of
from modelzip_cli.render import Bars, Block, Heading, Pairs, Table

if TYPE_CHECKING:
    from modelzip_cli.report import Report, TensorRow

NAME_WIDTH = 200
STREAM = "-"  # a path that means standard input or output
DECIBELS_A_BIT = 20 * math.log10(2)
BEYOND_SHANNON = 0.11  # bits that `ecq` takes beyond a Gaussian's rate-distortion function (docs/benchmarks.md)
ECQ_BESIDE = 8 * 2000  # bits of its tables, classes and names in the header
WORTH_A_LINE = 0.97
FINEST = 45.0  # dB that the finest step keeps


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
        blocks.append(_tensor_table(rows, verbose=verbose))
    blocks.append(Pairs(tuple(_report_pairs(report, target)), tuple(_gate_styles(report))))
    return blocks


def _tensor_table(rows: Sequence[TensorRow], *, verbose: bool) -> Table:
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
    return Table(("tensors", "n", "now", "before", "after", "dB", "note"), "lrlrrrl", tuple(lines), frozenset(dim))


def _group_line(found: Group, rows: Sequence[TensorRow]) -> tuple[str, ...]:
    members = [rows[place] for place in found.members]
    first = members[0]
    before, after = sum(row.bytes_before for row in members), sum(row.bytes_after for row in members)
    worst = min((row.sqnr_db for row in members if row.sqnr_db is not None), default=None)
    now = first.scheme or first.status
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
    if totals["sparsity"]:
        pairs.append(("sparsity", f"{totals['sparsity']:.2%} zeros (before: {totals['sparsity_before'] or 0:.2%})"))
    worst = sorted((row for row in treated if row.sqnr_db is not None), key=lambda row: row.sqnr_db or 0)[:3]
    if len(treated) > 1 and worst:
        pairs.append(
            ("worst", "   ".join(f"{inert(row.name, longest=NAME_WIDTH)} {row.sqnr_db:.1f} dB" for row in worst))
        )
    dropped = [row for row in report.tensors if row.status == "dropped"]
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
        pairs.append(("ecq", f"would keep these dB in about {ecq:.1f} bits a weight or less: {advice}"))
    if native and target != STREAM:
        pairs.append(("restore", f"modelzip restore {shlex.quote(target)}"))
        pairs.append(("in Python", f"from modelzip_cli import load_file; load_file({target!r})"))
    elif report.output is None:
        pairs.append(("next", "run it again without -n"))
    return pairs


def ecq_bits(report: Report) -> float | None:
    """What `ecq` would take at most for the SQNR that a run of quantize kept, in bits a weight; None where that is no
    gain.

    Of all weights with the same variance those of a Gaussian take the most bits: R(D) = log2(SQNR) / 2 (Cover and
    Thomas, Elements of Information Theory, theorem 13.3.2).
    """
    kept, stored = report.totals["sqnr_db"], report.totals["bits_per_weight"]
    lossy = [row.scheme for row in report.tensors if row.scheme and row.sqnr_db is not None]
    if report.command != "quantize" or report.source.path == STREAM or not kept or not stored or kept >= FINEST:
        return None
    if all(scheme.startswith("ecq") for scheme in lossy):
        return None
    bits = kept / DECIBELS_A_BIT + BEYOND_SHANNON + ECQ_BESIDE / (report.totals["treated_parameters"] or 1)
    return bits if 1 <= bits < WORTH_A_LINE * stored else None


def _figure(value: float | None) -> str:
    return "(nothing lost)" if value is None else f"{value:.6g}"


def _gate_styles(report: Report) -> list[tuple[str, str]]:
    return [("warning", "warn"), ("gate", "good" if all(gate.passed for gate in report.gates) else "bad")]
