"""What `ecq` needs, in stored bits, for the quality that other formats reach on public weights, tensor by tensor.

    python benchmarks/codec_peers.py [--models DIRECTORY] [--fresh] [--peers-only]

The weights are those of models.py: every tensor of rank 2 or more and of at least 4,096 weights. The peers: ggml's own
quantizers (libggml-python), NF4 in blocks of 64, int4 in groups of 128 with a search for each scale, and nncodec. What
they measure is kept in DIRECTORY/codec_peers.json; `--fresh` measures again. Our side is run each time, at a grid of
steps; our bits at a peer's quality lie on the line between the two points next to it. Bits against quality is convex,
so the line can only be unfair to us. Exits with 1 when a goal is missed.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import common
import models
import numpy as np
from common import PROGRAM, verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Weights = NDArray[np.float32]

Points = dict[str, tuple[float, float]]  # tensor: bits a weight, dB
Curve = list[tuple[float, float]]  # of one tensor: dB, bits a weight
Format = Callable[["Weights"], "tuple[float, Weights]"]  # gives bits a weight, and what is kept of the weights
PACKAGES = ("libggml-python", "nncodec")
GGML_TYPES = {  # name: number of the type, bytes of a block, weights of a block
    "Q6_K": (14, 210, 256),
    "Q4_K": (12, 144, 256),
    "Q4_0": (2, 18, 32),
    "Q3_K": (11, 110, 256),
    "Q2_K": (10, 84, 256),
}
NF4 = np.array(  # bitsandbytes, functional.py
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
GOALS = {"Q4_K": 0.845, "NF4": 0.77, "int4-g128": 0.78, "Q3_K": 0.79, "Q2_K": 0.715}
NNCODEC_GOALS = {  # (model, qp): bits a weight at most, dB
    ("minilm", -20): (2.20, 12.7),
    ("minilm", -26): (3.42, 20.4),
    ("synth-layer", -26): (2.49, 16.1),  # 16.6 if the layer's vector, which it keeps nearly exactly, is counted
}
STEPS = (*(0.01 * 2 ** (i / 2) for i in range(3, 13)), 0.9)  # of the fine grid, over the tensor's rms


def decibels(weights: Weights, restored: Weights) -> float:
    """10 log10 of the sum of squared weights over the sum of squared errors."""
    error = restored.astype(np.float64) - weights
    return float(10 * np.log10(np.square(weights, dtype=np.float64).sum() / np.square(error).sum()))


def blocks(weights: Weights, size: int) -> Weights:
    """The weights in row-major order, in blocks, the last filled up with zeros."""
    flat = weights.reshape(-1)
    return np.pad(flat, (0, -flat.size % size)).reshape(-1, size)


class Ggml:
    """ggml's reference quantizers, as llama.cpp runs them without an importance matrix.

    llama.cpp takes a larger format where a row is no multiple of the block. Here blocks run on over the ends of rows,
    and what fills the last one is not charged: both are kinder to ggml.
    """

    def __init__(self) -> None:
        spec = find_spec("libggml")
        assert spec and spec.submodule_search_locations
        library = Path(spec.submodule_search_locations[0], "lib64", "libggml-base.so")
        self._library = ctypes.CDLL(str(library))
        self._library.ggml_quantize_chunk.restype = ctypes.c_size_t

    def __call__(self, name: str, weights: Weights) -> tuple[float, Weights]:
        """Bits a weight, and what the format keeps of the weights."""
        number, size, count = GGML_TYPES[name]
        source = blocks(weights, count)
        packed = np.empty(len(source) * size, np.uint8)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (source, packed)]
        written = self._library.ggml_quantize_chunk(
            number, *pointers, ctypes.c_int64(0), ctypes.c_int64(1), ctypes.c_int64(source.size), None
        )
        assert written == packed.size, (name, written, packed.size)
        restored = np.empty_like(source)
        dequantize = self._library[f"dequantize_row_{name.lower() if name[-1] == '0' else 'q' + name[1:]}"]
        dequantize.restype = None
        dequantize(pointers[1], ctypes.c_void_p(restored.ctypes.data), ctypes.c_int64(restored.size))
        return 8 * size / count, restored.reshape(-1)[: weights.size].reshape(weights.shape)


def nf4(weights: Weights) -> tuple[float, Weights]:
    """Blocks of 64 that share their largest magnitude, a float32."""
    source = blocks(weights, 64)
    scale = np.abs(source).max(axis=1, keepdims=True)
    scale[scale == 0] = 1
    codes = np.searchsorted((NF4[1:] + NF4[:-1]) / 2, source / scale)
    restored = (NF4[codes] * scale).astype(np.float32)
    return 4.5, restored.reshape(-1)[: weights.size].reshape(weights.shape)


def int4_g128(weights: Weights) -> tuple[float, Weights]:
    """Groups of 128 that share a float16: the one with the least squared error of 64 up to the largest weight's."""
    source = blocks(weights, 128)
    largest = np.abs(source).max(axis=1, keepdims=True)
    best = np.full((len(source), 1), np.inf, np.float32)
    restored = np.zeros_like(source)
    for fraction in np.linspace(0.37, 1, 64, dtype=np.float32):
        scale = (largest * (fraction / 7)).astype(np.float16).astype(np.float32)
        tried = np.rint(source / np.where(scale > 0, scale, 1)).clip(-8, 7) * scale
        error = np.square(tried - source).sum(axis=1, keepdims=True)
        restored = np.where(error < best, tried, restored)
        best = np.minimum(error, best)
    return 4 + 16 / 128, restored.reshape(-1)[: weights.size].reshape(weights.shape)


def formats() -> dict[str, Format]:
    """Every peer that takes one tensor at a time and is installed."""
    found: dict[str, Format] = {}
    if find_spec("libggml"):
        found |= {name: partial(Ggml(), name) for name in GGML_TYPES}
    else:
        print("skipped: libggml-python is not installed")
    return {**found, "NF4": nf4, "int4-g128": int4_g128}


class Absent(MetaPathFinder, Loader):
    """Stands for the packages that nncodec imports for training only, where they are not installed."""

    NAMES = (
        "cv2",
        "flwr",
        "h5py",
        "pandas",
        "ptflops",
        "sentencepiece",
        "sklearn",
        "torchmetrics",
        "torchvision",
        "wandb",
    )

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.NAMES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return MagicMock(name=spec.name)  # type: ignore[return-value]

    def exec_module(self, module: ModuleType) -> None:
        pass


def nncodec(path: Path, qp: int) -> Points:
    """All compared tensors of a file in one stream. Its bits are known for the whole: they stand for each tensor."""
    if not any(isinstance(finder, Absent) for finder in sys.meta_path):
        sys.meta_path.append(Absent())
    from nncodec import nn

    state = dict(models.compared(path))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        started = time.process_time()
        stream = nn.encode(state, {"qp": qp, "results": folder, "verbose": False})
        encoded = time.process_time()
        restored = nn.decode(bytearray(stream))
        decoded = time.process_time()
    count = sum(weights.size for weights in state.values())
    rates = (f"{count / seconds / 1e6:.1f}" for seconds in (encoded - started, decoded - encoded))
    print(f"nncodec qp {qp} on {path.stem}: encodes {', decodes '.join(rates)} M weights a processor second")
    bits = 8 * len(stream) / count
    return {name: (bits, decibels(weights, restored[name])) for name, weights in state.items()}


def layer(directory: Path) -> Path:
    """The first layer of `synth`, as a file."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = directory / "synth-layer.safetensors"
    if not path.exists():
        with safe_open(models.made("synth", directory), "pt") as file:
            first = [name for name in file.keys() if name.startswith("layers.0.")]  # noqa: SIM118
            save_file({name: file.get_tensor(name) for name in first}, path)
    return path


class Cache:
    """What peers measured, in one JSON file, as long as their versions stay the same."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        self._content: dict[str, Any] = {"versions": {name: installed(name) for name in PACKAGES}}
        if path.exists() and not fresh:
            kept = json.loads(path.read_text())
            if kept["versions"] == self._content["versions"]:
                self._content = kept

    def points(self, model: str, peer: str, measure: Callable[[], Points]) -> Points:
        """The points of one peer on one model, measured when they are not known."""
        key = f"{model}: {peer}"
        if key not in self._content:
            self._content[key] = measure()
            self._path.write_text(json.dumps(self._content, indent=1))
        return {name: (bits, quality) for name, (bits, quality) in self._content[key].items()}


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def through(quantize: Format, path: Path) -> Points:
    """One peer on every compared tensor of a file."""
    found = {}
    for name, weights in models.compared(path):
        bits, restored = quantize(weights)
        found[name] = (bits, decibels(weights, restored))
    return found


def ours(path: Path, folder: Path) -> dict[str, Curve]:
    """Every compared tensor at every step, all that is stored for it counted: bits a weight, dB."""
    names = [name for name, _ in models.compared(path)]
    curves: dict[str, Curve] = {name: [] for name in names}
    for step in STEPS:
        scheme = f"ecq-s{step:.4g}"
        forced = [option for name in names for option in ("--set", f"{name}={scheme}")]
        target = folder / f"{path.stem}.ecq.safetensors"
        command = [PROGRAM, "quantize", path, "--scheme", scheme, *forced, "-o", target, "--force", "--json"]
        done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE)
        for row in json.loads(done.stdout)["tensors"]:
            if row["name"] in curves:
                curves[row["name"]].append((row["sqnr_db"], row["bits_per_weight"]))
        target.unlink()
    return {name: sorted(curve) for name, curve in curves.items()}


def bits_at(curve: Curve, quality: float) -> float:
    """Our bits a weight at a quality in dB: on the line between two points, beyond the last one a bit for 6.02 dB."""
    qualities, bits = zip(*curve, strict=True)
    return float(np.interp(quality, qualities, bits)) + max(0, quality - qualities[-1]) / 6.02


def compare_formats(peers: Mapping[str, Mapping[str, Points]], curves: Mapping[str, Mapping[str, Curve]]) -> bool:
    """Print our size over each peer's. Returns whether every goal is reached on every model."""
    reached = True
    rows = []
    for peer in peers["minilm"]:
        means = []
        for model, curve_of in curves.items():
            points = peers[model][peer]
            means.append(np.mean([bits_at(curve_of[name], quality) / bits for name, (bits, quality) in points.items()]))
        goal = GOALS.get(peer)
        reached &= goal is None or max(means) <= goal
        goals = ["", ""] if goal is None else [goal, verdict(max(means) <= goal)]
        rows.append([peer, *(f"{mean:.3f}" for mean in means), *goals])
    title = "Stored bits of ecq over the peer's at the peer's dB in every tensor, mean over the tensors"
    common.print_table(title, ["peer", *curves, "goal", "reached"], rows)
    return reached


def compare_nncodec(
    found: Mapping[tuple[str, int], Points],
    sums: Mapping[str, Mapping[str, tuple[int, float]]],
    curves: Mapping[str, Mapping[str, Curve]],
) -> bool:
    """Print our bits against nncodec's, both where its errors are and with one quality for all tensors."""
    reached = True
    rows = []
    for (model, qp), points in found.items():
        bits, quality = pooled(points, sums[model])
        counts = [count for count, _ in sums[model].values()]
        curve_of, (goal, goal_quality) = curves[model], NNCODEC_GOALS[model, qp]
        same = [bits_at(curve_of[name], points[name][1]) for name in sums[model]]
        evenly = [bits_at(curve_of[name], quality) for name in sums[model]]
        at_goal = np.average([bits_at(curve_of[name], goal_quality) for name in sums[model]], weights=counts)
        reached &= bool(at_goal <= goal)
        rows.append(
            [
                *(f"{model} qp {qp}", f"{quality:.2f}", f"{bits:.3f}"),
                *(f"{np.average(values, weights=counts):.3f}" for values in (same, evenly)),
                *(f"{at_goal:.3f} at {goal_quality} dB", f"{goal:.2f}", verdict(bool(at_goal <= goal))),
            ]
        )
    columns = ["nncodec", "dB", "its bits", "ecq, its dB a tensor", "ecq, same dB", "ecq", "goal", "reached"]
    common.print_table("Against nncodec, all compared weights together", columns, rows)
    return reached


def pooled(points: Points, sums: Mapping[str, tuple[int, float]]) -> tuple[float, float]:
    """Bits a weight and dB of all tensors as one."""
    bits = np.average([points[name][0] for name in sums], weights=[count for count, _ in sums.values()])
    error = sum(energy / 10 ** (points[name][1] / 10) for name, (_, energy) in sums.items())
    return float(bits), float(10 * np.log10(sum(energy for _, energy in sums.values()) / error))


def sums_of(path: Path) -> dict[str, tuple[int, float]]:
    """The number of weights of each compared tensor, and the sum of their squares."""
    return {
        name: (weights.size, float(np.square(weights, dtype=np.float64).sum()))
        for name, weights in models.compared(path)
    }


def main() -> None:
    """Print the peers, then ours against them."""
    parser = common.parser(__doc__)
    parser.add_argument("--models", type=Path, metavar="DIRECTORY", help="where weights and peers' results are kept")
    parser.add_argument("--fresh", action="store_true", help="measure the peers again")
    parser.add_argument("--peers-only", action="store_true", help="do not run modelzip")
    options = parser.parse_args()
    print(common.versions("modelzip", "numpy", *PACKAGES))
    with common.scratch(options.tmp) as folder:
        directory = options.models or folder
        cache = Cache(directory / "codec_peers.json", fresh=options.fresh)
        paths = {model: models.made(model, directory) for model in models.MODELS}
        peers = {
            model: {
                peer: cache.points(model, peer, partial(through, quantize, path))
                for peer, quantize in formats().items()
            }
            for model, path in paths.items()
        }
        found = {}
        if find_spec("nncodec"):
            for model, qp in NNCODEC_GOALS:
                paths[model] = layer(directory) if model == "synth-layer" else paths[model]
                found[model, qp] = cache.points(model, f"nncodec qp {qp}", partial(nncodec, paths[model], qp))
        else:
            print("skipped: nncodec is not installed")
        rows = [
            [
                *(peer, f"{np.mean([bits for bits, _ in points.values()]):.4f}"),
                *(f"{np.mean([quality for _, quality in peers[model][peer].values()]):.2f}" for model in peers),
            ]
            for peer, points in peers["minilm"].items()
        ]
        common.print_table("The peers: dB, mean over the tensors", ["peer", "bits a weight", *peers], rows)
        if options.peers_only:
            return
        curves = {model: ours(path, folder) for model, path in paths.items()}
        results = [compare_formats(peers, {model: curves[model] for model in peers})]
        results.append(compare_nncodec(found, {model: sums_of(paths[model]) for model, _ in found}, curves))
        if not all(results):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
