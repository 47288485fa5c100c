"""Many checkpoints: a line for each, and a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from modelzip_cli.errors import inert
from modelzip_cli.figures import decibel, size
from modelzip_cli.render import Block, Prose, Table

if TYPE_CHECKING:
    from modelzip_cli.batch.run import Result


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


def batch_blocks(results: Sequence[Result], summary: Mapping[str, int]) -> list[Block]:
    """A table of all files, and the summary."""
    rows = []
    for result in results:
        report, path = result.report, inert(str(result.job.path))
        if report is None:
            status = "failed" if result.error is not None else "skipped"
            rows.append((path, status, "", "", "", "", str(result.error or result.job.skipped)))
            continue
        after = report.output.bytes if report.output else report.extra["planned"]["bytes"]
        target = report.output.path if report.output else report.extra["planned"]["path"]
        figures = (size(report.source.bytes), size(after), f"{report.totals['ratio']:.2f}x")
        rows.append((path, "ok" if report.output else "planned", *figures, decibel(report.totals["sqnr_db"]), target))
    columns = ("file", "status", "before", "after", "ratio", "dB", "output or reason")
    return [Table(columns, "llrrrrl", tuple(rows)), Prose(batch_summary(summary))]


def batch_summary(summary: Mapping[str, int]) -> str:
    """The last line of a batch."""
    counts = ", ".join(
        f"{summary[key]} {key}" for key in ("done", "skipped", "failed") if summary[key] or key == "done"
    )
    if not summary["bytes_after"]:
        return counts
    before, after = summary["bytes_before"], summary["bytes_after"]
    return f"{counts}   {size(before)} -> {size(after)}  {before / after:.2f}x"
