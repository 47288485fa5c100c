"""Magnitude: the smallest weights go first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from modelzip_cli.criteria.base import Criterion, Place

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block


@dataclass(frozen=True)
class Magnitude(Criterion):
    """|w|. Among all masks with as many zeros, the one that keeps the most energy (sum of squares).

    Source: Han, Pool, Tran and Dally, Learning both weights and connections, NeurIPS 2015, section 3.
    """

    id: ClassVar[str] = "magnitude"
    by_bits: ClassVar[bool] = True

    def scores(self, block: Block, place: Place) -> Block:
        return block
