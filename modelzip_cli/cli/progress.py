"""Progress by bytes on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from modelzip_cli.kernels.jit import cache_is_cold
from modelzip_cli.single import Begin, no_progress

LINE_SECONDS = 30.0  # between lines in a log
COMPILING = "compiling kernels (once)"


@contextmanager
def progress(*, shown: bool) -> Iterator[Begin]:
    """Give what a run reports its progress to. Nothing is shown unless `shown`."""
    if not shown:
        yield no_progress
    elif sys.stderr.isatty():
        with _bar() as begin:
            yield begin
    else:
        yield _lines


@contextmanager
def _bar() -> Iterator[Begin]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:

        def begin(label: str, total: int) -> Callable[[int], None]:
            for done in bar.task_ids:
                bar.remove_task(done)
            task = bar.add_task(COMPILING if cache_is_cold() else label, total=total)

            def advance(done: int) -> None:
                bar.update(task, advance=done, description=label)

            return advance

        yield begin


def _lines(label: str, total: int) -> Callable[[int], None]:
    done, told = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, told
        done += more
        if time.monotonic() - told >= LINE_SECONDS and total:
            told = time.monotonic()
            print(f"{label}: {done / total:.0%} of {total:,} bytes", file=sys.stderr)

    return advance
