"""Prune a model from file to file against `cp && sync`, find its threshold against torch, and count the bits left.

Programs run once a round, in turn, on a file in the page cache; the clock stops after a sync of the file systems, for
every side. The threshold is that of `--scope global`, found by the functions that the program calls: from weights in
memory, and from a file in the page cache; torch has the magnitudes in memory before its clock starts. Sizes are those
of Gaussian weights and of MiniLM in bf16, embeddings included. `--only` measures one of the three. Needs `torch` for
all but the files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import common
from common import MB, Usage, in_turn, median, modelzip, run, spread, verdict

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits

CP = "cp && sync"
SHARES = (0.5, 0.7, 0.9)
LOSSLESS_BITS = (6.0, 3.9, 1.5)  # goals: bits a weight at these shares of zeros
ECQ_BITS = (2.5, 1.75, 0.75)
DECIBELS = 20  # of the weights that are left
TIMES_TORCH = 25
TENSORS = 16  # that the weights of the threshold are cut into
PARTS = ("files", "threshold", "sizes")


# --- from file to file ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """A program. `most`: goal for its time over that of cp; `workers`: what its memory goal depends on."""

    name: str
    command: Callable[[Path, Path], Usage]
    most: float | None = None
    workers: int | None = None


def prune(*options: str, jobs: int) -> Callable[[Path, Path], Usage]:
    """`modelzip prune` at 50 %."""
    share = ("--sparsity", "0.5", *options, "-q", "-j", str(jobs))
    return lambda source, out: modelzip("prune", source, "-o", out, *share, sync=True)


SIDES = (
    Side(CP, lambda source, out: run("cp", "--reflink=never", source, out, sync=True)),
    Side("prune", prune(jobs=2), 4, 2),
    Side("prune, 1 worker", prune(jobs=1), None, 1),
    Side("prune --scope layer", prune("--scope", "layer", jobs=2), None, 2),
    Side("prune --layout dense", prune("--layout", "dense", jobs=2), 2.5, 2),
)


def files(folder: Path, gigabytes: float, rounds: int) -> None:
    """Print the table of times, memory and sizes."""
    source = common.make_checkpoint(folder / "model.safetensors", weights=gigabytes * 1e9 / 2)
    used: dict[str, list[Usage]] = {side.name: [] for side in SIDES}
    sizes = {}
    for count in range(rounds + 1):
        for side in SIDES:
            out = folder / "out.safetensors"
            usage = side.command(source, out)
            if count:
                used[side.name].append(usage)
            sizes[side.name] = out.stat().st_size
            out.unlink()
    copy = [usage.wall for usage in used[CP]]
    rows = []
    for side in SIDES:
        walls = [usage.wall for usage in used[side.name]]
        ratios = [wall / paired for wall, paired in zip(walls, copy, strict=True)]
        goal = ("", "") if side.most is None else (f"<= {side.most}", verdict(median(ratios) <= side.most))
        memory = ["", "", ""]
        if side.workers:
            peak, most = max(usage.peak_rss for usage in used[side.name]) / MB, 150 + 64 * side.workers
            memory = [f"{peak:.0f}", f"<= {most}", verdict(peak <= most)]
        cpu = f"{median([usage.user + usage.system for usage in used[side.name]]):.2f}"
        times = [f"{median(walls):.2f}", spread(walls), cpu, f"{median(ratios):.2f}", spread(ratios)]
        rows.append([side.name, *times, *goal, *memory, f"{sizes[side.name] / 1e9:.3f}"])
    columns = ["program", "seconds", "min-max", "cpu", "over cp", "min-max", "goal", "reached", "peak MB", "goal"]
    title = f"{source.stat().st_size / 1e9:.2f} GB bf16, half of it pruned, median of {rounds}, ratios within a round"
    common.print_table(title, [*columns, "reached", "GB written"], rows)
    source.unlink()


# --- the threshold --------------------------------------------------------------------------------------------------


class Memory:
    """A source whose tensors are in memory."""

    file = SimpleNamespace(label="memory")

    def __init__(self, tensors: Mapping[str, Bits]) -> None:
        self.tensors = tensors

    def read(self, name: str, start: int, stop: int) -> Bits:
        """The units [start, stop) of a tensor."""
        return self.tensors[name][start:stop]


def threshold(folder: Path, weights: int, rounds: int) -> None:
    """Print how long the threshold takes, for float32 and bf16, and whether it is torch's."""
    import numpy as np
    import torch
    from safetensors.numpy import save_file

    from modelzip_cli.amounts import Pruning
    from modelzip_cli.compress import keep_freed_memory
    from modelzip_cli.pruning import find_masks
    from modelzip_cli.source import open_source
    from modelzip_cli.tensors import BF16, F32, TensorSpec

    os.environ["MODELZIP_KERNELS"] = "numba"
    keep_freed_memory()  # as runs do; torch has it too
    each = weights // TENSORS // 4096
    values = np.random.default_rng(0).standard_normal(TENSORS * each * 4096, np.float32) * np.float32(0.02)
    zeros = round(0.5 * values.size)
    rows = []
    with ThreadPoolExecutor(workers := len(os.sched_getaffinity(0))) as executor:
        for dtype in (F32, BF16):
            bits = values.view(np.uint32)
            if dtype == BF16:
                bits = (bits + np.uint32(0x8000) >> np.uint32(16)).astype(np.uint16)
            specs = [TensorSpec(f"w{i}", dtype, (each, 4096)) for i in range(TENSORS)]
            tensors = dict(zip((spec.name for spec in specs), np.split(bits, TENSORS), strict=True))
            path = folder / "threshold.safetensors"
            if dtype == F32:
                save_file({name: part.view(np.float32) for name, part in tensors.items()}, path)
                magnitudes = torch.from_numpy(values).abs()
            else:
                write_bf16(path, tensors)
                magnitudes = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).abs()
            found: dict[str, Any] = {}

            def ours(source: Any, name: str, specs: Any = specs, found: dict[str, Any] = found) -> None:
                chosen = [(spec, None) for spec in specs]
                found[name] = find_masks(source, chosen, Pruning(sparsity=0.5), executor, allow_nonfinite=False)

            def theirs(magnitudes: Any = magnitudes, found: dict[str, Any] = found) -> None:
                found["torch"] = magnitudes.kthvalue(zeros + 1).values

            source = open_source(path)
            sides = {
                "memory": partial(ours, Memory(tensors), "memory"),
                "file": partial(ours, source, "file"),
                "torch": theirs,
            }
            seconds = in_turn(sides, rounds)
            source.close()
            path.unlink()
            expected = float(found["torch"])
            for name in ("memory", "file"):
                key = min(pruned.mask.key for pruned in found[name].values())  # the first score that is left
                same = float(np.uint32(key).view(np.float32)) == expected
                exact = sum(pruned.zeros for pruned in found[name].values()) == zeros
                ratio = median([b / a for a, b in zip(seconds[name], seconds["torch"], strict=True)])
                times = [f"{1000 * median(seconds[side]):.0f}" for side in (name, "torch")]
                reached = verdict(ratio >= TIMES_TORCH and same and exact)
                rows.append([f"{dtype}, {name}", *times, f"{ratio:.1f}", f">= {TIMES_TORCH}", same and exact, reached])
    columns = ["weights in", "ms", "torch.kthvalue ms", "times as fast", "goal", "equal", "reached"]
    title = f"The threshold of {values.size / 1e6:.0f} M weights at 50 %, {workers} workers, median of {rounds}"
    common.print_table(title, columns, rows)


def write_bf16(path: Path, tensors: Mapping[str, Bits]) -> None:
    """A safetensors file, which numpy has no bf16 for."""
    import torch
    from safetensors.torch import save_file

    save_file({name: torch.from_numpy(bits.view("i2")).view(torch.bfloat16) for name, bits in tensors.items()}, path)


# --- sizes ----------------------------------------------------------------------------------------------------------


def sizes(folder: Path, models_folder: Path) -> None:
    """Print bits a weight, lossless and with `ecq` at about 20 dB of what is left."""
    import models

    os.environ["MODELZIP_KERNELS"] = "numba"
    gaussian = common.make_checkpoint(folder / "gaussian.safetensors", weights=1e7)
    rows = []
    for name, source, rules in (
        ("Gaussian", gaussian, ()),
        ("MiniLM", models.made("minilm-bf16", models_folder), ("*embeddings*",)),
    ):
        for share, lossless_most, ecq_most in zip(SHARES, LOSSLESS_BITS, ECQ_BITS, strict=True):
            exact = folder / "exact.safetensors"
            bits, reached, _ = pruned(source, exact, "lossless", share, rules)
            rows.append([name, f"{reached:.2%}", "lossless", "", f"{bits:.3f}", f"<= {lossless_most}"])
            rows[-1].append(verdict(bits <= lossless_most))
            scheme, bits, decibels = at_decibels(source, exact, folder / "coarse.safetensors", share, rules)
            rows.append([name, f"{reached:.2%}", scheme, f"{decibels:.2f}", f"{bits:.3f}", f"<= {ecq_most}"])
            rows[-1].append(verdict(bits <= ecq_most))
    columns = ["bf16 weights", "zeros", "scheme", "dB of the rest", "bits a weight", "goal", "reached"]
    common.print_table("Size of pruned models, of the tensors that are pruned", columns, rows)


def pruned(source: Path, out: Path, scheme: str, share: float, rules: tuple[str, ...]) -> tuple[float, float, Any]:
    """Prune a file as the program does. Returns bits a weight, the share of zeros, and the report."""
    from modelzip_cli.amounts import Pruning
    from modelzip_cli.recipe import Recipe, Rule
    from modelzip_cli.single import Settings, compress_file

    extra = tuple(Rule(match, amount=share) for match in rules)
    recipe = Recipe(scheme=scheme, pruning=Pruning(sparsity=share), rules=extra)
    report = compress_file(source, out, recipe, Settings(force=True), command="prune")
    return report.totals["bits_per_weight"], report.extra["pruning"]["sparsity"], report


def at_decibels(source: Path, exact: Path, out: Path, share: float, rules: tuple[str, ...]) -> tuple[str, float, float]:
    """`ecq` with the step that leaves what is not pruned about 20 dB: its name, bits a weight, dB."""
    step = 0.2
    for _ in range(6):
        scheme = f"ecq-s{step:.3g}"
        bits, _, report = pruned(source, out, scheme, share, rules)
        names = [row.name for row in report.tensors if row.sparsity is not None]
        decibels = decibels_of(exact, out, names)
        if abs(decibels - DECIBELS) < 0.1:
            break
        step *= 10 ** ((decibels - DECIBELS) / 20)
    return scheme, bits, decibels


def decibels_of(exact: Path, coarse: Path, names: list[str]) -> float:
    """SQNR of the tensors of `coarse` against `exact`, which has the same zeros."""
    from modelzip_cli import load_file

    before, after = load_file(exact), load_file(coarse)
    signal = sum(float(before[name].double().square().sum()) for name in names)
    noise = sum(float((before[name].double() - after[name].double()).square().sum()) for name in names)
    return 10 * math.log10(signal / noise)


def main() -> None:
    """Print the tables. Programs come first: what they inherit of this process's peak memory is small then."""
    parser = common.parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=1, help="size of the bf16 model (default: 1)")
    parser.add_argument("--weights", type=float, default=128e6, help="weights of the threshold (default: 128e6)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=Path, metavar="DIRECTORY", help="where weights are kept")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    print(common.versions("modelzip", "numpy", "numba", "torch"))
    with common.scratch(options.tmp) as folder:
        if "files" in options.only:
            files(folder, options.gigabytes, options.rounds)
        if not find_spec("torch"):
            print("skipped, but for the times of files: torch is not installed")
            return
        if "threshold" in options.only:
            threshold(folder, int(options.weights), options.rounds)
        if "sizes" in options.only:
            sizes(folder, options.models or folder)


if __name__ == "__main__":
    main()
