"""Ternary: -1, 0 or 1 times a scale.

Source: Li, Zhang, Liu, Ternary Weight Networks, 2016, arXiv:1605.04711, equations 4 to 6 (the scale is the mean of the
weights above a threshold, which is 0.7 times the mean magnitude); refined by Lloyd's alternation (Least Squares
Quantization in PCM, 1982), which lowers the squared error in every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from modelzip_cli.errors import BadOption
from modelzip_cli.kernels.rounding import dequantize, quantize
from modelzip_cli.schemes.base import Codes, Params, ParamSpec, Scheme
from modelzip_cli.schemes.granularity import Granularity, broadcast, magnitudes, tail_sums, take_granularity

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

STARTS = (0.7, 1.1, 1.8, 3.0, 6.0, 12.0)  # thresholds over the mean magnitude, the first that of the paper
STEPS = 3  # of Lloyd; further ones gain less than 0.01 dB on Gaussian weights


@dataclass(frozen=True)
class Ternary(Scheme):
    """`w ~ (code - 1) * scale`, codes 0, 1 and 2.

    Begins with the scale of Ternary Weight Networks, the mean of the magnitudes above 0.7 of their mean, or above 1.1,
    1.8, 3, 6 or 12 where the error is less, as heavy tails need; then three times: the scale is the mean of the
    magnitudes above half of it. Codes are the nearest of the three levels.
    Granularity: `-channel` (default): scale float32 [rows, 1]; `-tensor`: float32 [1, 1]; `-g64` and other group
    sizes: bf16 [rows, groups]. A zero stays exactly zero. Gaussian weights keep 7.2 dB.
    """

    id: ClassVar[str] = "ternary"
    feeds_back: ClassVar[bool] = True
    example: ClassVar[str] = "ternary-g64"
    granularity: Granularity = Granularity(0)

    @classmethod
    def parse(cls, width: int | None, options: Sequence[str]) -> Ternary:
        granularity, rest = take_granularity(options)
        if rest:
            raise BadOption(f"ternary has no option {rest[0]!r}; it has -channel, -tensor, -gN")
        return cls(granularity or Granularity(0))

    def __str__(self) -> str:
        return "ternary" if self.granularity == Granularity(0) else f"ternary-{self.granularity}"

    @property
    def bits(self) -> int:
        return 2

    @property
    def levels(self) -> int:
        return 3

    @property
    def fits_tensor(self) -> bool:
        return self.granularity.per_tensor

    def param_specs(self, columns: int) -> dict[str, ParamSpec]:
        return {"scale": self.granularity.param_spec(columns)}

    def fit_tensor(self, blocks: Iterable[Block]) -> Params:
        """One scale for all `blocks`, float32 [1, 1]."""
        return self._fit(blocks) if self.fits_tensor else {}

    def fit_rows(self, block: Block, tensor: Params) -> Params:
        """The scale of each group of `block`, float32 [rows, groups]."""
        return {} if self.fits_tensor else self._fit([block])

    def _fit(self, blocks: Iterable[Block]) -> Params:
        total, count = magnitudes(blocks, self.granularity)
        mean = total / np.maximum(count, 1)
        scale, saved = np.zeros_like(mean), np.zeros_like(mean)
        for start in STARTS:
            total, count = tail_sums(blocks, start * mean, self.granularity)
            trial = total / np.maximum(count, 1)
            scale = np.where(total * trial > saved, trial, scale)
            saved = np.maximum(total * trial, saved)  # how much less than the sum of squares the error is
        for _ in range(STEPS):
            total, count = tail_sums(blocks, scale / 2, self.granularity)
            scale = np.where(count > 0, total / np.maximum(count, 1), scale)
        return {"scale": self.granularity.rounded(scale.astype(np.float32), np.float32(1))}

    def at(self, params: Params, column: int) -> Params:
        return self.granularity.at(params, column)

    def encode(self, block: Block, params: Params, prices: Any = None) -> Codes:
        """Codes uint8 [rows, columns]; a weight halfway between two levels becomes 0."""
        scale = broadcast(params["scale"], len(block))
        return quantize(block, scale, np.ones_like(scale), 2, self.granularity.span)

    def decode(self, codes: Codes, params: Params) -> Block:
        scale = broadcast(params["scale"], len(codes))
        return dequantize(codes, scale, np.ones_like(scale), self.granularity.span)
