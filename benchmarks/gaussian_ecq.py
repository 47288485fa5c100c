"""`ecq` on Gaussian weights, and on rows of different scale, against the published points of EntroPack.

EntroPack (E8 lattice with rANS) has no package to run: its points are those of its article on Gaussian weights. Ours
are what `modelzip quantize --scheme ecq --bpw B` writes, less the header, and the SQNR of what `restore` gives back. A
bit is worth 6.02 dB, which makes points at slightly different rates comparable. Exits with 1 when a goal is missed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import common
import numpy as np
from common import PROGRAM, verdict
from safetensors.numpy import load_file, save_file

SIZE = 2048
PUBLISHED = {2: (2.008, 10.65), 3: (3.017, 16.67), 4: (4.015, 22.68), 6: (6.033, 34.34)}  # asked: bits, dB
GOALS = {"Gaussian": {2: 0.55, 3: 0.75, 4: 0.8, 6: 1.2}, "rows of different scale": dict.fromkeys(PUBLISHED, 1.2)}
DECIBELS_A_BIT = 6.02


def matrices() -> dict[str, np.ndarray]:
    """Weights of N(0, 0.02), float32 [2048, 2048]; once more with each row times exp(0.5 N(0, 1))."""
    random = np.random.default_rng(0)
    plain = random.standard_normal((SIZE, SIZE)).astype(np.float32) * np.float32(0.02)
    scales = np.exp(0.5 * random.standard_normal((SIZE, 1))).astype(np.float32)
    return {"Gaussian": plain, "rows of different scale": plain * scales}


def point(weights: np.ndarray, asked: int, folder: Path) -> tuple[float, float]:
    """Stored bits a weight and dB."""
    source, small, back = (folder / f"{name}.safetensors" for name in ("source", "small", "back"))
    save_file({"w.weight": weights}, source)
    command = [PROGRAM, "quantize", source, "--scheme", "ecq", "--bpw", str(asked), "-o", small, "-f", "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    subprocess.run([PROGRAM, "restore", small, "-o", back, "-f", "-q"], check=True, capture_output=True)
    noise = np.square(weights.astype(np.float64) - load_file(back)["w.weight"]).sum()
    return report["totals"]["bits_per_weight"], float(10 * np.log10(np.square(weights, dtype=np.float64).sum() / noise))


def main() -> int:
    """Print the table."""
    rows, missed = [], False
    with tempfile.TemporaryDirectory() as folder:
        for kind, weights in matrices().items():
            for asked, (bits, decibels) in PUBLISHED.items():
                ours, kept = point(weights, asked, Path(folder))
                better = kept - decibels - DECIBELS_A_BIT * (ours - bits)
                least = GOALS[kind][asked]
                missed |= better < least
                figures = f"{ours:.3f}", f"{kept:.2f}", f"{better:.2f}", f"{least:.2f}"
                rows.append((kind, asked, *figures, verdict(better >= least)))
    print(common.versions("modelzip", "numpy"))
    heads = ("weights", "bits asked for", "bits", "dB", "better by, dB", "goal", "reached")
    common.print_table("ecq against the published points of EntroPack", heads, rows)
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
