"""Shorter floats: the weights themselves in half the bytes, as ordinary tensors.

Source: IEEE 754-2019, section 3.6 (binary16); Kalamkar et al., A Study of BFLOAT16 for Deep Learning Training, 2019,
arXiv:1905.12322, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from modelzip_cli.errors import DoesNotFit
from modelzip_cli.kernels.rounding import extremes
from modelzip_cli.kernels.widen import narrow, widen
from modelzip_cli.schemes.base import Codes, Params, Scheme
from modelzip_cli.schemes.granularity import WHOLE_ROW
from modelzip_cli.tensors import BF16, F16, F32, DType

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block


class _Float(Scheme):
    """Codes are the bits of the weights in `plain`, rounded to nearest, ties to even."""

    largest: ClassVar[float]  # magnitudes from here on round to infinity

    def __str__(self) -> str:
        return self.id

    @property
    def bits(self) -> int:
        return self._plain.bits

    @property
    def levels(self) -> int:
        return 1 << self.bits

    @property
    def fits_tensor(self) -> bool:
        return self.largest < float("inf")

    def fit_tensor(self, blocks: Iterable[Block]) -> Params:
        """No params; raises DoesNotFit when a weight would become infinite."""
        for block in blocks:
            if block.size:
                lowest, highest = extremes(block, WHOLE_ROW)
                found = max(-float(lowest.min()), float(highest.max()))
                if np.isfinite(found) and found >= self.largest:
                    raise DoesNotFit(f"largest magnitude {found:.3g} does not fit {self.id}")
        return {}

    def encode(self, block: Block, params: Params, prices: Any = None) -> Codes:
        return narrow(block, self._plain)

    def decode(self, codes: Codes, params: Params) -> Block:
        return widen(codes, self._plain)

    @property
    def _plain(self) -> DType:
        assert self.plain is not None
        return self.plain


@dataclass(frozen=True)
class Fp16(_Float):
    """IEEE half precision: 11 bits of precision, magnitudes up to 65,504, stored as an ordinary f16 tensor.

    A tensor with a larger magnitude is kept as it is, with the reason in the report.
    """

    id: ClassVar[str] = "fp16"
    example: ClassVar[str] = "fp16"
    plain: ClassVar[DType | None] = F16
    largest: ClassVar[float] = 65520.0


@dataclass(frozen=True)
class Bf16(_Float):
    """bfloat16: 8 bits of precision and the range of float32, stored as an ordinary bf16 tensor."""

    id: ClassVar[str] = "bf16"
    example: ClassVar[str] = "bf16"
    plain: ClassVar[DType | None] = BF16
    largest: ClassVar[float] = 3.3961775292304e38  # halfway from the largest bf16 to 2^128


@dataclass(frozen=True)
class Fp32(_Float):
    """Single precision, for float64 checkpoints: nothing that training left behind is lost, in half the bytes."""

    id: ClassVar[str] = "fp32"
    example: ClassVar[str] = "fp32"
    plain: ClassVar[DType | None] = F32
    largest: ClassVar[float] = float("inf")
