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

    from modelzip_cli.running.lesson import Lesson
    from modelzip_cli.running.training import State

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


@contextmanager
def examples_progress(*, shown: bool) -> Iterator[Begin]:
    """The same by examples instead of bytes, for data that run through a model: a bar on a terminal, nothing else."""
    if not shown or not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:

        def begin(label: str, total: int) -> Callable[[int], None]:
            task = bar.add_task(label, total=total)

            def advance(more: int) -> None:
                bar.advance(task, more)
                if bar.tasks[task].finished:
                    bar.update(task, visible=False)

            return advance

        yield begin


@contextmanager
def training_progress(*, shown: bool) -> Iterator[tuple[Callable[[str], None], Callable[[State, Lesson], None]]]:
    """Two callbacks for a training: what is done now, and how far it is. A bar, or elsewhere a line an evaluation."""
    if not shown:
        yield lambda _: None, lambda state, lesson: None
    elif not sys.stderr.isatty():
        yield lambda text: None, lambda state, lesson: print(_training_line(state, lesson), file=sys.stderr)
    else:
        with _training_bar() as callbacks:
            yield callbacks


def _training_line(state: State, lesson: Lesson) -> str:
    last = state.history[-1]
    rate = state.step / state.elapsed if state.elapsed else 0.0
    return (
        f"step {state.step:,} of {lesson.steps:,}  loss {last['loss']:.4g}  agreement {last['agreement']:.2%}  "
        f"KL {last['kl']:.4f}  {rate:.1f} steps/s"
    )


@contextmanager
def _training_bar() -> Iterator[tuple[Callable[[str], None], Callable[[State, Lesson], None]]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task("", total=None)

        def step(state: State, lesson: Lesson) -> None:
            bar.update(task, total=lesson.steps, completed=state.step, description=_training_line(state, lesson))

        yield lambda text: bar.update(task, description=text), step
