"""Codes of 1 to 16 bits packed into bytes, least significant bit first, each row padded to a byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.jit import jit

Codes8 = NDArray[np.uint8]
Codes16 = NDArray[np.uint16]


def pack(codes: NDArray[Any], bits: int) -> Codes8:
    """Return uint8 [rows, ceil(columns * bits / 8)] from codes [rows, columns] below 2^bits."""
    rows, columns = codes.shape
    if bits == 8:
        return codes.astype(np.uint8, copy=False)
    if bits == 16:
        return np.ascontiguousarray(codes, np.dtype("<u2")).view(np.uint8).reshape(rows, 2 * columns)
    if bits in (1, 2, 4):
        return _pack_whole(np.ascontiguousarray(codes), bits)
    return _pack_across(np.ascontiguousarray(codes), bits)


def unpack(packed: Codes8, bits: int, columns: int) -> Codes8 | Codes16:
    """Return the codes [rows, columns] of `pack`: uint8 for up to 8 bits, uint16 above."""
    if bits == 8:
        return packed
    if bits == 16:
        return np.ascontiguousarray(packed).view(np.dtype("<u2"))
    if bits in (1, 2, 4):
        return _unpack_whole(np.ascontiguousarray(packed), bits, columns)
    codes = _unpack_across(np.ascontiguousarray(packed), bits, columns)
    return codes.astype(np.uint8) if bits < 8 else codes


def _pack_bits(codes: Codes8 | Codes16, bits: int) -> Codes8:
    """Pack by single bits: the definition."""
    wide = np.ascontiguousarray(codes, np.dtype("<u2")).view(np.uint8).reshape(*codes.shape, 2)
    each = np.unpackbits(wide, axis=2, bitorder="little", count=bits)
    return np.packbits(each.reshape(codes.shape[0], codes.shape[1] * bits), axis=1, bitorder="little")


def _unpack_bits(packed: Codes8, bits: int, columns: int) -> Codes16:
    """Unpack by single bits: the definition."""
    each = np.unpackbits(packed, axis=1, bitorder="little", count=columns * bits).reshape(len(packed), columns, bits)
    wide = np.packbits(each, axis=2, bitorder="little")
    codes = np.zeros((*wide.shape[:2], 2), np.uint8)
    codes[..., : wide.shape[2]] = wide
    return codes.view(np.dtype("<u2"))[..., 0].astype(np.uint16)


def _pack_whole_numpy(codes: Codes8, bits: int) -> Codes8:
    """Pack codes whose width divides 8."""
    rows, columns = codes.shape
    each = 8 // bits
    width = -(-columns // each)
    padded = codes if width * each == columns else np.zeros((rows, width * each), np.uint8)
    if padded is not codes:
        padded[:, :columns] = codes
    packed = padded[:, ::each].copy()
    for k in range(1, each):
        packed |= padded[:, k::each] << np.uint8(k * bits)
    return packed


@jit(twin=_pack_whole_numpy)
def _pack_whole(codes: Codes8, bits: int) -> Codes8:
    rows, columns = codes.shape
    each = 8 // bits
    packed = np.zeros((rows, (columns + each - 1) // each), np.uint8)
    whole = columns // each
    for r in range(rows):
        row, out = codes[r], packed[r]
        if bits == 4:
            for i in range(whole):
                out[i] = row[2 * i] | row[2 * i + 1] << np.uint8(4)
        elif bits == 2:
            for i in range(whole):
                low = row[4 * i] | row[4 * i + 1] << np.uint8(2)
                out[i] = low | row[4 * i + 2] << np.uint8(4) | row[4 * i + 3] << np.uint8(6)
        else:
            for i in range(whole):
                byte = np.uint8(0)
                for k in range(8):
                    byte |= row[8 * i + k] << np.uint8(k)
                out[i] = byte
        for i in range(whole * each, columns):
            out[whole] |= row[i] << np.uint8((i - whole * each) * bits)
    return packed


def _unpack_whole_numpy(packed: Codes8, bits: int, columns: int) -> Codes8:
    """Unpack codes whose width divides 8."""
    each = 8 // bits
    codes = np.empty((packed.shape[0], packed.shape[1] * each), np.uint8)
    for k in range(each):
        codes[:, k::each] = packed >> np.uint8(k * bits) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(codes[:, :columns])


@jit(twin=_unpack_whole_numpy)
def _unpack_whole(packed: Codes8, bits: int, columns: int) -> Codes8:
    each = 8 // bits
    mask = np.uint8((1 << bits) - 1)
    codes = np.empty((packed.shape[0], columns), np.uint8)
    whole = columns // each
    for r in range(packed.shape[0]):
        row, out = packed[r], codes[r]
        if bits == 4:
            for i in range(whole):
                out[2 * i], out[2 * i + 1] = row[i] & np.uint8(15), row[i] >> np.uint8(4)
        else:
            for i in range(whole):
                for k in range(each):
                    out[i * each + k] = row[i] >> np.uint8(k * bits) & mask
        for i in range(whole * each, columns):
            out[i] = row[whole] >> np.uint8((i - whole * each) * bits) & mask
    return codes


@jit(twin=_pack_bits)
def _pack_across(codes: Codes8 | Codes16, bits: int) -> Codes8:
    rows, columns = codes.shape
    packed = np.empty((rows, (columns * bits + 7) // 8), np.uint8)
    for r in range(rows):
        row, out = codes[r], packed[r]
        window, filled, place = np.uint64(0), 0, 0
        for i in range(columns):
            window |= np.uint64(row[i]) << np.uint64(filled)
            filled += bits
            while filled >= 8:
                out[place] = np.uint8(window & np.uint64(255))
                window >>= np.uint64(8)
                filled -= 8
                place += 1
        if filled:
            out[place] = np.uint8(window & np.uint64(255))
    return packed


@jit(twin=_unpack_bits)
def _unpack_across(packed: Codes8, bits: int, columns: int) -> Codes16:
    codes = np.empty((packed.shape[0], columns), np.uint16)
    mask = np.uint64((1 << bits) - 1)
    for r in range(packed.shape[0]):
        row, out = packed[r], codes[r]
        window, filled, place = np.uint64(0), 0, 0
        for i in range(columns):
            while filled < bits:
                window |= np.uint64(row[place]) << np.uint64(filled)
                place += 1
                filled += 8
            out[i] = np.uint16(window & mask)
            window >>= np.uint64(bits)
            filled -= bits
    return codes
