"""What the benchmarks share: running programs, timing in turn, printing tables. Imports nothing but the library.

A process passes its peak memory on to the programs that it starts (Linux keeps it through exec), so scripts that
measure memory must stay small themselves: checkpoints are made by a program of their own, `checkpoints.py`.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
PROGRAM = Path(sys.executable).with_name("modelzip")
MB = 1_000_000


@dataclass(frozen=True)
class Usage:
    """What a finished program took, by the kernel's accounts: seconds of wall, user and system time, peak bytes."""

    wall: float
    user: float
    system: float
    peak_rss: int


def run(*command: str | Path, env: Mapping[str, str] | None = None, sync: bool = False) -> Usage:
    """Run a program to its end; with `sync`, until all it wrote is on the disk. Raises SystemExit if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [os.fspath(part) for part in command],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    if sync:
        os.sync()
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(map(str, command))}")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Usage(wall, used.ru_utime, used.ru_stime, peak)


def modelzip(*arguments: str | Path, env: Mapping[str, str] | None = None, sync: bool = False) -> Usage:
    """Run the installed program beside this Python."""
    return run(PROGRAM, *arguments, env=env, sync=sync)


def make_checkpoint(path: Path, *, weights: float = 0, tensors: int = 0) -> Path:
    """Write a bf16 checkpoint of about `weights` weights, or of `tensors` small tensors; the suffix says the kind."""
    size = ("--weights", f"{weights:.0f}") if weights else ("--tensors", str(tensors))
    run(sys.executable, HERE / "checkpoints.py", path, *size)
    return path


def in_turn(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time every side once a round, A B A B, after one round that does not count. Returns seconds by side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for count in range(rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if count:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Smallest to largest, as in `0.81-0.93`."""
    return f"{min(values):.{digits}f}-{max(values):.{digits}f}"


def verdict(reached: bool) -> str:
    """How a goal is reported."""
    return "yes" if reached else "NO"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns: the first column to the left, the others to the right."""
    cells = [[*map(str, columns)], *([*map(str, row)] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        first, *others = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))
    sys.stdout.flush()


def fill(page: str, name: str, script: str, content: str) -> str:
    """Put `content` between the markers of `name` in a page. Raises SystemExit if it does not have them once."""
    begin, end = f"<!-- {name}: written by {script} -->", f"<!-- end of {name} -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"the page needs these two lines once: {begin} and {end}")
    return re.sub(
        f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n\n{content}\n\n{end}", page, flags=re.DOTALL
    )


def versions(*packages: str) -> str:
    """Python and the given packages with their versions, and how many processors this process may use."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"Python {platform.python_version()}, {', '.join(found)}; {cores} processors, {platform.machine()}"


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with `--tmp`."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--tmp", type=Path, metavar="DIR", help="where files are made, and removed again")
    return made


@contextmanager
def scratch(tmp: Path | None) -> Iterator[Path]:
    """A new folder inside `tmp`, or where temporary files go; removed at the end."""
    if not PROGRAM.exists():
        raise SystemExit(f"{PROGRAM} is missing: install modelzip for {sys.executable}, as in pip install .")
    folder = Path(tempfile.mkdtemp(prefix="modelzip-benchmark-", dir=tmp))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
