"""Masks: which weights of a tensor become zero. They are rules, not bits: a mask of any tensor takes a few bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelzip_cli.criteria.base import Criterion, Place
from modelzip_cli.criteria.patterns import Pattern, inputs_of
from modelzip_cli.kernels.pruning import keep_largest, zero_below

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits


class Mask(ABC):
    """What of a tensor is pruned."""

    @abstractmethod
    def apply(self, bits: Bits, place: Place) -> Bits:
        """Raw bits [rows, columns] of whole rows, with +0 where the mask prunes."""


@dataclass(frozen=True)
class Below(Mask):
    """Prunes scores below `key` (the bits of a float32), and of those equal to it the ones before place `until`,
    counted through the tensor: so any number of zeros is met exactly."""

    criterion: Criterion
    key: int
    until: int = 0

    def apply(self, bits: Bits, place: Place) -> Bits:
        keys, columns = self.criterion.keys(bits, place), bits.shape[1]
        begin = place.first * columns
        tied = min(max(self.until - begin, 0), bits.size)
        if tied in (0, bits.size):
            return zero_below(bits, keys, self.key + (tied > 0))
        bits, keys = bits.reshape(-1).copy(), keys.reshape(-1)
        bits[:tied] = zero_below(bits[:tied], keys[:tied], self.key + 1)
        bits[tied:] = zero_below(bits[tied:], keys[tied:], self.key)
        return bits.reshape(-1, columns)


@dataclass(frozen=True, eq=False)
class Given(Mask):
    """The weights as they have come to be, raw bits [units]: pruned, and trained since."""

    bits: Bits

    def apply(self, bits: Bits, place: Place) -> Bits:
        columns = place.spec.matrix[1]
        return self.bits[place.first * columns :][: bits.size].reshape(bits.shape)


@dataclass(frozen=True)
class LargestOf(Mask):
    """Keeps the largest N scores of every M along the input dimension; of equal ones the first are pruned first."""

    criterion: Criterion
    pattern: Pattern

    def apply(self, bits: Bits, place: Place) -> Bits:
        inputs, inner = inputs_of(place.spec)
        shape = len(bits) * inputs // self.pattern.group, self.pattern.group, inner
        keys = self.criterion.keys(bits, place)
        return keep_largest(bits.reshape(shape), keys.reshape(shape), self.pattern.keep).reshape(bits.shape)
