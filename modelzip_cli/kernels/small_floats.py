"""Weights to 8-bit floats.

Source: Micikevicius et al., FP8 Formats for Deep Learning, 2022, arXiv:2209.05433, table 1, the E4M3 column: 4 bits of
exponent with bias 7, 3 of mantissa, no infinity, one NaN a sign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modelzip_cli.kernels.jit import jit
from modelzip_cli.kernels.rounding import Codes, spread

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

E4M3_TOP = 448.0  # the largest finite value
STRIP = 1024
_TOP_BITS, _NORMAL_BITS = 0x43E00000, 0x3C800000  # of 448 and of 2^-6, the smallest normal number
_DROPPED, _REBIAS = 20, (127 - 7) << 3  # mantissa bits that go, and what the exponents differ by


def _to_e4m3_numpy(block: Block, scale: Block, group_size: int) -> Codes:
    """Return the E4M3 bits of `w / scale`, to nearest, ties to even, never beyond 448: uint8 [rows, columns].

    `block` is float32 [rows, columns], `scale` (never 0) float32 [rows, groups].
    """
    with np.errstate(over="ignore", invalid="ignore"):
        bits = (block / spread(scale, group_size, block.shape[1])).view(np.int32)
    sign = (bits >> 24) & 0x80
    magnitude = np.minimum(bits & 0x7FFFFFFF, _TOP_BITS)
    normal = ((magnitude + 0x7FFFF + ((magnitude >> _DROPPED) & 1)) >> _DROPPED) - _REBIAS
    small = np.rint(np.minimum(magnitude, _NORMAL_BITS).view(np.float32) * np.float32(512)).astype(np.int32)
    codes: Codes = (np.where(magnitude < _NORMAL_BITS, small, normal) | sign).astype(np.uint8)
    return codes


@jit(twin=_to_e4m3_numpy)
def _to_e4m3(block: Block, scale: Block, group_size: int) -> Codes:
    rows, columns = block.shape
    codes = np.empty((rows, columns), np.uint8)
    ratios = np.empty(STRIP, np.float32)
    bits = ratios.view(np.int32)
    for r in range(rows):
        row, out, scales = block[r], codes[r], scale[r]
        for g in range(scales.size):
            end, s = min((g + 1) * group_size, columns), scales[g]
            for first in range(g * group_size, end, STRIP):
                weights, coded = row[first : min(first + STRIP, end)], out[first : min(first + STRIP, end)]
                for i in range(weights.size):
                    ratios[i] = weights[i] / s
                for i in range(weights.size):
                    sign = (bits[i] >> np.int32(24)) & np.int32(0x80)
                    magnitude = min(bits[i] & np.int32(0x7FFFFFFF), np.int32(_TOP_BITS))
                    odd = (magnitude >> np.int32(_DROPPED)) & np.int32(1)
                    normal = ((magnitude + np.int32(0x7FFFF) + odd) >> np.int32(_DROPPED)) - np.int32(_REBIAS)
                    small = np.int32(np.rint(min(abs(ratios[i]), np.float32(0.015625)) * np.float32(512)))
                    coded[i] = np.uint8((small if magnitude < np.int32(_NORMAL_BITS) else normal) | sign)
    return codes


def to_e4m3(block: Block, scale: Block, group_size: int) -> Codes:
    """Return the E4M3 bits of `w / scale`. A scale of 0 stands for a group of zeros, and is divided by as 1."""
    divisor = np.where(scale == 0, np.float32(1), scale)
    return _to_e4m3(np.ascontiguousarray(block), divisor, group_size)


def e4m3_values() -> Block:
    """What each of the 256 codes stands for, float32 [256]; the codes 127 and 255 are NaN."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa / 512, np.ldexp(1 + mantissa / 8, exponent - 7))
    magnitude[(codes & 127) == 127] = np.nan
    values: Block = np.where(codes < 128, magnitude, -magnitude).astype(np.float32)
    return values
