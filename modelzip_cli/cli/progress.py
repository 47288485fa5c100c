"""Progress by bytes on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modelzip_cli.kernels.jit import will_compile
from modelzip_cli.single import Begin, no_progress

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_SECONDS = 30.0  # between lines in a log
BAR_SECONDS = 0.5  # a run that is done sooner needs no bar
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
    bars: list[Progress] = []  # none until a run takes long enough to be worth one

    def begin(label: str, total: int) -> Callable[[int], None]:
        done, started = 0, time.monotonic()
        for bar in bars:
            bar.reset(bar.task_ids[0], total=total, description=label)

        def advance(more: int) -> None:
            nonlocal done
            done += more
            if not bars and time.monotonic() - started > BAR_SECONDS:
                bars.append(_make_bar())
                bars[0].add_task(label, total=total)
                bars[0].start()
            for bar in bars:
                bar.update(bar.task_ids[0], completed=done, description=label)

        if will_compile():
            print(COMPILING, file=sys.stderr)
        return advance

    try:
        yield begin
    finally:
        for bar in bars:
            bar.stop()


def _make_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)


def _lines(label: str, total: int) -> Callable[[int], None]:
    done, told = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, told
        done += more
        if time.monotonic() - told >= LINE_SECONDS and total:
            told = time.monotonic()
            print(f"{label}: {done / total:.0%} of {total:,} bytes", file=sys.stderr)

    return advance
