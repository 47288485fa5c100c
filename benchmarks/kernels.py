"""Quantize and pack one matrix in memory, one thread, against compressed-tensors and torchao.

The matrix is 4096 x 4096 bf16, N(0, 0.02). One side is what modelzip does to make the stored bytes (widen, fit, encode,
pack), one is all that its engine does to a slab, which adds decoding, error figures and checksums.
MODELZIP_KERNELS=numpy measures the numpy twins in place of the compiled kernels. Needs `compressed-tensors` and
`torchao` for those peers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import common
from common import median, spread, verdict

if TYPE_CHECKING:
    import torch

    from modelzip_cli.tensors import Bits

ROWS, COLUMNS = 4096, 4096
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
GOAL = 20  # times a peer's speed, where it quantizes and packs
UNPACKED = "compressed-tensors int8 channel, not packed"
Sides = dict[str, Callable[[], object]]


def quantize_and_pack(bits: Bits, scheme_name: str) -> Callable[[], object]:
    """The stored bytes of every slab, by the objects that the engine uses."""
    from modelzip_cli.coders import coder
    from modelzip_cli.kernels.widen import widen
    from modelzip_cli.schemes import parse_scheme
    from modelzip_cli.tensors import BF16, TensorSpec

    spec, packer, scheme = TensorSpec("w", BF16, (ROWS, COLUMNS)), coder("bitpack"), parse_scheme(scheme_name)
    assert scheme

    def side() -> None:
        for first, last in spec.row_slabs():
            block = widen(bits[first:last], BF16)
            params = scheme.fit_rows(block, {})
            packer.pack(scheme.encode(block, params), scheme.bits)

    return side


def whole_slabs(bits: Bits, scheme_name: str) -> Callable[[], object]:
    """All that the engine does between reading and writing."""
    from modelzip_cli.compress import Slab, encode
    from modelzip_cli.layouts.native import native_parts
    from modelzip_cli.plan import TensorPlan
    from modelzip_cli.schemes import parse_scheme
    from modelzip_cli.tensors import BF16, TensorSpec

    class Memory:
        def read(self, name: str, start: int, stop: int) -> Bits:
            return bits.reshape(-1)[start:stop]

    spec, scheme = TensorSpec("w", BF16, (ROWS, COLUMNS)), parse_scheme(scheme_name)
    tensor = TensorPlan(spec, scheme, "", native_parts(spec, scheme))

    def side() -> None:
        for first, last in spec.row_slabs():
            encode(Slab(tensor, first, last), Memory(), "native")  # type: ignore[arg-type]

    return side


def compressed_tensors(weight: torch.Tensor, bits: int, compressor: str) -> Callable[[], object]:
    """Range, scale, quantize, pack: int4 with groups of 128 or int8 by channel."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

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


def torchao_int8(weight: torch.Tensor) -> Callable[[], object]:
    """Int8WeightOnlyConfig on a linear layer."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def side() -> None:
        layer = torch.nn.Linear(COLUMNS, ROWS, bias=False, device="meta", dtype=torch.bfloat16)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        quantize_(layer, Int8WeightOnlyConfig())

    return side


def peers(weight: torch.Tensor) -> tuple[Sides, Sides]:
    """The peers of int8 and of int4-g128 that are installed."""
    int8: Sides = {}
    int4: Sides = {}
    if find_spec("compressed_tensors"):
        int8["compressed-tensors int8 channel, packed"] = compressed_tensors(weight, 8, "pack-quantized")
        int8[UNPACKED] = compressed_tensors(weight, 8, "int-quantized")
        int4["compressed-tensors int4 g128, packed"] = compressed_tensors(weight, 4, "pack-quantized")
    else:
        print("skipped: compressed-tensors is not installed")
    if find_spec("torchao"):
        int8["torchao int8 weight-only"] = torchao_int8(weight)
    else:
        print("skipped: torchao is not installed")
    return int8, int4


def compare(scheme: str, bits: Bits, others: Sides, rounds: int) -> None:
    """Time our two sides and the peers in turn, and print a table."""
    ours = f"modelzip {scheme}"
    sides = {ours: quantize_and_pack(bits, scheme), f"{ours}, whole slab": whole_slabs(bits, scheme), **others}
    seconds = common.in_turn(sides, rounds)
    rows = []
    for name in sides:
        took = [1000 * second for second in seconds[name]]
        ratio = median([peer / own for peer, own in zip(seconds[name], seconds[ours], strict=True)])
        goal = (f">= {GOAL}", verdict(ratio >= GOAL)) if name in others and name != UNPACKED else ("", "")
        speed = f"{bits.nbytes / 1e6 / median(took):.2f}"
        rows.append([name, f"{median(took):.1f}", spread(took, 1), speed, f"{ratio:.1f}", *goal])
    columns = ["side", "ms", "min-max", "GB/s in", "over ours", "goal", "reached"]
    common.print_table(f"{scheme}: {ROWS} x {COLUMNS} bf16, one thread, median of {rounds}", columns, rows)


def main() -> None:
    """Print one table for int8 and one for int4-g128."""
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))  # before numpy and torch are imported
    kernels = os.environ.setdefault("MODELZIP_KERNELS", "numba")
    print(common.versions("modelzip", "numpy", "numba", "torch", "compressed-tensors", "torchao"))
    print(f"modelzip's kernels: {kernels}")
    import numpy as np
    import torch

    from modelzip_cli.compress import keep_freed_memory
    from modelzip_cli.kernels import jit

    torch.set_num_threads(1)
    keep_freed_memory()  # as in every large run of the program; it helps the peers too
    jit.expect(ROWS * COLUMNS)
    torch.manual_seed(0)
    weight = (torch.randn(ROWS, COLUMNS) * 0.02).bfloat16()
    bits = weight.view(torch.int16).numpy().view(np.uint16)
    int8, int4 = peers(weight)
    compare("int8", bits, int8, options.rounds)
    compare("int4-g128", bits, int4, options.rounds)


if __name__ == "__main__":
    main()
