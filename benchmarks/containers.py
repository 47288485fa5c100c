"""Reading each kind of file, against safetensors, and the peak memory of quantizing it.

Reading is `modelzip verify`, which reads every byte of every tensor and, in torch files, checks the checksums of the
zip archive. Every container holds the same bf16 weights; they take turns. The goals: a torch file is read at least half
as fast as safetensors, and no container needs more than 150 MB + 64 MB for each worker.
"""

from __future__ import annotations

from pathlib import Path

import common
from common import MB, PROGRAM, Usage, median, modelzip, run, spread, verdict

KINDS = {
    "safetensors": "model.safetensors",
    "torch zip": "model.pth",
    "torch legacy": "model.legacy.pth",
    "directory, 4 shards": "model",
}
WORKERS = 2


def quantize_stream(source: Path, output: Path) -> Usage:
    """Quantize what comes through a pipe."""
    command = f"cat '{source}' | '{PROGRAM}' quantize - --scheme int8 -j {WORKERS} -q -o '{output}'"
    return run("bash", "-c", f"{command} -f")


def main() -> None:
    """Print two tables."""
    parser = common.parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(common.versions("modelzip", "numpy", "numba", "torch"))
    with common.scratch(options.tmp) as folder:
        weights = options.gigabytes * 1e9 / 2
        sources = {kind: common.make_checkpoint(folder / name, weights=weights) for kind, name in KINDS.items()}
        seconds = common.in_turn(
            {kind: lambda path=path: modelzip("verify", path) for kind, path in sources.items()}, options.rounds
        )
        base = seconds["safetensors"]
        rows = []
        for kind, times in seconds.items():
            ratios = [time / other for time, other in zip(times, base, strict=True)]
            reached = verdict(median(ratios) <= 2) if kind != "safetensors" else ""
            rows.append([kind, f"{median(times):.2f}", f"{median(ratios):.2f}", spread(ratios), reached])
        columns = ["container", "s", "over safetensors", "spread", "at most 2"]
        common.print_table(f"Reading {options.gigabytes:g} GB of bf16, median of {options.rounds}", columns, rows)

        goal = 150 + 64 * WORKERS
        rows = []
        output = folder / "small.safetensors"
        for kind, path in sources.items():
            used = modelzip("quantize", path, "--scheme", "int8", "-o", output, "-j", str(WORKERS), "-q", "-f")
            rows.append([kind, f"{used.peak_rss / MB:.0f}", goal, verdict(used.peak_rss <= goal * MB)])
        used = quantize_stream(sources["safetensors"], output)
        rows.append(
            ["safetensors through a pipe", f"{used.peak_rss / MB:.0f}", goal, verdict(used.peak_rss <= goal * MB)]
        )
        columns = ["container", "peak MB", "goal MB", "reached"]
        common.print_table(f"Memory of quantize --scheme int8 with {WORKERS} workers, MB = 10^6 bytes", columns, rows)


if __name__ == "__main__":
    main()
