"""The threshold below which exactly so many scores lie, without sorting and without a copy of the weights.

Scores are counted by the upper half of their bits; where that does not decide, once more by the lower half of those in
one bin. A threshold is then a bin, and how many of the scores in it go, which are taken in the order of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SCORES = 1 << 31  # scores are below: the bits of a float32 without its sign
NONFINITE = 0x7F80 << 16  # the bits of infinity; those of NaN are larger


@dataclass(frozen=True)
class Profile:
    """How many scores of a tensor there are from each of `keys` up to the next, both int64, ascending; none is empty.

    `exact` says whether a key stands for one score only; where it does not, `refined` can look into a bin.
    """

    keys: NDArray[np.int64]
    counts: NDArray[np.int64]
    exact: bool

    @staticmethod
    def of(counts: NDArray[np.int64], *, exact: bool) -> Profile:
        """From the counts by the upper 15 bits, int64 [32768]."""
        (used,) = np.nonzero(counts)
        return Profile(used << 16, counts[used], exact)

    def refined(self, key: int, counts: NDArray[np.int64]) -> Profile:
        """With the bin of `key` cut into single scores, `counts` int64 [65536] by their lower 16 bits."""
        begin = key >> 16 << 16
        first, after = np.searchsorted(self.keys, (begin, begin + len(counts)))
        (used,) = np.nonzero(counts)
        keys = np.concatenate((self.keys[:first], begin + used, self.keys[after:]))
        return Profile(keys, np.concatenate((self.counts[:first], counts[used], self.counts[after:])), self.exact)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Scores up to and in each bin."""
        return np.cumsum(self.counts)

    @property
    def weights(self) -> int:
        """How many scores there are."""
        return int(self.counts.sum())

    @property
    def zeros(self) -> int:
        """Weights that are 0, where a score of 0 tells: those of the first bin, without a look into it."""
        return int(self.counts[0]) if len(self.keys) and self.keys[0] == 0 else 0

    @property
    def largest(self) -> int:
        """The last key; -1 without scores."""
        return int(self.keys[-1]) if len(self.keys) else -1

    def below(self, key: int) -> int:
        """How many scores lie below `key`, in bins that end there or before."""
        return self._before(int(np.searchsorted(self.keys, key)))

    def up_to(self, key: int) -> int:
        """How many scores lie in the bins up to that of `key`."""
        return self._before(int(np.searchsorted(self.keys, key, side="right")))

    def _before(self, at: int) -> int:
        return int(self.ends[at - 1]) if at else 0

    def place(self, zeros: int) -> tuple[int, int, int]:
        """Where `zeros` scores end: the key of the bin, how many lie below it, and how many are in it."""
        at = int(np.searchsorted(self.ends, zeros, side="right"))
        if at == len(self.keys):
            return SCORES, zeros, 0
        return int(self.keys[at]), int(self.ends[at] - self.counts[at]), int(self.counts[at])


def shares(profiles: Sequence[Profile], most: Sequence[int], zeros: int) -> tuple[int, list[int]]:
    """How `zeros` zeros are shared among tensors by one threshold, none getting more than its `most`.

    Returns the key of the bin in which the threshold lies, and the zeros of each. Within that bin the first tensors are
    served first. Raises ValueError when `zeros` are more than all may have.
    """
    if zeros > sum(most):
        raise ValueError("more zeros than all may have")
    key, high = 0, SCORES  # the first key up to whose bin there are `zeros` or more
    while key < high:
        middle = (key + high) // 2
        below = sum(min(profile.up_to(middle), each) for profile, each in zip(profiles, most, strict=True))
        key, high = (middle + 1, high) if below < zeros else (key, middle)
    if key == SCORES:
        return SCORES, [min(profile.weights, each) for profile, each in zip(profiles, most, strict=True)]
    found = [min(profile.below(key), each) for profile, each in zip(profiles, most, strict=True)]
    left = zeros - sum(found)
    for place, (profile, each) in enumerate(zip(profiles, most, strict=True)):
        more = min(left, min(profile.up_to(key), each) - found[place])
        found[place] += more
        left -= more
    return key, found
