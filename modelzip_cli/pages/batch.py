"""Many checkpoints: a line for each, and a summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from modelzip_cli.errors import inert
from modelzip_cli.figures import size

if TYPE_CHECKING:
    from modelzip_cli.batch import Result


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
