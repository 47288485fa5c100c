"""Raw bits to float32 and back. bf16 and f16 never become tensors of their own: they are uint16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.jit import jit
from modelzip_cli.tensors import BF16, F16, F32, F64, DType

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits, Block

Bits16 = NDArray[np.uint16]
Bits32 = NDArray[np.uint32]


def widen(bits: Bits, dtype: DType) -> Block:
    """Return the float32 values of raw `bits` of a float dtype, same shape. Exact but for f64, which is rounded."""
    if dtype == F32:
        values: Block = bits.view(np.float32)
    elif dtype == BF16:
        values = widen_bf16(bits).view(np.float32)
    elif dtype == F16:
        values = widen_f16(bits).view(np.float32)
    elif dtype == F64:
        with np.errstate(over="ignore"):
            values = bits.view(np.float64).astype(np.float32)
    else:
        raise ValueError(f"{dtype} holds no weights")
    return values


def narrow(values: Block, dtype: DType) -> Bits:
    """Return float32 `values` as raw bits of a float dtype, same shape; ties to even; too large becomes infinity."""
    if dtype == F32:
        bits: NDArray[Any] = values.view(np.uint32)
    elif dtype == BF16:
        bits = narrow_bf16(np.ascontiguousarray(values).view(np.uint32))
    elif dtype == F16:
        bits = narrow_f16(np.ascontiguousarray(values).view(np.uint32))
    elif dtype == F64:
        bits = values.astype(np.float64).view(np.uint64)
    else:
        raise ValueError(f"{dtype} holds no weights")
    return bits


def _widen_bf16_numpy(bits: Bits16) -> Bits32:
    """bf16 [rows, columns] uint16 -> float32 bits, uint32 of the same shape. Exact."""
    wide: Bits32 = bits.astype(np.uint32) << np.uint32(16)
    return wide


@jit(twin=_widen_bf16_numpy)
def widen_bf16(bits: Bits16) -> Bits32:
    wide = np.empty(bits.shape, np.uint32)
    for r in range(bits.shape[0]):
        row, out = bits[r], wide[r]
        for i in range(row.size):
            out[i] = np.uint32(row[i]) << np.uint32(16)
    return wide


def _narrow_bf16_numpy(bits: Bits32) -> Bits16:
    """float32 bits [rows, columns] uint32 -> bf16 uint16, ties to even. NaN is not expected here."""
    narrow_bits: Bits16 = ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )
    return narrow_bits


@jit(twin=_narrow_bf16_numpy)
def narrow_bf16(bits: Bits32) -> Bits16:
    narrow_bits = np.empty(bits.shape, np.uint16)
    for r in range(bits.shape[0]):
        row, out = bits[r], narrow_bits[r]
        for i in range(row.size):
            x = row[i]
            out[i] = np.uint16((x + np.uint32(0x7FFF) + (x >> np.uint32(16) & np.uint32(1))) >> np.uint32(16))
    return narrow_bits


def rounded(values: Block, dtype: DType) -> Block:
    """Return `values` as they are after a trip through `dtype`, float32 of the same shape."""
    if dtype.bits >= 32:
        return values
    if dtype == BF16:
        return _round_bf16(np.ascontiguousarray(values).view(np.uint32)).view(np.float32)
    return widen(narrow(values, dtype), dtype)


def _round_bf16_numpy(bits: Bits32) -> Bits32:
    """float32 bits [rows, columns] uint32, rounded to what bf16 can hold, ties to even. NaN is not expected here."""
    kept: Bits32 = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return kept


@jit(twin=_round_bf16_numpy)
def _round_bf16(bits: Bits32) -> Bits32:
    kept = np.empty(bits.shape, np.uint32)
    for r in range(bits.shape[0]):
        row, out = bits[r], kept[r]
        for i in range(row.size):
            x = row[i]
            out[i] = (x + np.uint32(0x7FFF) + (x >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return kept


def _widen_f16_numpy(bits: Bits16) -> Bits32:
    """f16 [rows, columns] uint16 -> float32 bits, uint32 of the same shape. Exact; NaN becomes a quiet one."""
    wide: Bits32 = bits.view(np.float16).astype(np.float32).view(np.uint32)
    wide[(bits & np.uint16(0x7FFF)) > np.uint16(0x7C00)] |= np.uint32(0x400000)  # numpy may or may not, by the CPU
    return wide


SIGN16, MAGNITUDE16, INFINITY16 = np.uint32(0x8000), np.uint32(0x7FFF), np.uint32(0x7C00)
REBIAS = np.float32(2.0**112)  # a half's exponent bias is 15, a float's 127


@jit(twin=_widen_f16_numpy)
def widen_f16(bits: Bits16) -> Bits32:
    wide = np.empty(bits.shape, np.uint32)
    values = wide.view(np.float32)
    for r in range(bits.shape[0]):
        row, out, value = bits[r], wide[r], values[r]
        for i in range(row.size):
            out[i] = (np.uint32(row[i]) & MAGNITUDE16) << np.uint32(13)
        for i in range(row.size):
            value[i] = value[i] * REBIAS  # exact, subnormals included
        for i in range(row.size):
            x = np.uint32(row[i])
            special = np.uint32(0x7F800000) if x & MAGNITUDE16 >= INFINITY16 else np.uint32(0)
            quiet = np.uint32(0x400000) if x & MAGNITUDE16 > INFINITY16 else np.uint32(0)
            out[i] = out[i] | special | quiet | (x & SIGN16) << np.uint32(16)
    return wide


def _narrow_f16_numpy(bits: Bits32) -> Bits16:
    """float32 bits [rows, columns] uint32 -> f16 uint16, ties to even; too large becomes infinity; no NaN here."""
    with np.errstate(over="ignore", under="ignore"):
        narrow_bits: Bits16 = bits.view(np.float32).astype(np.float16).view(np.uint16)
    return narrow_bits


SUBNORMAL_MAGIC = np.uint32(126 << 23)  # 0.5: adding it leaves a half's subnormal, correctly rounded, in the low bits


@jit(twin=_narrow_f16_numpy)
def narrow_f16(bits: Bits32) -> Bits16:
    narrow_bits = np.empty(bits.shape, np.uint16)
    magic = np.empty(1, np.uint32)
    magic[0] = SUBNORMAL_MAGIC
    half = magic.view(np.float32)[0]
    scratch = np.empty(bits.shape[1], np.uint32)
    value = scratch.view(np.float32)
    for r in range(bits.shape[0]):
        row, out = bits[r], narrow_bits[r]
        for i in range(row.size):
            scratch[i] = row[i] & np.uint32(0x7FFFFFFF)
        for i in range(row.size):
            value[i] = value[i] + half
        for i in range(row.size):
            x = row[i] & np.uint32(0x7FFFFFFF)
            normal = (x + np.uint32(0xFFF) + (x >> np.uint32(13) & np.uint32(1)) - np.uint32(112 << 23)) >> np.uint32(
                13
            )
            h = scratch[i] - SUBNORMAL_MAGIC if x < np.uint32(113 << 23) else normal
            h = np.uint32(0x7C00) if x >= np.uint32(0x477FF000) else h  # 65520 and above round to infinity
            out[i] = np.uint16(h | row[i] >> np.uint32(16) & SIGN16)
    return narrow_bits
