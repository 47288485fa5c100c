"""Where numba pays: the whole program with numpy's kernels and with numba's, on files of growing size.

Justifies WORTH_NUMBA in modelzip_cli/kernels/jit.py: the number of weights from which starting numba costs less time
than it saves. Compiled kernels come from a cache, as in every run but the first; that first run is measured once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import common
from common import median, modelzip, spread

SCHEMES = ("int8", "int4", "fixed8")
KERNELS = ("numpy", "numba")


def measure(source: Path, scheme: str, cache: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds by kernels, in turn."""
    out = source.with_name("out.safetensors")

    def side(kernels: str) -> None:
        env = {"MODELZIP_KERNELS": kernels, "NUMBA_CACHE_DIR": str(cache)}
        modelzip("quantize", source, "--scheme", scheme, "-o", out, "-f", "-q", env=env)

    return common.in_turn({kernels: partial(side, kernels) for kernels in KERNELS}, rounds)


def crossover(points: Sequence[tuple[float, float]]) -> float | None:
    """Where numpy's seconds less numba's turn positive, on the line between the two sizes around it."""
    for (small, before), (large, after) in pairwise(points):
        if before < 0 <= after:
            return small + (large - small) * -before / (after - before)
    return None


def main() -> None:
    """Print one table a scheme, the crossover of each, and the time of a first run."""
    parser = common.parser(__doc__)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 4, 16, 64, 256], help="weights, in millions")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(common.versions("modelzip", "numpy", "numba"))
    differences: dict[str, list[tuple[float, float]]] = {scheme: [] for scheme in SCHEMES}
    rows = []
    with common.scratch(options.tmp) as folder:
        cache = folder / "kernels"
        for millions in options.millions:
            source = common.make_checkpoint(folder / "model.safetensors", weights=1e6 * millions)
            weights = source.stat().st_size / 2e6
            for scheme in SCHEMES:
                seconds = measure(source, scheme, cache, options.rounds)
                numpy, numba = (median(seconds[kernels]) for kernels in KERNELS)
                differences[scheme].append((weights, numpy - numba))
                figures = [f"{numpy:.2f}", spread(seconds["numpy"]), f"{numba:.2f}", spread(seconds["numba"])]
                rows.append([f"{scheme}, {weights:.0f} M weights", *figures, f"{numpy / numba:.2f}"])
        smallest = common.make_checkpoint(folder / "model.safetensors", weights=1e6)
        first = {
            scheme: modelzip(
                *("quantize", smallest, "--scheme", scheme, "-o", folder / f"{scheme}.safetensors", "-q"),
                env={"MODELZIP_KERNELS": "numba", "NUMBA_CACHE_DIR": str(folder / f"empty-{scheme}")},
            ).wall
            for scheme in SCHEMES
        }
    columns = ["run", "numpy s", "min-max", "numba s", "min-max", "numpy / numba"]
    common.print_table(f"Whole program, 2 byte weights, median of {options.rounds}", columns, rows)
    print()
    for scheme, points in differences.items():
        found = crossover(points)
        where = f"at {found:.0f} M weights" if found else "outside the sizes measured"
        print(f"{scheme}: numba breaks even {where}; a first run, which compiles, takes {first[scheme]:.1f} s")


if __name__ == "__main__":
    main()
