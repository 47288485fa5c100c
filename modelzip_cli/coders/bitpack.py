"""Bit packing: every code takes the same number of bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.coders.base import Coder
from modelzip_cli.kernels.bitpack import pack, unpack
from modelzip_cli.schemes.base import Codes


@dataclass(frozen=True)
class BitPack(Coder):
    """Codes of `bits` bits, least significant bit first; each row is padded to a byte."""

    id: ClassVar[str] = "bitpack"

    def pack(self, codes: Codes, bits: int) -> NDArray[np.uint8]:
        return pack(codes, bits)

    def unpack(self, packed: NDArray[np.uint8], bits: int, rows: int, columns: int) -> Codes:
        return unpack(packed.reshape(rows, -(-columns * bits // 8)), bits, columns)
