"""The contract of a coder: codes <-> bytes, one slab at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.schemes.base import Codes


class Coder(ABC):
    """Writes codes [rows, columns] below 2^bits as bytes. Slabs are independent of each other."""

    id: ClassVar[str]

    @abstractmethod
    def pack(self, codes: Codes, bits: int) -> NDArray[np.uint8]:
        """Return the bytes of `codes`, uint8."""

    @abstractmethod
    def unpack(self, packed: NDArray[np.uint8], bits: int, rows: int, columns: int) -> Codes:
        """Return the codes [rows, columns] that `pack` wrote."""
