"""Weights to integer codes and back, for every scheme with a scale and a zero point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.jit import jit

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

Codes = NDArray[Any]  # uint8 up to 256 levels, uint16 above
Keys = NDArray[np.int32]


def extremes(block: Block, group_size: int) -> tuple[Block, Block]:
    """Return the range of each group, widened to hold 0: two float32 arrays [rows, groups], min(w, 0) and max(w, 0).

    `block` is float32 [rows, columns]; groups run along a row, the last may be short. A row without columns has none.
    """
    unsigned, signed = _largest_bits(np.ascontiguousarray(block).view(np.int32), group_size)
    lowest = np.where(unsigned > np.uint32(0x80000000), unsigned, np.uint32(0)).view(np.float32)
    highest = np.maximum(signed, np.int32(0)).view(np.float32)
    return lowest, highest


def _largest_bits_numpy(bits: Keys, group_size: int) -> tuple[NDArray[np.uint32], Keys]:
    """The largest bits of each group of float32 [rows, columns], taken as unsigned and as signed integers.

    Unsigned, the negative weight of largest magnitude wins, if there is one; signed, the largest positive one.
    Float comparisons would not vectorise, because a minimum has to look out for NaN; these run three times as fast.
    """
    starts = np.arange(0, bits.shape[1], group_size)
    return np.maximum.reduceat(bits.view(np.uint32), starts, axis=1), np.maximum.reduceat(bits, starts, axis=1)


@jit(twin=_largest_bits_numpy)
def _largest_bits(bits: Keys, group_size: int) -> tuple[NDArray[np.uint32], Keys]:
    rows, columns = bits.shape
    groups = (columns + group_size - 1) // group_size
    unsigned, signed = np.empty((rows, groups), np.uint32), np.empty((rows, groups), np.int32)
    for r in range(rows):
        row, unsigned_out, signed_out = bits[r], unsigned[r], signed[r]
        for g in range(groups):
            group = row[g * group_size : min((g + 1) * group_size, columns)]
            largest, highest = np.uint32(0), np.int32(-0x80000000)
            for i in range(group.size):
                largest, highest = max(largest, np.uint32(group[i])), max(highest, group[i])
            unsigned_out[g], signed_out[g] = largest, highest
    return unsigned, signed


def spread(values: NDArray[np.float32], group_size: int, columns: int) -> NDArray[np.float32]:
    """Repeat one value a group, [rows, groups], to one a weight, [rows, columns]; one value a row broadcasts."""
    return values if values.shape[1] == 1 else np.repeat(values, group_size, axis=1)[:, :columns]


def _quantize_numpy(block: Block, scale: Block, zero_point: Block, top: int, group_size: int, like: Codes) -> Codes:
    """Return `clip(round(w / scale) + zero_point, 0, top)`, ties to even, [rows, columns] in the dtype of `like`.

    `block` is float32 [rows, columns], `scale` (never 0) and `zero_point` float32 [rows, groups].
    """
    columns = block.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        q = block / spread(scale, group_size, columns)
        np.rint(q, out=q)
        q += spread(zero_point, group_size, columns)
        codes: Codes = q.clip(0, top).astype(like.dtype)
    return codes


@jit(twin=_quantize_numpy)
def _quantize(block: Block, scale: Block, zero_point: Block, top: int, group_size: int, like: Codes) -> Codes:
    rows, columns = block.shape
    low, high = np.float32(0), np.float32(top)
    codes: Codes = np.empty((rows, columns), like.dtype)
    for r in range(rows):
        row, out, scales, zeros = block[r], codes[r], scale[r], zero_point[r]
        for g in range(scales.size):
            first, last = g * group_size, min((g + 1) * group_size, columns)
            weights, coded, s, z = row[first:last], out[first:last], scales[g], zeros[g]
            for i in range(weights.size):
                coded[i] = np.int32(min(max(np.rint(weights[i] / s) + z, low), high))
    return codes


def quantize(block: Block, scale: Block, zero_point: Block, top: int, group_size: int) -> Codes:
    """Return `clip(round(w / scale) + zero_point, 0, top)`: uint8 codes up to 256 levels, uint16 above.

    `block` is float32 [rows, columns], `scale` and `zero_point` float32 [rows, groups]. A scale of 0 stands for a
    group of zeros, and is divided by as 1.
    """
    divisor = np.where(scale == 0, np.float32(1), scale)
    like: Codes = np.empty(0, np.uint8 if top < 256 else np.uint16)
    return _quantize(np.ascontiguousarray(block), divisor, zero_point, top, group_size, like)


def _dequantize_numpy(codes: Codes, scale: Block, zero_point: Block, group_size: int) -> Block:
    """Return `(code - zero_point) * scale`, float32 [rows, columns]; a zero is always +0."""
    columns = codes.shape[1]
    weights: Block = codes.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        weights -= spread(zero_point, group_size, columns)
        weights *= spread(scale, group_size, columns)
        weights += np.float32(0)
    return weights


@jit(twin=_dequantize_numpy)
def dequantize(codes: Codes, scale: Block, zero_point: Block, group_size: int) -> Block:
    rows, columns = codes.shape
    block = np.empty((rows, columns), np.float32)
    for r in range(rows):
        row, out, scales, zeros = codes[r], block[r], scale[r], zero_point[r]
        for g in range(scales.size):
            first, last = g * group_size, min((g + 1) * group_size, columns)
            coded, weights, s, z = row[first:last], out[first:last], scales[g], zeros[g]
            for i in range(coded.size):
                weights[i] = (np.float32(np.int32(coded[i])) - z) * s + np.float32(0)
    return block
