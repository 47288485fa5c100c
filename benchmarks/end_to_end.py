"""Quantize and restore a model from file to file, against `cp && sync` and the gguf package.

Every program runs once a round, in turn, on a file in the page cache; the clock stops after a sync of the file systems,
for every side. Needs `gguf` for that peer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import common
from common import HERE, Usage, median, modelzip, run, spread, verdict

CP = "cp && sync"
GGUF = "gguf Q8_0"


@dataclass(frozen=True)
class Side:
    """A program that reads a file and writes another. `most`: goal for its time over that of cp."""

    name: str
    source: Path
    command: Callable[[Path, Path], Usage]
    most: float | None = None


def quantize(scheme: str, jobs: int | None = None) -> Callable[[Path, Path], Usage]:
    """`modelzip quantize` with a scheme, and with all workers or a number of them."""
    workers = () if jobs is None else ("--jobs", str(jobs))
    return lambda source, out: modelzip("quantize", source, "--scheme", scheme, "-o", out, "-q", *workers, sync=True)


def restore(jobs: int | None = None) -> Callable[[Path, Path], Usage]:
    """`modelzip restore`, likewise."""
    workers = () if jobs is None else ("--jobs", str(jobs))
    return lambda source, out: modelzip("restore", source, "-o", out, "-q", *workers, sync=True)


def sides(source: Path, folder: Path) -> Iterator[Side]:
    """All programs to compare. Makes the quantized files that restoring starts from."""
    yield Side(CP, source, lambda a, b: run("cp", "--reflink=never", a, b, sync=True))
    for scheme in ("int8", "int4-g128"):
        small = folder / f"small-{scheme}.safetensors"
        quantize(scheme)(source, small)
        yield Side(f"quantize {scheme}", source, quantize(scheme), 1.0)
        yield Side(f"restore {scheme}", small, restore(), 1.5)
        yield Side(f"quantize {scheme}, 1 worker", source, quantize(scheme, 1))
        yield Side(f"restore {scheme}, 1 worker", small, restore(1))
    if find_spec("gguf"):
        yield Side(GGUF, source, lambda a, b: run(sys.executable, HERE / "gguf_q8_0.py", a, b, sync=True))
    else:
        print("skipped: gguf is not installed")


def measure(programs: list[Side], folder: Path, rounds: int) -> tuple[dict[str, list[Usage]], dict[str, int]]:
    """Run every program once a round, in turn, after one round that does not count. Returns usages and output bytes."""
    used: dict[str, list[Usage]] = {side.name: [] for side in programs}
    sizes: dict[str, int] = {}
    for count in range(rounds + 1):
        for side in programs:
            out = folder / "out.safetensors"
            usage = side.command(side.source, out)
            if count:
                used[side.name].append(usage)
            sizes[side.name] = out.stat().st_size
            out.unlink()
    return used, sizes


def main() -> None:
    """Print one table, and the ratios the goals are about."""
    parser = common.parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=1, help="size of the bf16 model (default: 1)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(common.versions("modelzip", "numpy", "numba", "gguf"))
    with common.scratch(options.tmp) as folder:
        source = common.make_checkpoint(folder / "model.safetensors", weights=options.gigabytes * 1e9 / 2)
        programs = list(sides(source, folder))
        used, sizes = measure(programs, folder, options.rounds)
        copy = [usage.wall for usage in used[CP]]
        rows = []
        for side in programs:
            walls = [usage.wall for usage in used[side.name]]
            ratio = median([wall / paired for wall, paired in zip(walls, copy, strict=True)])
            goal = ("", "") if side.most is None else (f"<= {side.most}", verdict(ratio <= side.most))
            cpu = [f"{median([getattr(usage, kind) for usage in used[side.name]]):.2f}" for kind in ("user", "system")]
            size = f"{sizes[side.name] / 1e9:.2f}"
            rows.append([side.name, f"{median(walls):.2f}", spread(walls), *cpu, size, f"{ratio:.2f}", *goal])
        columns = ["program", "seconds", "min-max", "user", "system", "GB written", "over cp", "goal", "reached"]
        title = f"{source.stat().st_size / 1e9:.2f} GB bf16, median of {options.rounds}, ratios within a round"
        common.print_table(title, columns, rows)
        if GGUF in used:
            for name in ("quantize int8", "quantize int8, 1 worker"):
                pairs = zip(used[GGUF], used[name], strict=True)
                ratio = median([peer.wall / ours.wall for peer, ours in pairs])
                print(f"gguf Q8_0 over {name}: {ratio:.1f} (goal >= 3: {verdict(ratio >= 3)})")


if __name__ == "__main__":
    main()
