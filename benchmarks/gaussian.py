"""What each scheme keeps of Gaussian and of skewed weights: signal to noise in dB, and stored bits a weight.

Exits with 1 when a goal is missed. The figures are the same on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import common
import numpy as np
from common import verdict

from modelzip_cli.coders import coder
from modelzip_cli.compare import Errors
from modelzip_cli.kernels.sums import error_sums
from modelzip_cli.kernels.widen import narrow, widen
from modelzip_cli.schemes import parse_scheme
from modelzip_cli.tensors import F32, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

SPEC = TensorSpec("w", F32, (2048, 2048))
INTEGERS = tuple(
    f"int{bits}{group}{mse}"
    for bits in range(2, 8)
    for group in ("-g32", "-g64", "-g128", "-channel")
    for mse in ("", "-mse")
)
FIXED = tuple(f"fixed{bits}{mse}" for bits in (4, 5, 6, 7, 8, 10, 12, 16) for mse in ("", "-mse", "-channel"))
FEW_BITS = tuple(
    f"{scheme}{group}"
    for scheme in ("binary", "binary-m2", "ternary")
    for group in ("", "-g32", "-g64", "-g128", "-tensor")
)
TABLES = (*(f"nf4{group}" for group in ("-g32", "", "-g128")), *(f"codebook{bits}" for bits in range(1, 9)))
SCHEMES = (
    *(*INTEGERS, "int8", "int8-mse", "int8-tensor", "int8-g128"),
    *(*FIXED, *FEW_BITS, *TABLES, "fp8", "fp8-tensor", "fp16", "bf16"),
)
GOALS = {  # (sigma, scheme): least dB
    (1.0, "int8"): 40,
    (1.0, "int4-g128"): 19.6,
    (1.0, "int4-g128-mse"): 20.1,
    (1.0, "int4-g32"): 21,
    (1.0, "int2-g64"): 7.8,
    (1.0, "nf4"): 20.5,
    (1.0, "fp8"): 31,
    (1.0, "codebook4"): 19.9,
    (1.0, "codebook2"): 9.2,
    (1.0, "ternary"): 7,
    (1.0, "binary"): 4.3,
    (1.0, "binary-m2"): 8.7,
    (0.02, "fixed8-mse"): 35,
    (0.02, "fixed4-mse"): 18,
}
SKEWED: dict[str, Callable[[Block], Block]] = {
    "half normal, |N(0, 1)|": np.abs,
    "shifted, N(1, 1)": lambda normal: normal + np.float32(1),
    "log-normal, exp(N(0, 1))": np.exp,
    "negative, -|N(0, 1)|": lambda normal: -np.abs(normal),
}


def through(scheme_name: str, weights: Block) -> tuple[float, float]:
    """Quantize, pack, unpack and restore slab by slab, as the program does. Returns dB and stored bits a weight."""
    scheme = parse_scheme(scheme_name)
    assert scheme
    slabs = [weights[first:last] for first, last in SPEC.row_slabs()]
    tensor = scheme.fit_tensor(slabs)
    sums = []
    for block in slabs:
        params = {**tensor, **scheme.fit_rows(block, tensor)}
        codes = scheme.encode(block, params)
        if scheme.plain is None:
            packed = coder("bitpack").pack(codes, scheme.bits).reshape(-1)
            codes = coder("bitpack").unpack(packed, scheme.bits, *block.shape)
        restored = scheme.decode(codes, params)
        if scheme.plain is not None:
            restored = widen(narrow(restored, scheme.plain), scheme.plain)
        sums.append(error_sums(block.reshape(-1), restored.reshape(-1)))
    found = Errors.of(weights.size, sums).sqnr_db
    assert found is not None
    return found, 8 * scheme.stored_bytes(*SPEC.matrix) / SPEC.size


def gaussian(normal: Block) -> bool:
    """Print every scheme for two widths of the bell. Returns whether all goals are reached."""
    reached = True
    rows = []
    for scheme in SCHEMES:
        row: list[object] = [scheme]
        for sigma in (1.0, 0.02):
            decibels, bits = through(scheme, normal * np.float32(sigma))
            goal = GOALS.get((sigma, scheme))
            row += [f"{decibels:.2f}", "" if goal is None else f">= {goal}: {verdict(decibels >= goal)}"]
            reached &= goal is None or decibels >= goal
        rows.append([*row, f"{bits:.3f}"])
    columns = ["scheme", "sigma 1 dB", "goal", "sigma 0.02 dB", "goal", "bits/weight"]
    common.print_table("Gaussian weights, 2048 x 2048", columns, rows)
    return reached


def skewed(normal: Block, widths: Iterable[int] = (8, 4, 2)) -> bool:
    """Print symmetric against asymmetric integers. Returns whether the latter are better everywhere."""
    rows = []
    for name, skew in SKEWED.items():
        for bits in widths:
            base = "int8" if bits == 8 else f"int{bits}-g128"
            weights = skew(normal)
            symmetric, asymmetric = through(base, weights)[0], through(f"{base}-asym", weights)[0]
            gain = asymmetric - symmetric
            rows.append([f"{name}: {base}", f"{symmetric:.2f}", f"{asymmetric:.2f}", f"{gain:+.2f}", verdict(gain > 0)])
    common.print_table("Skewed weights", ["data", "symmetric dB", "-asym dB", "gain", "better"], rows)
    return all(row[-1] == verdict(True) for row in rows)


def main() -> None:
    """Print two tables."""
    common.parser(__doc__).parse_args()
    print(common.versions("modelzip", "numpy"))
    normal = np.random.default_rng(0).standard_normal(SPEC.shape, np.float32)
    results = [gaussian(normal), skewed(normal)]
    if not all(results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
