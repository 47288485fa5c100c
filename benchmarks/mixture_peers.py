"""gauss-compress (Gaussian mixture and ANS) and helix-substrate (256 levels by k-means), and ours at their quality.

    python benchmarks/mixture_peers.py [--models DIRECTORY] [--peers gauss helix] [--files NAME ...]

Bytes of the files on disk; ours is `modelzip compress --min-sqnr` with the SQNR, in dB over all weights, that the peer
kept, or the finest step of `ecq` where that is more than it keeps. gauss goes from file to file; helix has no such
command, so its writer and reader take one matrix after the other, and other tensors count as they are. A peer that is
not installed is skipped. Exits with 1 where ours is not smaller.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import common
import models
import numpy as np
import torch
from common import PROGRAM, verdict
from safetensors.torch import load_file

FILES = ("resemblyzer", "efficientnet", "minilm-bf16", "minilm")
FINEST = "ecq-s0.01"
Tensors = dict[str, torch.Tensor]


def gauss(source: Path, folder: Path) -> tuple[int, Tensors]:
    """Stored bytes, and the weights that come back."""
    program, small, back = Path(sys.executable).with_name("gauss"), folder / "peer.gauss", folder / "back.safetensors"
    subprocess.run([program, "compress", source, small, "--workers", "1"], check=True, capture_output=True)
    subprocess.run([program, "decompress", small, back, "--workers", "1"], check=True, capture_output=True)
    return small.stat().st_size, load_file(back)


def helix(source: Path, folder: Path) -> tuple[int, Tensors]:
    """Stored bytes, and the weights that come back."""
    from helix_substrate.cdnav3_reader import CDNAv3Reader
    from helix_substrate.cdnav3_writer import CDNAv3Writer

    found, stored = load_file(source), 0
    for number, (name, tensor) in enumerate(found.items()):
        if tensor.ndim < 2:
            stored += tensor.nbytes
            continue
        place = folder / f"{source.stem}-{number}"
        CDNAv3Writer(place).write_tensor(tensor.float().flatten(1).numpy(), name)
        (meta,) = place.rglob("meta.json")
        stored += sum(file.stat().st_size for file in place.rglob("*") if file.suffix != ".json")
        back = CDNAv3Reader(meta.parent).reconstruct()
        found[name] = torch.from_numpy(np.ascontiguousarray(back)).view(tensor.shape)
    return stored, found


def ours(source: Path, folder: Path, decibels: float) -> tuple[int, Tensors]:
    """The file that keeps at least so many dB, or as many as `ecq` can."""
    small, back = folder / "small.safetensors", folder / "ours.safetensors"
    command = [PROGRAM, "compress", source, "--min-sqnr", f"{decibels:.2f}", "-o", small, "-f", "-q"]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        finest = [PROGRAM, "quantize", source, "--scheme", FINEST, "-o", small, "-f", "-q"]
        subprocess.run(finest, check=True, capture_output=True)
    subprocess.run([PROGRAM, "restore", small, "-o", back, "-f", "-q"], check=True, capture_output=True)
    return small.stat().st_size, load_file(back)


PEERS: dict[str, Callable[[Path, Path], tuple[int, Tensors]]] = {"gauss": gauss, "helix": helix}
PACKAGES = {"gauss": "constriction", "helix": "helix_substrate"}


def sqnr(before: Tensors, after: Tensors) -> float:
    """10 log10(sum w^2 / sum e^2) over all float tensors, in dB."""
    names = [name for name, tensor in before.items() if tensor.is_floating_point()]
    signal = sum(float(before[name].double().square().sum()) for name in names)
    noise = sum(float((before[name].double() - after[name].double()).square().sum()) for name in names)
    return float(10 * np.log10(signal / noise))


def main() -> int:
    """Print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--models", type=Path, metavar="DIRECTORY", help="where weights are kept")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--files", nargs="*", default=FILES)
    options = parser.parse_args()
    rows, missed = [], False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in options.files:
            source = models.made(file, options.models or folder)
            before = load_file(source)
            for peer in options.peers:
                if find_spec(PACKAGES[peer]) is None:
                    print(f"{peer} is not installed: skipped")
                    continue
                stored, after = PEERS[peer](source, folder)
                kept = sqnr(before, after)
                size, mine = ours(source, folder, kept)
                missed |= size >= stored
                figures = f"{stored:,}", f"{kept:.2f}", f"{size:,}", f"{sqnr(before, mine):.2f}", f"{size / stored:.3f}"
                rows.append((file, peer, *figures, verdict(size < stored)))
    print(common.versions("modelzip", "gauss-compress", "helix-substrate", "numpy"))
    heads = ("file", "peer", "its bytes", "dB", "our bytes", "dB", "ours over it", "smaller")
    common.print_table("Mixture and k-means codecs, and modelzip at their quality", heads, rows)
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
