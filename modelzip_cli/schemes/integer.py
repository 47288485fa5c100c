"""Integers with a scale: the plain quantizer of the field, `int2` to `int8`.

Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
2018, arXiv:1712.05877, section 2.1 (affine scheme); Nagel et al., A White Paper on Neural Network Quantization, 2021,
arXiv:2106.08295, sections 2.2 and 3.1 (symmetric grid, range by mean squared error). The signed scale, which gives the
largest weight the one code more that the negative side has, is that of llama.cpp's Q4_0 (ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from modelzip_cli.errors import BadOption
from modelzip_cli.kernels.rounding import dequantize, extremes, quantize
from modelzip_cli.kernels.sums import Sums, fit_sums, running_total
from modelzip_cli.schemes.base import Codes, Params, ParamSpec, Scheme
from modelzip_cli.schemes.granularity import Granularity, take_granularity
from modelzip_cli.tensors import U8

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

# Trial scales over the absmax scale; 20 factors gain 0.03 dB over these 8 (docs/decisions.md).
FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.74, 0.67, 0.58)


@dataclass(frozen=True)
class Int(Scheme):
    """`w ~ (code - zero_point) * scale`, codes of `bits` bits.

    Symmetric (default): zero_point = 2^(bits-1), not stored; scale = w* / -2^(bits-1) with w* the weight of largest
    magnitude in the group, so the scale has a sign. `-asym`: the range is that of the group, widened to hold 0; scale =
    (max - min) / (2^bits - 1), zero_point = round(-min / scale), uint8. `-mse`: 8 fractions of that scale, each refined
    by least squares; the one of least squared error is kept.
    Granularity: `-g128` (default below 8 bits) and other group sizes: scale bf16 [rows, groups]; `-channel` (default
    for 8 bits): scale float32 [rows, 1]; `-tensor`: float32 [1, 1]. Codes are computed with the scale as stored.
    A zero stays exactly zero. Without `-mse`, |w - decode(encode(w))| <= |scale| * (1 + 2^bits / 256), twice that last
    term with `-asym`, plus 2^(bits-134): one step, and what rounding the scale to bf16 does to the ends of the range.
    Raises BadOption for bits outside 2..8.
    """

    id: ClassVar[str] = "int"
    feeds_back: ClassVar[bool] = True
    example: ClassVar[str] = "int4-g64-mse"
    widths: ClassVar[range] = range(2, 9)
    bits: int = 8
    granularity: Granularity = Granularity(0)
    asym: bool = False
    mse: bool = False

    def __post_init__(self) -> None:
        if self.bits not in self.widths:
            raise BadOption(f"int{self.bits}: bits must be between 2 and 8")

    @classmethod
    def parse(cls, width: int | None, options: Sequence[str]) -> Int:
        bits = 8 if width is None else width
        granularity, rest = take_granularity(options)
        flags = {"asym": "asym" in rest, "mse": "mse" in rest}
        for option in rest:
            if option not in flags:
                raise BadOption(f"int{bits} has no option {option!r}; it has -gN, -channel, -tensor, -asym, -mse")
        return cls(bits, granularity or Granularity(0 if bits == 8 else 128), **flags)

    def __str__(self) -> str:
        written = [] if self.bits == 8 and self.granularity == Granularity(0) else [str(self.granularity)]
        return "-".join([f"int{self.bits}", *written, *["asym"] * self.asym, *["mse"] * self.mse])

    @property
    def levels(self) -> int:
        return 1 << self.bits

    @property
    def fits_tensor(self) -> bool:
        return self.granularity.per_tensor

    def param_specs(self, columns: int) -> dict[str, ParamSpec]:
        specs = {"scale": self.granularity.param_spec(columns)}
        return specs | {"zero_point": self.granularity.param_spec(columns, U8)} if self.asym else specs

    def fit_tensor(self, blocks: Iterable[Block]) -> Params:
        """One scale (and zero point) for all `blocks`, [1, 1]."""
        if not self.fits_tensor:
            return {}
        found = [extremes(block, self.granularity.span) for block in blocks if block.size]
        lowest = np.array([[min((low.min() for low, _ in found), default=0)]], np.float32)
        highest = np.array([[max((high.max() for _, high in found), default=0)]], np.float32)
        return self._search(blocks, self._range(lowest, highest))

    def fit_rows(self, block: Block, tensor: Params) -> Params:
        """Scale and zero point of each group of `block`, [rows, groups]."""
        if self.fits_tensor:
            return {}
        if not block.size:
            columns = self.granularity.param_spec(block.shape[1]).columns
            return self._range(*np.zeros((2, block.shape[0], columns), np.float32))
        return self._search([block], self._range(*extremes(block, self.granularity.span)))

    def at(self, params: Params, column: int) -> Params:
        return self.granularity.at(params, column)

    def encode(self, block: Block, params: Params, prices: Any = None) -> Codes:
        """Codes uint8 [rows, columns], ties to even."""
        scale, zero_point = self._broadcast(params, block.shape[0])
        return quantize(block, scale, zero_point, self.levels - 1, self.granularity.span)

    def decode(self, codes: Codes, params: Params) -> Block:
        scale, zero_point = self._broadcast(params, codes.shape[0])
        return dequantize(codes, scale, zero_point, self.granularity.span)

    def bound(self, params: Params) -> Block | None:
        if self.mse:
            return None
        reach = self.levels - 1 if self.asym else self.levels // 2
        return np.abs(params["scale"]) * np.float32(1 + reach / 128) + np.float32(self.levels * 2.0**-134)

    def _range(self, lowest: Block, highest: Block) -> Params:
        """Params that cover [lowest, highest], which hold 0: float32 arrays [rows, groups]."""
        if not self.asym:
            half = np.float32(self.levels // 2)
            extreme: Block = np.where(highest > -lowest, highest, lowest)
            return {"scale": self.granularity.rounded(extreme / -half, half)}
        top = np.float32(self.levels - 1)
        width: Block = np.subtract(highest / top, lowest / top, dtype=np.float32)
        scale = self.granularity.rounded(width, np.float32(1))
        while True:  # once, but for ranges near the ends of float32, where a decoded code may not overflow
            divisor = np.where(scale == 0, np.float32(1), scale)
            zero_point = np.rint(-lowest / divisor).clip(0, top)
            safe = self.granularity.rounded(scale, np.maximum(zero_point, top - zero_point))
            if (safe == scale).all() or not np.isfinite(scale).all():  # the engine refuses what is not finite
                return {"scale": scale, "zero_point": zero_point.astype(np.uint8)}
            scale = safe

    def _search(self, blocks: Iterable[Block], start: Params) -> Params:
        """With `-mse`, the params of least squared error among `start` and its refined fractions."""
        if not self.mse:
            return start
        half, zero_point = np.float32(self.levels // 2), start.get("zero_point")
        reach = half if zero_point is None else np.maximum(zero_point, self.levels - 1 - zero_point).astype(np.float32)
        best = start["scale"]
        least = np.full(best.shape, np.inf)
        for factor in (None, *FACTORS):  # None: `start` as it is, so that the search never makes a group worse
            trial = start["scale"] if factor is None else start["scale"] * np.float32(factor)
            wq, qq = self._sums(blocks, start | {"scale": trial})
            with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
                fitted = trial if factor is None else np.where(qq > 0, wq / qq, 0).astype(np.float32)
                scale = self.granularity.rounded(fitted, reach)
                wide = scale.astype(np.float64)
                error = wide * wide * qq - 2 * wide * wq  # the squared error less the sum of w*w
            better = (error < least) & (scale != 0) & np.isfinite(scale)
            best, least = np.where(better, scale, best), np.where(better, error, least)
        return start | {"scale": best}

    def _sums(self, blocks: Iterable[Block], params: Params) -> tuple[Sums, Sums]:
        """Least-squares sums of trial params: of every group, or, for one scale a tensor, of all in order."""
        totals = np.zeros((2, *params["scale"].shape))
        for block in blocks:
            if not block.size:
                continue
            scale, zero_point = self._broadcast(params, block.shape[0])
            divisor = np.where(scale == 0, np.float32(1), scale)
            sums = np.array(fit_sums(block, divisor, zero_point, self.levels - 1, self.granularity.span))
            totals = running_total(totals, sums) if self.fits_tensor else sums
        return totals[0], totals[1]

    def _broadcast(self, params: Params, rows: int) -> tuple[Block, Block]:
        """Scale and zero point as kernels take them, float32 [rows, groups]."""
        scale = params["scale"] if len(params["scale"]) == rows else np.repeat(params["scale"], rows, axis=0)
        if not self.asym:
            return scale, np.full(scale.shape, self.levels // 2, np.float32)
        zero_point = params["zero_point"].astype(np.float32)
        return scale, zero_point if len(zero_point) == rows else np.repeat(zero_point, rows, axis=0)
