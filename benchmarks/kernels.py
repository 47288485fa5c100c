"""Quantize and pack one matrix in memory, one thread, against compressed-tensors and torchao.

The matrix is 4096 x 4096 bf16, N(0, 0.02). One side is what modelzip does to make the stored bytes (widen, fit, encode,
pack), one is all that its engine does to a slab, which adds decoding, error figures and checksums. Every side has a
process of its own, and they take turns: modelzip asks the C library to keep freed memory, as its runs do, the peers use
it as it comes. `--keep-memory` gives them the same, which helps them much.
MODELZIP_KERNELS=numpy measures the numpy twins in place of the compiled kernels. Needs `compressed-tensors` and
`torchao` for those peers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import common
from common import median, spread, verdict

if TYPE_CHECKING:
    import torch

    from modelzip_cli.tensors import Bits

ROWS, COLUMNS = 4096, 4096
MEGABYTES = 2 * ROWS * COLUMNS / 1e6
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
GOAL = 20  # times a peer's speed, where it quantizes and packs
UNPACKED = "compressed-tensors int8 channel, not packed"
Side = Callable[[], object]
Prepare = Callable[[], Side]  # runs in the process of the side


def matrix() -> Bits:
    """The bf16 bits of the weights, [rows, columns]."""
    import numpy as np

    values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32) * np.float32(0.02)
    return (values.view(np.uint32) + np.uint32(0x8000) >> np.uint32(16)).astype(np.uint16)


def tensor() -> torch.Tensor:
    """The same weights for torch, which is told to use one thread."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    return torch.from_numpy(matrix().view(np.int16)).view(torch.bfloat16)


def quantize_and_pack(scheme_name: str) -> Side:
    """The stored bytes of every slab, by the objects that the engine uses."""
    from modelzip_cli.coders import coder
    from modelzip_cli.kernels import jit
    from modelzip_cli.kernels.widen import widen
    from modelzip_cli.schemes import parse_scheme
    from modelzip_cli.tensors import BF16, TensorSpec

    jit.expect(ROWS * COLUMNS)
    bits, spec = matrix(), TensorSpec("w", BF16, (ROWS, COLUMNS))
    packer, scheme = coder("bitpack"), parse_scheme(scheme_name)
    assert scheme

    def side() -> None:
        for first, last in spec.row_slabs():
            block = widen(bits[first:last], BF16)
            params = scheme.fit_rows(block, {})
            packer.pack(scheme.encode(block, params), scheme.bits)

    return side


def whole_slabs(scheme_name: str) -> Side:
    """All that the engine does between reading and writing."""
    from modelzip_cli.compress import Slab, encode
    from modelzip_cli.kernels import jit
    from modelzip_cli.layouts.native import native_parts
    from modelzip_cli.plan import TensorPlan
    from modelzip_cli.schemes import parse_scheme
    from modelzip_cli.tensors import BF16, TensorSpec

    class Memory:
        def read(self, name: str, start: int, stop: int) -> Bits:
            return bits.reshape(-1)[start:stop]

    jit.expect(ROWS * COLUMNS)
    bits, spec, scheme = matrix(), TensorSpec("w", BF16, (ROWS, COLUMNS)), parse_scheme(scheme_name)
    planned = TensorPlan(spec, scheme, "", native_parts(spec, scheme, "bitpack"))

    def side() -> None:
        for first, last in spec.row_slabs():
            encode(Slab(planned, first, last), Memory(), "native")  # type: ignore[arg-type]

    return side


def compressed_tensors(bits: int, compressor: str) -> Side:
    """Range, scale, quantize, pack: int4 with groups of 128 or int8 by channel."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = tensor()
    grouped = {"strategy": "group", "group_size": 128} if bits == 4 else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, symmetric=True, **grouped)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compress = BaseCompressor.get_value_from_registry(compressor).compress

    def side() -> None:
        low, high = (weight.reshape(ROWS, -1, 128) if bits == 4 else weight).aminmax(dim=-1)
        shape = (ROWS, -1)
        scale, zero_point = calculate_qparams(low.reshape(shape), high.reshape(shape), args)
        compress({"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point}, scheme)

    return side


def torchao_int8() -> Side:
    """Int8WeightOnlyConfig on a linear layer."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    weight = tensor()

    def side() -> None:
        layer = torch.nn.Linear(COLUMNS, ROWS, bias=False, device="meta", dtype=torch.bfloat16)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        quantize_(layer, Int8WeightOnlyConfig())

    return side


def peers() -> tuple[dict[str, Prepare], dict[str, Prepare]]:
    """The peers of int8 and of int4-g128 that are installed."""
    int8: dict[str, Prepare] = {}
    int4: dict[str, Prepare] = {}
    if find_spec("compressed_tensors"):
        int8["compressed-tensors int8 channel, packed"] = partial(compressed_tensors, 8, "pack-quantized")
        int8[UNPACKED] = partial(compressed_tensors, 8, "int-quantized")
        int4["compressed-tensors int4 g128, packed"] = partial(compressed_tensors, 4, "pack-quantized")
    else:
        print("skipped: compressed-tensors is not installed")
    if find_spec("torchao"):
        int8["torchao int8 weight-only"] = torchao_int8
    else:
        print("skipped: torchao is not installed")
    return int8, int4


def serve(pipe: Connection, prepare: Prepare, keep_memory: bool) -> None:
    """Run a side once for every message, and answer with the seconds it took; until the pipe is closed."""
    if keep_memory:
        from modelzip_cli.compress import keep_freed_memory

        keep_freed_memory()
    side = prepare()
    try:
        while True:
            pipe.recv()
            started = time.perf_counter()
            side()
            pipe.send(time.perf_counter() - started)
    except EOFError:
        return


def take_turns(sides: dict[str, tuple[Prepare, bool]], rounds: int) -> dict[str, list[float]]:
    """Let every side run once a round, after one round that does not count. Returns seconds by side."""
    context = get_context("spawn")
    pipes = {}
    for name, (prepare, keep_memory) in sides.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, prepare, keep_memory), daemon=True).start()
        theirs.close()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for count in range(rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(None)
            took = pipe.recv()
            if count:
                seconds[name].append(took)
    for pipe in pipes.values():
        pipe.close()
    return seconds


def compare(scheme: str, others: dict[str, Prepare], rounds: int, keep_memory: bool) -> None:
    """Time our two sides and the peers in turn, and print a table."""
    ours = f"modelzip {scheme}"
    sides: dict[str, tuple[Prepare, bool]] = {
        ours: (partial(quantize_and_pack, scheme), True),
        f"{ours}, whole slab": (partial(whole_slabs, scheme), True),
        **{name: (prepare, keep_memory) for name, prepare in others.items()},
    }
    seconds = take_turns(sides, rounds)
    rows = []
    for name in sides:
        took = [1000 * second for second in seconds[name]]
        ratio = median([peer / own for peer, own in zip(seconds[name], seconds[ours], strict=True)])
        goal = (f">= {GOAL}", verdict(ratio >= GOAL)) if name in others and name != UNPACKED else ("", "")
        speed = f"{MEGABYTES / median(took):.2f}"
        rows.append([name, f"{median(took):.1f}", spread(took, 1), speed, f"{ratio:.1f}", *goal])
    columns = ["side", "ms", "min-max", "GB/s in", "over ours", "goal", "reached"]
    common.print_table(f"{scheme}: {ROWS} x {COLUMNS} bf16, one thread, median of {rounds}", columns, rows)


def main() -> None:
    """Print one table for int8 and one for int4-g128."""
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--keep-memory", action="store_true", help="for the peers too")
    options = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))  # before any side imports numpy or torch
    kernels = os.environ.setdefault("MODELZIP_KERNELS", "numba")
    print(common.versions("modelzip", "numpy", "numba", "torch", "compressed-tensors", "torchao"))
    print(f"modelzip's kernels: {kernels}; peers keep freed memory: {'yes' if options.keep_memory else 'no'}")
    int8, int4 = peers()
    compare("int8", int8, options.rounds, options.keep_memory)
    compare("int4-g128", int4, options.rounds, options.keep_memory)


if __name__ == "__main__":
    main()
