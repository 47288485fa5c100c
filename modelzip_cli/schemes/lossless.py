"""Lossless: the same bits in fewer bytes. No scheme at all: the coder works on the raw bits of the dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from modelzip_cli.schemes.base import Codes, Params, Scheme

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block, TensorSpec


@dataclass(frozen=True)
class Lossless(Scheme):
    """The weights bit for bit, entropy coded (coders/lossless.py): NaN, -0 and every dtype included.

    Trained bf16 weights take two thirds of their bytes, float32 four fifths; pruned ones and those that came from a
    shorter dtype less.
    """

    id: ClassVar[str] = "lossless"
    example: ClassVar[str] = "lossless"
    raw: ClassVar[bool] = True

    def __str__(self) -> str:
        return self.id

    @property
    def bits(self) -> int:
        return 32

    @property
    def levels(self) -> None:
        return None

    def encode(self, block: Block, params: Params, prices: Any = None) -> Codes:
        """Return the weights themselves: nothing is lost."""
        return block

    def decode(self, codes: Codes, params: Params) -> Block:
        return codes

    def guess(self, spec: TensorSpec) -> int:
        """Four fifths of the bytes."""
        return spec.bytes * 4 // 5

    def stored_bytes(self, rows: int, columns: int) -> int:
        return 0
