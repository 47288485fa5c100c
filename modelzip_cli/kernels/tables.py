"""Weights to the entries of a table of levels and back, for schemes whose levels are not evenly spaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.jit import jit
from modelzip_cli.kernels.rounding import Codes, spread

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

STRIP = 1024
FEW = 31  # up to so many borders, counting those below with vectors is fastest
BINS = 1 << 16


def midpoints(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The borders between ascending `levels`, float32 [levels - 1]; what lies above one belongs to the next level."""
    wide = levels.astype(np.float64)
    return ((wide[:-1] + wide[1:]) / 2).astype(np.float32)


def _nearest_numpy(block: Block, scale: Block, borders: NDArray[np.float32], group_size: int) -> Codes:
    """Return how many of `borders` lie below `w / scale`: uint8 [rows, columns].

    `block` is float32 [rows, columns], `scale` (never 0) float32 [rows, groups], `borders` ascending, 2^b - 1 of them.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = block / spread(scale, group_size, block.shape[1])
    codes: Codes = np.searchsorted(borders, ratio.reshape(-1), side="left").astype(np.uint8).reshape(block.shape)
    return codes


@jit(twin=_nearest_numpy)
def _nearest(block: Block, scale: Block, borders: NDArray[np.float32], group_size: int) -> Codes:
    rows, columns = block.shape
    codes = np.empty((rows, columns), np.uint8)
    ratios = np.empty(STRIP, np.float32)
    bits = ratios.view(np.uint32)
    start = np.zeros(1, np.uint8)  # how many borders lie below the first number of each bin: sign, exponent, 7 bits
    if borders.size > FEW:
        first_bits = np.empty(BINS, np.uint32)
        for high in range(BINS // 2):  # ascending: negative numbers, the largest magnitude first, then positive ones
            first_bits[BINS // 2 - 1 - high] = np.uint32(((high | 0x8000) << 16) | 0xFFFF)
            first_bits[BINS // 2 + high] = np.uint32(high << 16)
        first_numbers = first_bits.view(np.float32)
        start = np.empty(BINS, np.uint8)
        below = 0
        for place in range(BINS):
            while below < borders.size and borders[below] < first_numbers[place]:
                below += 1
            start[place] = below
    for r in range(rows):
        row, out, scales = block[r], codes[r], scale[r]
        for g in range(scales.size):
            end, s = min((g + 1) * group_size, columns), scales[g]
            for first in range(g * group_size, end, STRIP):
                weights, coded = row[first : min(first + STRIP, end)], out[first : min(first + STRIP, end)]
                for i in range(weights.size):
                    ratios[i] = weights[i] / s
                if borders.size <= FEW:
                    coded[:] = 0
                    for border in borders:
                        for i in range(weights.size):
                            coded[i] += np.uint8(ratios[i] > border)
                    continue
                for i in range(weights.size):
                    upper = np.int64(bits[i] >> np.uint32(16))
                    code = np.int64(start[upper + 0x8000 if upper < 0x8000 else 0xFFFF - upper])
                    while code < borders.size and ratios[i] > borders[code]:
                        code += 1
                    coded[i] = code
    return codes


def nearest(block: Block, scale: Block, borders: NDArray[np.float32], group_size: int) -> Codes:
    """Return the entry of the table, whose `borders` are given, that is nearest to `w / scale`: uint8 [rows, columns].

    A scale of 0 stands for a group of zeros, and is divided by as 1.
    """
    divisor = np.where(scale == 0, np.float32(1), scale)
    return _nearest(np.ascontiguousarray(block), divisor, borders, group_size)


def _look_up_numpy(codes: Codes, table: NDArray[np.float32], scale: Block, group_size: int) -> Block:
    """Return `table[code] * scale`, float32 [rows, columns]; a zero is always +0."""
    with np.errstate(over="ignore", invalid="ignore"):
        weights: Block = table[codes]
        weights *= spread(scale, group_size, codes.shape[1])
        weights += np.float32(0)
    return weights


@jit(twin=_look_up_numpy)
def look_up(codes: Codes, table: NDArray[np.float32], scale: Block, group_size: int) -> Block:
    rows, columns = codes.shape
    block = np.empty((rows, columns), np.float32)
    for r in range(rows):
        row, out, scales = codes[r], block[r], scale[r]
        for g in range(scales.size):
            first, last = g * group_size, min((g + 1) * group_size, columns)
            coded, weights, s = row[first:last], out[first:last], scales[g]
            for i in range(coded.size):
                weights[i] = table[coded[i]] * s + np.float32(0)
    return block
