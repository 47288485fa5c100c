"""The contract of a criterion: how much each weight matters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from modelzip_cli.kernels.widen import widen
from modelzip_cli.tensors import BF16, F32, Statistics, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits, Block


def told_apart(scores: Block, block: Block) -> Block:
    """`scores` of `block` in which 0 means that the weight is 0: others that came to 0 get the least score above it."""
    inside = np.clip(np.abs(scores), np.float32(2.0**-149), np.finfo(np.float32).max)
    return np.where(np.isfinite(block) & (block != 0), inside, np.abs(block))


def weighted(block: Block, factors: Block) -> Block:
    """|w| times a factor each, float32, told apart from 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        return told_apart(np.multiply(block, factors, dtype=np.float32), block)


@dataclass(frozen=True)
class Place:
    """Where a block lies: the tensor, and which of its rows comes first."""

    spec: TensorSpec
    first: int


@dataclass(frozen=True)
class Criterion(ABC):
    """One way to say which weights matter least.

    `seed`: of those that draw numbers. `statistics`: what running the model on data left, for those with `needs`.
    """

    id: ClassVar[str]
    by_bits: ClassVar[bool] = False  # the scores are the weights themselves: their bits will do
    same_everywhere: ClassVar[bool] = False  # scores of two tensors say nothing about which of them matters more
    needs: ClassVar[str | None] = None  # the kind of statistic that scores come from
    changes_weights: ClassVar[bool] = False  # those that stay make up for those that go: not a matter of scores alone

    seed: int = 0
    statistics: Statistics | None = field(default=None, compare=False, repr=False)

    @abstractmethod
    def scores(self, block: Block, place: Place) -> Block:
        """Score `block`, float32 [rows, columns]: float32 of the same shape, whose magnitude says how much a weight
        matters. The sign says nothing. A weight of 0 has score 0, one that is not finite a score that is not. Must
        not depend on how rows are cut."""

    def keys(self, bits: Bits, place: Place) -> Bits:
        """The scores of raw `bits` [rows, columns] as unsigned integers that order them, but for the sign bit: the bits
        of a float32 as uint32, or of a bf16 as uint16."""
        dtype = place.spec.dtype
        if self.by_bits and dtype in (BF16, F32):
            return bits
        return np.ascontiguousarray(self.scores(widen(bits, dtype), place)).view(np.uint32)
