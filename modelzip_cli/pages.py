"""What reports show: a run, an inspection, a difference or a list of schemes as blocks for `render`.

Every text that comes from a file passes through `inert` here.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from modelzip_cli.errors import inert
from modelzip_cli.figures import count, decibel, duration, shape, size
from modelzip_cli.grouping import Group, Node, group, tree
from modelzip_cli.render import Bars, Block, Heading, Pairs, Prose, Table, bar

if TYPE_CHECKING:
    from modelzip_cli.batch import Result
    from modelzip_cli.diff import Difference
    from modelzip_cli.inspection import Inspection
    from modelzip_cli.report import Report, TensorRow
    from modelzip_cli.schemes.listing import SchemeLine
    from modelzip_cli.verify import Verification

NAME_WIDTH = 200
MOST_ROWS = 24
COVERED = 0.99  # the rows shown cover this share of the bytes; the rest is one row


def report_blocks(report: Report, *, verbose: bool = False) -> list[Block]:
    """A run of quantize or restore."""
    target = report.output.path if report.output else report.extra["planned"]["path"]
    after = report.output.bytes if report.output else report.extra["planned"]["bytes"]
    planned = "" if report.output else "  (dry run: nothing is written)"
    blocks: list[Block] = [
        Heading(f"{report.source.path} -> {target}{planned}", duration(report.seconds)),
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
        shown, rest = _split(groups, [row.bytes_before for row in rows])
    lines = [_group_line(found, rows) for found in shown]
    dim = {number for number, found in enumerate(shown) if rows[found.members[0]].scheme is None}
    if rest:
        members = [place for found in rest for place in found.members]
        before, after = (sum(getattr(rows[place], key) for place in members) for key in ("bytes_before", "bytes_after"))
        dim.add(len(lines))
        lines.append((f"({len(rest)} smaller groups)", str(len(members)), "", size(before), size(after), "", ""))
    return Table(("tensors", "n", "now", "before", "after", "dB", "note"), "lrlrrrl", tuple(lines), frozenset(dim))


def _split(groups: list[Group], sizes: Sequence[int]) -> tuple[list[Group], list[Group]]:
    """The fewest groups, largest first, that cover nearly all bytes; and the rest, unless that is a single one."""
    total, covered = sum(sizes), 0
    for number, found in enumerate(groups):
        if number >= MOST_ROWS or (covered >= COVERED * total and number >= 8 and len(groups) - number > 1):
            return groups[:number], groups[number:]
        covered += sum(sizes[place] for place in found.members)
    return groups, []


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
    if report.output and report.command != "restore" and report.output.layout == "native":
        pairs.append(("restore", f"modelzip restore {shlex.quote(target)}"))
        pairs.append(("in Python", f"from modelzip_cli import load_file; load_file({target!r})"))
    elif report.output is None:
        pairs.append(("next", "run it again without -n"))
    return pairs


def _figure(value: float | None) -> str:
    return "(nothing lost)" if value is None else f"{value:.6g}"


def _gate_styles(report: Report) -> list[tuple[str, str]]:
    return [("warning", "warn"), ("gate", "good" if all(gate.passed for gate in report.gates) else "bad")]


def inspection_blocks(found: Inspection, *, verbose: bool = False) -> list[Block]:
    """A checkpoint from its header."""
    weights = [tensor for tensor in found.tensors if tensor.weights]
    by_dtype = found.dtypes()
    total = sum(entry["bytes"] for entry in by_dtype.values())
    shares = ", ".join(f"{name} {entry['bytes'] / total:.0%}" for name, entry in by_dtype.items()) if total else "empty"
    kind = f"{found.container}, compressed by modelzip" if found.compressed else found.container
    title = f"{found.path}  {kind}, {size(found.bytes)}, {count(found.parameters)} weights in {len(weights)} tensors"
    blocks: list[Block] = [Heading(title)]
    sizes = [0 if tensor.tied_to else tensor.stored_bytes for tensor in weights]
    if verbose:
        rows = [
            (inert(t.name), "1", shape(t.shape), _type(t.dtype, t.scheme), size(t.stored_bytes), t.tied_to or "")
            for t in weights
        ]
        blocks.append(Table(("name", "n", "shape", "type", "bytes", "tied to"), "lrllrl", tuple(rows)))
    else:
        keys = [(tensor.shape, tensor.dtype, tensor.scheme, tensor.tied_to) for tensor in weights]
        groups = group([tensor.name for tensor in weights], keys)
        groups.sort(key=lambda item: -sum(sizes[place] for place in item.members))
        shown, rest = _split(groups, sizes)
        stored = sum(sizes)
        lines: list[tuple[str, ...]] = []

        def cells(item: Group | None) -> tuple[str, str]:
            if item is None:
                return "", ""
            tensor = weights[item.members[0]]
            what = f"tied to {inert(tensor.tied_to)}" if tensor.tied_to else _type(tensor.dtype, tensor.scheme)
            return shape(tensor.shape), what

        _draw(tree(shown, sizes), "", "", stored, cells, lines.append)
        if rest:
            below = sum(sizes[place] for item in rest for place in item.members)
            names = sum(len(item.members) for item in rest)
            lines.append(
                (f"({len(rest)} smaller groups)", str(names), "", "", size(below), bar(below / max(stored, 1), 10))
            )
        blocks.append(Table(("name", "n", "shape", "type", "bytes", "share"), "lrllrl", tuple(lines)))
    blocks.append(Pairs(tuple(_inspection_pairs(found, shares)), (("warning", "warn"),) if found.warnings else ()))
    return blocks


def _type(dtype: str, scheme: str | None) -> str:
    return f"{scheme} of {dtype}" if scheme else dtype


def _draw(
    nodes: Sequence[Node],
    indent: str,
    branch: str,
    total: int,
    cells: Callable[[Group | None], tuple[str, str]],
    put: Callable[[tuple[str, ...]], None],
) -> None:
    """Put the lines of a tree of names: name, n, shape, type, bytes, share."""
    for number, node in enumerate(nodes):
        last = number == len(nodes) - 1
        lead = "" if not branch else indent + ("└─ " if last else "├─ ")
        share = bar(node.size / total, 10) if total else ""
        name = inert(node.name, longest=NAME_WIDTH)
        put((lead + name, str(node.count), *cells(node.group), size(node.size), share))
        deeper = "" if not branch else indent + ("   " if last else "│  ")
        _draw(node.children, deeper, "x", total, cells, put)


def _inspection_pairs(found: Inspection, shares: str) -> list[tuple[str, str]]:
    pairs = [("dtypes", shares)]
    if found.state_dict:
        pairs.append(("state dict", f"under {inert(found.state_dict)!r}"))
    beside = [tensor for tensor in found.tensors if not tensor.weights]
    if beside:
        total = sum(tensor.bytes for tensor in beside)
        top = ", ".join(sorted({inert(tensor.name.split(".")[0], longest=60) for tensor in beside}))
        pairs.append(("beside", f"{len(beside)} tensors, {size(total)} ({total / found.bytes:.0%} of the file): {top}"))
    extras = [f"{inert(name, longest=60)} = {inert(value, longest=60)}" for name, value in found.extras.items()]
    if extras:
        pairs.append(("values", "; ".join(extras[:8]) + (f"; {len(extras) - 8} more" if len(extras) > 8 else "")))
    if found.metadata:
        shown = ", ".join(f"{inert(k, longest=40)}={inert(v, longest=40)}" for k, v in [*found.metadata.items()][:6])
        pairs.append(("metadata", shown))
    if found.manifest:
        source = found.manifest["source"]
        made = f"{inert(str(source['name']))} ({size(source['bytes'])})"
        pairs.append(("made from", f"{made} by modelzip {inert(str(found.manifest['modelzip']))}"))
        pairs.append(("next", f"modelzip verify {shlex.quote(found.path)}"))
    else:
        pairs.append(("next", f"modelzip quantize {shlex.quote(found.path)}"))
    return [*pairs, *(("warning", warning) for warning in found.warnings)]


def difference_blocks(paths: tuple[str, str], found: Difference, *, verbose: bool = False) -> list[Block]:
    """Two checkpoints side by side; tensors that are equal are counted, not listed."""
    blocks: list[Block] = [Heading(f"{paths[0]} <> {paths[1]}")]
    rows = [row for row in found.rows if verbose or row.status != "equal"]
    if rows:
        keys = [(row.shape, row.dtypes, row.status) for row in rows]
        groups = group([row.name for row in rows], keys)
        lines = []
        for item in groups:
            members = [rows[place] for place in item.members]
            first = members[0]
            worst = min((row.sqnr_db for row in members if row.sqnr_db is not None), default=None)
            largest = max((row.max_abs_error for row in members if row.max_abs_error is not None), default=None)
            dtypes = first.dtypes[0] if first.dtypes[0] == first.dtypes[1] else " / ".join(first.dtypes)
            changed = sum(row.changed or 0 for row in members)
            lines.append(
                (
                    inert(item.label, longest=NAME_WIDTH),
                    str(len(members)),
                    shape(first.shape),
                    dtypes,
                    decibel(worst),
                    "-" if largest is None else f"{largest:.3g}",
                    f"{changed:,} elements differ" if changed else first.status,
                )
            )
        blocks.append(Table(("tensors", "n", "shape", "dtype", "dB", "max error", "status"), "lrllrrl", tuple(lines)))
    pairs = [("common", f"{len(found.rows)} tensors, {found.totals['equal']} of them equal bit for bit")]
    if found.totals["sqnr_db"] is not None:
        pairs.append(("error", f"SQNR {found.totals['sqnr_db']:.2f} dB, cosine {found.totals['cosine']:.6f}"))
    for path, names in zip(paths, found.only_in, strict=True):
        if names:
            shown = ", ".join(inert(name, longest=80) for name in names[:6]) + (", ..." if len(names) > 6 else "")
            pairs.append(("only in", f"{path}: {len(names)} tensors: {shown}"))
    return [*blocks, Pairs(tuple(pairs))]


def verification_blocks(found: Verification) -> list[Block]:
    """The result of verify."""
    pairs = [(inert(name, longest=NAME_WIDTH), problem) for name, problem in found.bad]
    what = "every checksum matches" if found.compressed else "readable; no checksums of modelzip inside"
    if found.against and not found.bad:
        what += f"; {found.against} and its recipe give the same bytes"
    verdict = f"{len(found.bad)} problems" if found.bad else f"ok: {what}"
    return [Heading(f"{found.path}  {found.checked} tensors  {verdict}"), *([Pairs(tuple(pairs))] if pairs else [])]


def scheme_list_blocks(lines: Sequence[SchemeLine]) -> list[Block]:
    """All schemes."""
    rows = [
        (line.name, "-" if line.bits_per_weight is None else f"{line.bits_per_weight:.2f}", line.summary, line.example)
        for line in lines
    ]
    return [
        Table(("scheme", "bits a weight", "what it is", "example"), "lrll", tuple(rows)),
        Prose("Bits a weight are those of the example, scales included. `modelzip schemes int` explains one."),
    ]


def scheme_blocks(manual: Mapping[str, str]) -> list[Block]:
    """One scheme: its docstring and that of its module."""
    return [Heading(manual["canonical"]), Prose(f"\n{manual['manual']}\n\n{manual['about']}")]


def default_blocks(rules: Iterable[tuple[str, str, str]]) -> list[Block]:
    """What is kept by default."""
    return [
        Table(("what", "recognised by (globs: a component of the name)", "then"), "lll", tuple(rules)),
        Prose(
            "--set GLOB=SCHEME overrides what follows from names, --set NAME=SCHEME also rank and size; "
            "--only and --skip add to them."
        ),
    ]


def batch_line(result: Result) -> str:
    """One file of a batch."""
    path = inert(str(result.job.path))
    if result.error is not None:
        return f"failed   {result.error}"
    if result.report is None:
        return f"skipped  {path}  {result.job.skipped}"
    report, after = result.report, result.report.output
    size_after = after.bytes if after else report.extra["planned"]["bytes"]
    target = after.path if after else report.extra["planned"]["path"]
    sqnr = report.totals["sqnr_db"]
    figures = f"{size(report.source.bytes)} -> {size(size_after)}  {report.totals['ratio']:.2f}x"
    return f"{'ok' if after else 'planned':<8} {path} -> {target}  {figures}" + (
        f"  {sqnr:.1f} dB" if sqnr is not None else ""
    )


def batch_summary(summary: Mapping[str, int]) -> str:
    """The last line of a batch."""
    counts = ", ".join(
        f"{summary[key]} {key}" for key in ("done", "skipped", "failed") if summary[key] or key == "done"
    )
    if not summary["bytes_after"]:
        return counts
    before, after = summary["bytes_before"], summary["bytes_after"]
    return f"{counts}   {size(before)} -> {size(after)}  {before / after:.2f}x"
