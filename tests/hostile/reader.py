"""Read the files that are named on standard input, each in a process of its own, with little memory and time.

Run as a program, so that nothing is loaded but the reader; a fork of it costs a hundredth of starting Python. Of every
file three lines are written: what came out, which modules were imported that a reader does not need, peak megabytes.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

from modelzip_cli.containers import nesting
from modelzip_cli.errors import ModelzipError
from modelzip_cli.source import open_source

MOST_MEMORY, MOST_SECONDS, GIVE_UP = 3 << 30, 20, 120  # bytes, seconds of work, seconds of waiting
NEVER = {"torch", "numba", "subprocess", "multiprocessing"}
NOT_TO_OPEN = {"numpy", "pickle"}  # numpy, which reading needs, imports pickle for itself


def read(path: Path) -> tuple[str, set[str]]:
    """Read every tensor: "read", or the name of the error; and what was imported."""
    imported: set[str] = set()
    try:
        source = open_source(path, keep_extras=True)
        imported = NOT_TO_OPEN & set(sys.modules)
        for name, spec in source.specs.items():
            for start, stop in spec.unit_slabs():
                source.read(name, start, stop)
        source.finish()
    except ModelzipError as error:
        return type(error).__name__, imported
    except Exception as error:
        return f"crash: {error!r}"[:800].replace("\n", " "), imported
    return "read", imported


def tell(path: Path) -> None:
    """Read within the limits and write the three lines."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    signal.alarm(GIVE_UP)
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
    outcome, imported = read(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(outcome, " ".join(sorted(imported | NEVER & set(sys.modules))), peak, sep="\n", flush=True)


def main() -> None:
    """Answer line by line."""
    nesting.MOST_VALUES, nesting.MOST_IN_MODULES = 100_000, 200_000  # a part of what they are, to be done sooner
    for line in sys.stdin:
        child = os.fork()
        if not child:
            tell(Path(line.removesuffix("\n")))
            os._exit(0)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            print(f"ended with {code}", "", 0, sep="\n", flush=True)


if __name__ == "__main__":
    main()
