"""Peak memory of `quantize` and `restore`, whatever the size of the model.

The figure is the kernel's own for the finished process. The goal is 150 MB + 64 MB for each worker.
"""

from __future__ import annotations

from pathlib import Path

import common
from common import MB, Usage, modelzip, verdict

SCHEMES = ("int8", "int4-g128")
CONTAINERS = (".safetensors", ".pth")


def measure(source: Path, folder: Path, scheme: str, jobs: int) -> tuple[Usage, Usage]:
    """Quantize, restore into the container of the source, and remove both outputs."""
    small, back = folder / "small.safetensors", folder / f"back{source.suffix}"
    quantized = modelzip("quantize", source, "--scheme", scheme, "-o", small, "--jobs", str(jobs), "-q")
    restored = modelzip("restore", small, "-o", back, "--jobs", str(jobs), "-q")
    small.unlink()
    back.unlink()
    return quantized, restored


def main() -> None:
    """Print one table; needs free disk space of two and a half times the largest model."""
    parser = common.parser(__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 4], help="sizes of the bf16 models")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    print(common.versions("modelzip", "numpy", "numba", "torch"))
    rows = []
    with common.scratch(options.tmp) as folder:
        for gigabytes in options.gigabytes:
            for suffix in CONTAINERS:
                source = common.make_checkpoint(folder / f"model{suffix}", weights=gigabytes * 1e9 / 2)
                for scheme in SCHEMES:
                    for jobs in options.workers:
                        quantized, restored = measure(source, folder, scheme, jobs)
                        goal = 150 + 64 * jobs
                        peaks = [quantized.peak_rss / MB, restored.peak_rss / MB]
                        reached = verdict(max(peaks) <= goal)
                        size = f"{source.stat().st_size / 1e9:.2f}"
                        rows.append([f"{size} GB {suffix}", scheme, jobs, *(f"{p:.0f}" for p in peaks), goal, reached])
                source.unlink()
    columns = ["source", "scheme", "workers", "quantize MB", "restore MB", "goal MB", "reached"]
    common.print_table("Peak resident memory, MB = 10^6 bytes", columns, rows)


if __name__ == "__main__":
    main()
