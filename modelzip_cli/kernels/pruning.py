"""Pruning: scores counted by their bits, weights with a low score set to zero, the largest N of every M kept.

A score orders weights by its bits without the sign: uint32 [n] of a float32, or uint16 [n] of a bf16. Of numbers that
are not negative, bits ascend with the values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.jit import jit

HIGH, LOW = 1 << 15, 1 << 16  # bins of the upper 15 bits of a score, and of the lower 16
PIECE = 4096  # scores whose bins are kept in the first-level cache
STRIP = 64  # scores that are looked at together: of a bin with 1 weight in 300, one strip in five has one
MOST_COMPARED = 32  # weights of a group that are compared with each other; larger groups are sorted

Scores = NDArray[Any]  # uint16 or uint32
Counts = NDArray[np.int64]
Bits = NDArray[Any]


def _count_high_numpy(scores: Scores, shift: int) -> Counts:
    """How many of `scores` [n] have each value of the 15 bits from bit `shift`, int64 [32768]."""
    return np.bincount((scores >> scores.dtype.type(shift)) & scores.dtype.type(HIGH - 1), minlength=HIGH)


@jit(twin=_count_high_numpy)
def _count_high(scores: Scores, shift: int) -> Counts:
    counts = np.zeros(HIGH, np.uint32)  # half the cache of 64 bits; slabs are far below 2^32 scores
    bins = np.empty(PIECE, np.uint16)
    for start in range(0, scores.size, PIECE):  # bins first, with vectors: counting then does not wait for memory
        piece = scores[start : min(start + PIECE, scores.size)]
        for i in range(piece.size):
            bins[i] = np.uint16((np.uint32(piece[i]) >> np.uint32(shift)) & np.uint32(HIGH - 1))
        for i in range(piece.size):
            counts[bins[i]] += np.uint32(1)
    return counts.astype(np.int64)


def count_high(scores: Scores) -> Counts:
    """How many scores have each value of their upper 15 bits (all of them, of a bf16), int64 [32768]."""
    return _count_high(scores.reshape(-1), 8 * scores.dtype.itemsize - 16)


def _count_low_numpy(scores: NDArray[np.uint32], high: int) -> Counts:
    """Of `scores` uint32 [n] with the upper 15 bits `high`: how many have each value of the lower 16, int64 [65536]."""
    chosen = scores[(scores >> np.uint32(16)) & np.uint32(HIGH - 1) == high]
    return np.bincount(chosen & np.uint32(LOW - 1), minlength=LOW)


@jit(twin=_count_low_numpy)
def _count_low(scores: NDArray[np.uint32], high: int) -> Counts:
    counts = np.zeros(LOW, np.int64)
    wanted = np.uint32(high)
    whole = scores.size // STRIP * STRIP
    for start in range(0, whole, STRIP):  # most strips have none, and that is seen with vectors
        strip = scores[start : start + STRIP]
        hits = np.uint32(0)
        for i in range(STRIP):
            hits = np.uint32(hits + np.uint32((strip[i] >> np.uint32(16)) & np.uint32(HIGH - 1) == wanted))
        if hits:
            for i in range(STRIP):
                if (strip[i] >> np.uint32(16)) & np.uint32(HIGH - 1) == wanted:
                    counts[strip[i] & np.uint32(LOW - 1)] += 1
    for i in range(whole, scores.size):
        if (scores[i] >> np.uint32(16)) & np.uint32(HIGH - 1) == wanted:
            counts[scores[i] & np.uint32(LOW - 1)] += 1
    return counts


def count_low(scores: NDArray[np.uint32], high: int) -> Counts:
    """Of the scores with the upper 15 bits `high`: how many have each value of the lower 16, int64 [65536]."""
    return _count_low(scores.reshape(-1), high)


def _zero_below_numpy(bits: Bits, scores: Scores, magnitude: Any, least: Any, zero: Any) -> Bits:
    """`bits` [n], any unsigned integers, with 0 where the score & `magnitude` [n] is below `least`."""
    return np.where((scores & magnitude) < least, zero, bits)


@jit(twin=_zero_below_numpy)
def _zero_below(bits: Bits, scores: Scores, magnitude: Any, least: Any, zero: Any) -> Bits:
    out = np.empty_like(bits)
    for i in range(bits.size):
        out[i] = zero if (scores[i] & magnitude) < least else bits[i]
    return out


def zero_below(bits: Bits, scores: Scores, least: int) -> Bits:
    """`bits` with 0 where the score, as 32 bits without the sign, is below `least`. Same shape."""
    kind = scores.dtype.type
    largest = np.iinfo(kind).max >> 1
    bound = min(-(-least >> (32 - 8 * scores.dtype.itemsize)), largest)  # scores of 16 bits stand for the upper half
    out = _zero_below(bits.reshape(-1), scores.reshape(-1), kind(largest), kind(bound), bits.dtype.type(0))
    return out.reshape(bits.shape)


def _random_numpy(key: np.uint64, start: int, count: int) -> NDArray[np.float32]:
    """Numbers in (0, 1] for the places from `start` on, float32 [count]: SplitMix64 of `key` and the place.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014, figure 17.
    """
    with np.errstate(over="ignore"):
        z = key + np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)) + np.uint64(1)).astype(np.float32) * np.float32(2.0**-24)


@jit(twin=_random_numpy)
def random_scores(key: np.uint64, start: int, count: int) -> NDArray[np.float32]:
    out = np.empty(count, np.float32)
    for i in range(count):
        z = key + np.uint64(start + 1 + i) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        out[i] = np.float32(np.uint32(z >> np.uint64(40)) + np.uint32(1)) * np.float32(2.0**-24)
    return out


def _keep_largest_numpy(bits: Bits, scores: Scores, magnitude: Any, drop: int, zero: Any) -> Bits:
    """`bits` [groups, M, inner] with 0 for the `drop` lowest of `scores` & `magnitude` along the axis of M; of equal
    ones the first are dropped first."""
    order = np.argsort(scores & magnitude, axis=1, kind="stable")
    out = bits.copy()
    np.put_along_axis(out, order[:, :drop], zero, axis=1)
    return out


@jit(twin=_keep_largest_numpy)
def _keep_largest(bits: Bits, scores: Scores, magnitude: Any, drop: int, zero: Any) -> Bits:
    out = np.empty_like(bits)
    groups, size, inner = bits.shape
    for group in range(groups):
        for place in range(inner):
            for i in range(size):
                own, below = scores[group, i, place] & magnitude, 0
                for j in range(i):
                    below += (scores[group, j, place] & magnitude) <= own
                for j in range(i + 1, size):
                    below += (scores[group, j, place] & magnitude) < own
                out[group, i, place] = zero if below < drop else bits[group, i, place]
    return out


def _keep_of_four_numpy(bits: Bits, scores: Scores, magnitude: Any, drop: int) -> Bits:
    """The same for groups of four that lie side by side, [4 * groups]."""
    shape = -1, 4, 1
    return _keep_largest_numpy(bits.reshape(shape), scores.reshape(shape), magnitude, drop, bits.dtype.type(0)).reshape(
        -1
    )


@jit(twin=_keep_of_four_numpy)
def _keep_of_four(bits: Bits, scores: Scores, magnitude: Any, drop: int) -> Bits:
    out = np.empty_like(bits)
    for g in range(bits.size // 4):  # times 0 or 1, not a choice: choices are not vectorised and take 15 times as long
        i, j, k, m = 4 * g, 4 * g + 1, 4 * g + 2, 4 * g + 3
        a, b, c, d = scores[i] & magnitude, scores[j] & magnitude, scores[k] & magnitude, scores[m] & magnitude
        ab, ac, ad, bc, bd, cd = int(a <= b), int(a <= c), int(a <= d), int(b <= c), int(b <= d), int(c <= d)
        out[i] = bits[i] * int(3 - ab - ac - ad >= drop)
        out[j] = bits[j] * int(ab + 2 - bc - bd >= drop)
        out[k] = bits[k] * int(ac + bc + 1 - cd >= drop)
        out[m] = bits[m] * int(ad + bd + cd >= drop)
    return out


def keep_largest(bits: Bits, scores: Scores, keep: int) -> Bits:
    """`bits` [groups, M, inner] with only the `keep` largest scores of each M; of equal ones the first go first."""
    (_, size, inner), magnitude = bits.shape, scores.dtype.type(np.iinfo(scores.dtype).max >> 1)
    if size == 4 and inner == 1:
        return _keep_of_four(bits.reshape(-1), scores.reshape(-1), magnitude, size - keep).reshape(bits.shape)
    kernel = _keep_largest if size <= MOST_COMPARED else _keep_largest.twin
    return kernel(bits, scores, magnitude, size - keep, bits.dtype.type(0))
