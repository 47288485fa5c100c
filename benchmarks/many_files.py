"""A folder of small checkpoints: files a second of `modelzip quantize -r`. The goal is 50 on two cores.

The files are copies of a trainer checkpoint of the sample models: 150 kB with optimizer state and settings.
"""

from __future__ import annotations

import shutil

import common
from common import HERE, median, modelzip, spread, verdict

SAMPLE = HERE.parent / "sample_models" / "digits_mlp.pth"


def main() -> None:
    """Print one table."""
    parser = common.parser(__doc__)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(common.versions("modelzip", "numpy", "numba"))
    with common.scratch(options.tmp) as folder:
        (folder / "models").mkdir()
        for number in range(options.files):
            shutil.copy(SAMPLE, folder / "models" / f"run{number:04d}.pth")

        def quantize(jobs: int) -> None:
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            modelzip("quantize", "-r", folder / "models", "--output-dir", out, "-j", str(jobs), "-q")

        def again() -> None:
            modelzip("quantize", "-r", folder / "models", "--output-dir", folder / "out", "-q")

        sides = {"-j 1": lambda: quantize(1), "-j 2": lambda: quantize(2), "again, all done": again}
        rows = []
        for name, seconds in common.in_turn(sides, options.rounds).items():
            rates = [options.files / time for time in seconds]
            rows.append(
                [name, f"{median(seconds):.2f}", f"{median(rates):.0f}", spread(rates, 0), verdict(median(rates) >= 50)]
            )
        columns = ["run", "s", "files/s", "spread", "at least 50"]
        common.print_table(f"{options.files} checkpoints of {SAMPLE.stat().st_size / 1000:.0f} kB", columns, rows)


if __name__ == "__main__":
    main()
