"""FP8: 8-bit floats with a scale.

Source: Micikevicius et al., FP8 Formats for Deep Learning, 2022, arXiv:2209.05433, section 3 and table 1 (E4M3), with
scales as in section 3.2. The codes are those of torch.float8_e4m3fn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from modelzip_cli.errors import BadOption
from modelzip_cli.kernels.rounding import extremes
from modelzip_cli.kernels.small_floats import E4M3_TOP, e4m3_values, to_e4m3
from modelzip_cli.kernels.tables import look_up
from modelzip_cli.schemes.base import Codes, Params, ParamSpec, Scheme
from modelzip_cli.schemes.granularity import Granularity, broadcast, take_granularity

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

VALUES = e4m3_values()


@dataclass(frozen=True)
class Fp8(Scheme):
    """`w ~ e4m3[code] * scale`: 4 bits of exponent, 3 of mantissa, scale = max |w| / 448 of the row or the tensor.

    Codes are the bits of the E4M3 number, rounded to nearest, ties to even; 127 and 255, its NaN, do not occur.
    Granularity: `-channel` (default): scale float32 [rows, 1]; `-tensor`: float32 [1, 1]. A zero stays exactly zero.
    |w - decode(encode(w))| <= 16.01 |scale| + 2^-139. Better than int8 where a few weights are much larger than most.
    """

    id: ClassVar[str] = "fp8"
    feeds_back: ClassVar[bool] = True
    example: ClassVar[str] = "fp8-tensor"
    granularity: Granularity = Granularity(0)

    @classmethod
    def parse(cls, width: int | None, options: Sequence[str]) -> Fp8:
        granularity, rest = take_granularity(options)
        if rest or (granularity is not None and granularity.group_size > 0):
            raise BadOption(f"fp8 has no option {(rest or [str(granularity)])[0]!r}; it has -channel, -tensor")
        return cls(granularity or Granularity(0))

    def __str__(self) -> str:
        return "fp8-tensor" if self.granularity.per_tensor else "fp8"

    @property
    def bits(self) -> int:
        return 8

    @property
    def levels(self) -> int:
        return 256

    @property
    def fits_tensor(self) -> bool:
        return self.granularity.per_tensor

    def param_specs(self, columns: int) -> dict[str, ParamSpec]:
        return {"scale": self.granularity.param_spec(columns)}

    def fit_tensor(self, blocks: Iterable[Block]) -> Params:
        """One scale for all `blocks`, float32 [1, 1]."""
        if not self.fits_tensor:
            return {}
        largest = [np.max(np.maximum(-low, high)) for low, high in self._ranges(blocks)]
        return self._scale(np.array([[max(largest, default=0)]], np.float32))

    def fit_rows(self, block: Block, tensor: Params) -> Params:
        """The scale of each row of `block`, float32 [rows, 1]."""
        if self.fits_tensor:
            return {}
        for low, high in self._ranges([block]):
            return self._scale(np.maximum(-low, high))
        return self._scale(np.zeros((len(block), 1), np.float32))

    def _ranges(self, blocks: Iterable[Block]) -> Iterable[tuple[Block, Block]]:
        return (extremes(block, self.granularity.span) for block in blocks if block.size)

    def _scale(self, largest: Block) -> Params:
        top = np.float32(E4M3_TOP)
        return {"scale": self.granularity.rounded(largest / top, top)}

    def encode(self, block: Block, params: Params, prices: Any = None) -> Codes:
        return to_e4m3(block, broadcast(params["scale"], len(block)), self.granularity.span)

    def decode(self, codes: Codes, params: Params) -> Block:
        return look_up(codes, VALUES, broadcast(params["scale"], len(codes)), self.granularity.span)

    def bound(self, params: Params) -> Block | None:
        return np.abs(params["scale"]) * np.float32(16.01) + np.float32(2.0**-139)
