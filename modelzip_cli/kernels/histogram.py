"""How weights are spread: counts and sums by the upper half of their bits, which sorts them.

A bin is a bfloat16 number without its rounding: sign, exponent and the first 7 bits of the mantissa, 65,536 in all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.jit import jit

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

BINS = 1 << 16
Counts = NDArray[np.int64]
Sums = NDArray[np.float64]
Bits32 = NDArray[np.uint32]
Weights = NDArray[np.float32]


def empty_histogram() -> tuple[Counts, Sums]:
    """Counts and sums of nothing: int64 and float64 [65536]."""
    return np.zeros(BINS, np.int64), np.zeros(BINS)


def _tally_numpy(bits: Bits32, weights: Weights, counts: Counts, sums: Sums) -> tuple[Counts, Sums]:
    """Return `counts` and `sums`, [65536] each, with `weights` added to their bins, one after the other.

    `weights` is float32 [n], `bits` their bits as uint32 [n].
    """
    high = (bits >> np.uint32(16)).astype(np.int64)
    place = np.where(high < 0x8000, high + 0x8000, 0xFFFF - high)
    sums = sums.copy()
    with np.errstate(invalid="ignore"):
        np.add.at(sums, place, weights.astype(np.float64))
    return counts + np.bincount(place, minlength=BINS), sums


@jit(twin=_tally_numpy)
def _tally(bits: Bits32, weights: Weights, counts: Counts, sums: Sums) -> tuple[Counts, Sums]:
    counts, sums = counts.copy(), sums.copy()
    for i in range(bits.size):
        high = np.int64(bits[i] >> np.uint32(16))
        place = high + 0x8000 if high < 0x8000 else 0xFFFF - high
        counts[place] += 1
        sums[place] += np.float64(weights[i])
    return counts, sums


def tally(block: Block, counts: Counts, sums: Sums) -> tuple[Counts, Sums]:
    """Return the histogram with the weights of `block` added, float32 of any shape. Bins ascend with the weights.

    Sums run over the weights in order, so that no cut into blocks changes a bit.
    """
    flat = np.ascontiguousarray(block).reshape(-1)
    return _tally(flat.view(np.uint32), flat, counts, sums)


def bin_edges(places: NDArray[np.int64]) -> NDArray[np.float32]:
    """The number with the smallest magnitude in each of the bins `places`, float32."""
    high = np.where(places >= 0x8000, places - 0x8000, 0xFFFF - places).astype(np.uint32)
    return (high << np.uint32(16)).view(np.float32)
