"""What the lossless coder does to every unit of a slab: units to byte planes and back, counts, sums and contexts.

A float becomes a word whose first byte is its exponent, or exponent and upper bits of the mantissa, and whose sign
comes next: files hide dead bits at the low end of the mantissa, and whole bytes of them cost nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.jit import jit
from modelzip_cli.kernels.rans import SYMBOLS

Bytes = NDArray[np.uint8]
Bits16 = NDArray[np.uint16]
Bits32 = NDArray[np.uint32]
Counts = NDArray[np.int64]


def _split16_numpy(bits: Bits16, planes: Bytes) -> None:
    """Fill `planes` uint8 [2, n] from `bits` [n]: bits 14 to 7, and bit 15 over bits 6 to 0."""
    planes[0] = bits >> 7 & 0xFF
    planes[1] = bits >> 8 & 0x80 | bits & 0x7F


@jit(twin=_split16_numpy)
def split16(bits: Bits16, planes: Bytes) -> None:
    first, second = planes[0], planes[1]
    for i in range(bits.size):
        x = bits[i]
        first[i] = np.uint8(x >> np.uint16(7))
        second[i] = np.uint8((x >> np.uint16(8)) & np.uint16(0x80) | x & np.uint16(0x7F))


def _merge16_numpy(first: Bytes, second: Bytes) -> Bits16:
    """Return the bits [n] that `split16` was given."""
    low = second.astype(np.uint16)
    return np.asarray((low & 0x80) << 8 | first.astype(np.uint16) << 7 | low & 0x7F, np.uint16)


@jit(twin=_merge16_numpy)
def merge16(first: Bytes, second: Bytes) -> Bits16:
    bits = np.empty(first.size, np.uint16)
    for i in range(first.size):
        low = np.uint16(second[i])
        sign = np.uint16((low & np.uint16(0x80)) << np.uint16(8))
        bits[i] = np.uint16(sign | np.uint16(np.uint16(first[i]) << np.uint16(7)) | low & np.uint16(0x7F))
    return bits


def _split32_numpy(bits: Bits32, planes: Bytes) -> None:
    """Fill `planes` uint8 [4, n] from `bits` [n]: bits 30 to 23, bit 31 over bits 22 to 16, and the two lower bytes."""
    planes[0] = bits >> 23 & 0xFF
    planes[1] = bits >> 24 & 0x80 | bits >> 16 & 0x7F
    planes[2] = bits >> 8 & 0xFF
    planes[3] = bits & 0xFF


@jit(twin=_split32_numpy)
def split32(bits: Bits32, planes: Bytes) -> None:
    first, second, third, fourth = planes[0], planes[1], planes[2], planes[3]
    for i in range(bits.size):
        x = bits[i]
        high = np.uint32(x >> np.uint32(16))
        first[i] = np.uint8(x >> np.uint32(23))
        second[i] = np.uint8((high >> np.uint32(8)) & np.uint32(0x80) | high & np.uint32(0x7F))
        third[i] = np.uint8(x >> np.uint32(8))
        fourth[i] = np.uint8(x)


def _merge32_numpy(first: Bytes, second: Bytes, third: Bytes, fourth: Bytes) -> Bits32:
    """Return the bits [n] that `split32` was given."""
    high = second.astype(np.uint32)
    upper = (high & 0x80) << 24 | first.astype(np.uint32) << 23 | (high & 0x7F) << 16
    return np.asarray(upper | third.astype(np.uint32) << 8 | fourth, np.uint32)


@jit(twin=_merge32_numpy)
def merge32(first: Bytes, second: Bytes, third: Bytes, fourth: Bytes) -> Bits32:
    bits = np.empty(first.size, np.uint32)
    for i in range(first.size):
        high = np.uint32(second[i])
        sign = np.uint32((high & np.uint32(0x80)) << np.uint32(24))
        upper = np.uint32(np.uint32(first[i]) << np.uint32(23) | (high & np.uint32(0x7F)) << np.uint32(16))
        bits[i] = np.uint32(sign | upper | np.uint32(np.uint32(third[i]) << np.uint32(8)) | np.uint32(fourth[i]))
    return bits


def _sums_numpy(plane: Bytes) -> tuple[Counts, Counts]:
    """Sums of `plane` [rows, width] along rows, int64 [rows], and along columns, [width]."""
    return plane.sum(axis=1, dtype=np.int64), plane.sum(axis=0, dtype=np.int64)


@jit(twin=_sums_numpy)
def sums(plane: Bytes) -> tuple[Counts, Counts]:
    along_rows, along_columns = np.zeros(plane.shape[0], np.int64), np.zeros(plane.shape[1], np.int64)
    part = np.zeros(plane.shape[1], np.uint16)  # of at most 256 rows or columns: 16 bits hold it, and make 16 lanes
    for r in range(plane.shape[0]):
        row = plane[r]
        for left in range(0, row.size, 256):
            piece = row[left : left + 256]
            total = np.uint16(0)
            for i in range(piece.size):
                total = np.uint16(total + np.uint16(piece[i]))
            along_rows[r] += np.int64(total)
        for i in range(row.size):
            part[i] = np.uint16(part[i] + np.uint16(row[i]))
        if r % 256 == 255 or r == plane.shape[0] - 1:
            for i in range(part.size):
                along_columns[i] += np.int64(part[i])
            part[:] = np.uint16(0)
    return along_rows, along_columns


def _survey16_numpy(bits: Bits16, width: int, planes: Bytes) -> tuple[Counts, Counts, int]:
    """`split16` and `sums` of the first plane as rows of `width`, which fit, and its smallest byte."""
    _split16_numpy(bits, planes)
    return *_sums_numpy(planes[0].reshape(-1, width)), int(planes[0].min())


@jit(twin=_survey16_numpy)
def survey16(bits: Bits16, width: int, planes: Bytes) -> tuple[Counts, Counts, int]:
    rows = bits.size // width
    first, second = planes[0], planes[1]
    along_rows, along_columns = np.zeros(rows, np.int64), np.zeros(width, np.int64)
    part = np.zeros(width, np.uint16)  # of at most 256 rows or columns: 16 bits hold it, and make 16 lanes
    least = np.uint8(255)
    for r in range(rows):
        begin = r * width
        for i in range(width):
            x = bits[begin + i]
            first[begin + i] = np.uint8(x >> np.uint16(7))
            second[begin + i] = np.uint8((x >> np.uint16(8)) & np.uint16(0x80) | x & np.uint16(0x7F))
        row = first[begin : begin + width]
        for left in range(0, width, 256):
            piece = row[left : left + 256]
            total = np.uint16(0)
            for i in range(piece.size):
                total = np.uint16(total + np.uint16(piece[i]))
            along_rows[r] += np.int64(total)
        for i in range(width):
            part[i] = np.uint16(part[i] + np.uint16(row[i]))
        for i in range(width):
            least = min(least, row[i])
        if r % 256 == 255 or r == rows - 1:
            for i in range(width):
                along_columns[i] += np.int64(part[i])
            part[:] = np.uint16(0)
    return along_rows, along_columns, int(least)


def _zeros_numpy(plane: Bytes) -> Counts:
    """How many bytes of each row of `plane` [rows, width] are 0, int64 [rows]."""
    return np.asarray(np.count_nonzero(plane == 0, axis=1), np.int64)


@jit(twin=_zeros_numpy)
def zeros(plane: Bytes) -> Counts:
    found = np.zeros(plane.shape[0], np.int64)
    for r in range(plane.shape[0]):
        row = plane[r]
        for left in range(0, row.size, 128):
            piece = row[left : left + 128]
            number = np.uint8(0)
            for i in range(piece.size):
                number = np.uint8(number + np.uint8(piece[i] == np.uint8(0)))
            found[r] += np.int64(number)
    return found


def _levels_numpy(sums: Counts, used: Counts, octave: int, length: int, most: int) -> tuple[bool, Bytes]:
    """Classes uint8 [n] of rows (or columns) of `length` exponents by their mean, and whether they are worth it.

    `sums` and `used` are int64 [n]: the sum of the exponents of each and how many are not 0. `octave`: by how much they
    grow when a weight doubles. A class is a quarter of an octave, of short rows half a one or a whole one: 0 to
    `most` - 1, in quarters, from the mean below which one row in 64 lies. The means of rows of one scale vary by 2.7
    octaves squared over `length`; each octave squared above that saves about 0.6 bits a weight, and a class costs
    about 3 bits a row.
    """
    present = used > 0
    number = int(np.count_nonzero(present))
    if number < 2:
        return False, np.zeros(len(sums), np.uint8)
    mean = 64 * sums[present] // (used[present] * octave)
    away = mean - mean.sum() // number
    step = 16 if length >= 64 else 32 if length >= 16 else 64
    level = (mean + step // 2) // step * (step // 16)
    base = np.sort(level)[number // 64]
    classes = np.zeros(len(sums), np.uint8)
    classes[present] = np.clip(level - base, 0, most - 1)
    return bool((away * away).sum() // number * length >= 8 * 64 * 64), classes


@jit(twin=_levels_numpy)
def levels(sums: Counts, used: Counts, octave: int, length: int, most: int) -> tuple[bool, Bytes]:
    step, scale = (16, 1) if length >= 64 else ((32, 2) if length >= 16 else (64, 4))
    classes = np.zeros(sums.size, np.uint8)
    mean = np.zeros(sums.size, np.int64)
    found = np.zeros(2048, np.int64)  # a mean is below 256 octaves
    number, total, spread = 0, 0, 0
    for i in range(sums.size):
        if used[i] > 0:
            mean[i] = 64 * sums[i] // (used[i] * octave)
            number += 1
            total += mean[i]
            found[(mean[i] + step // 2) // step * scale] += 1
    if number < 2:
        return False, classes
    base, below = 0, found[0]
    while below <= number // 64:
        base += 1
        below += found[base]
    for i in range(sums.size):
        if used[i] > 0:
            away = mean[i] - total // number
            spread += away * away
            classes[i] = np.uint8(min(max((mean[i] + step // 2) // step * scale - base, 0), most - 1))
    return spread // number * length >= 32768, classes


def _count_numpy(symbols: Bytes) -> Counts:
    """How often each byte comes up in `symbols` [n], int64 [256]."""
    return np.bincount(symbols, minlength=SYMBOLS).astype(np.int64)


@jit(twin=_count_numpy)
def count(symbols: Bytes) -> Counts:
    counts = np.zeros(256, np.int64)
    size = 0
    if symbols.size >= 1 << 17:  # by pairs, each as one number: half as many, and seldom the same one twice in a row
        size = symbols.size // 2 * 2
        pairs = symbols[:size].view(np.uint16)
        found = np.zeros((256, 256), np.int32)
        flat = found.reshape(65536)
        for i in range(pairs.size):
            flat[pairs[i]] += np.int32(1)
        for s in range(256):
            row = found[s]
            total = np.int32(0)
            for k in range(256):
                total += row[k]
            counts[s] += np.int64(total)
            for k in range(256):
                counts[k] += np.int64(row[k])
    for i in range(size, symbols.size):
        counts[symbols[i]] += 1
    return counts


def _tally_numpy(plane: Bytes, row_class: Bytes, column_class: Bytes, contexts: int) -> Counts:
    """How often each byte of `plane` [rows, width] comes up under each context, row class + column class: int64
    [contexts, 256]. At most 64 contexts."""
    index = (row_class.astype(np.uint16)[:, None] + column_class.astype(np.uint16)) << np.uint16(8) | plane
    return np.bincount(index.reshape(-1), minlength=contexts * SYMBOLS).astype(np.int64).reshape(-1, SYMBOLS)


@jit(twin=_tally_numpy)
def tally(plane: Bytes, row_class: Bytes, column_class: Bytes, contexts: int) -> Counts:
    # Two rows of one class at a time, whose bytes, where they lie in a window of 32, are counted as one number: half as
    # many, and seldom the same one twice in a row
    rows, width = plane.shape
    counts, pairs = np.zeros((contexts, 256), np.int32), np.zeros((contexts, 32, 32), np.int32)
    counts_of, pairs_of = counts.reshape(contexts * 256), pairs.reshape(contexts * 1024)
    sample = np.zeros(257, np.int64)
    flat = plane.reshape(rows * width)
    for i in range(0, flat.size, 251):
        sample[np.int64(flat[i]) + 1] += 1
    for i in range(256):
        sample[i + 1] += sample[i]
    low, last = 0, 0  # the first and the last window that have most: take the one between
    for i in range(225):
        more = sample[i + 32] - sample[i] - sample[low + 32] + sample[low]
        low = i if more > 0 else low
        last = i if more >= 0 else last
    low = (low + last) // 2
    u8, u16, five, ten, least = np.uint8, np.uint16, np.uint16(5), np.uint16(10), np.uint8(low)
    waiting = np.full(256, -1, np.int64)  # a row of each class that has no second one yet
    base, found = np.empty(width, np.uint16), np.empty(width, np.uint16)
    for j in range(width):
        base[j] = u16(u16(column_class[j]) << ten)
    for r in range(rows):
        number = row_class[r]
        other = waiting[number]
        waiting[number] = r if other < 0 else -1
        if other < 0:
            continue
        one, two, context = plane[other], plane[r], u16(u16(number) << ten)
        outside = u8(0)
        for j in range(width):
            first, second = u8(one[j] - least), u8(two[j] - least)
            outside = u8(outside | u8(first | second))
            found[j] = u16(u16(base[j] + context) + u16(u16(u16(first) << five) + u16(second)))
        if outside < u8(32):
            for j in range(width):
                pairs_of[found[j]] += np.int32(1)
        else:
            for j in range(width):
                begin = np.int64(number) + np.int64(column_class[j]) << 8
                counts_of[begin + np.int64(one[j])] += np.int32(1)
                counts_of[begin + np.int64(two[j])] += np.int32(1)
    for number in range(256):
        if waiting[number] >= 0:
            row = plane[waiting[number]]
            for j in range(width):
                counts_of[(np.int64(number) + np.int64(column_class[j]) << 8) + np.int64(row[j])] += np.int32(1)
    for c in range(contexts):
        out = counts[c, low : low + 32]
        for k in range(32):
            line = pairs[c, k]
            total = np.int32(0)
            for i in range(32):
                total += line[i]
            if total:
                out[k] += total
                for i in range(32):
                    out[i] += line[i]
    return counts.astype(np.int64)


def _places_numpy(
    row_class: Counts, column_class: Bytes, shift: int, low: int, tables: int, bits: int, found: NDArray[np.int32]
) -> None:
    """Fill `found` int32 [rows, width] with where the table of each byte begins:
    clip((row class + column class >> shift) - low, 0, tables - 1) * 2^bits."""
    context = row_class[:, None] + column_class
    found[:] = np.clip((context >> shift) - low, 0, tables - 1) << bits


@jit(twin=_places_numpy)
def places(
    row_class: Counts, column_class: Bytes, shift: int, low: int, tables: int, bits: int, found: NDArray[np.int32]
) -> None:
    for r in range(row_class.size):
        out, base = found[r], row_class[r]
        for j in range(out.size):
            out[j] = min(max((base + np.int64(column_class[j]) >> shift) - low, 0), tables - 1) << bits


def _used_numpy(planes: Bytes) -> Bytes:
    """1 for each word of `planes` [bytes of a word, n] that is not 0, else 0, uint8 [n]."""
    found: Bytes = np.asarray(planes.any(axis=0)).view(np.uint8)
    return found


@jit(twin=_used_numpy)
def used(planes: Bytes) -> Bytes:
    found = np.zeros(planes.shape[1], np.uint8)
    for place in range(planes.shape[0]):
        plane = planes[place]
        for i in range(found.size):
            found[i] = np.uint8(found[i] | plane[i])
    for i in range(found.size):
        found[i] = np.uint8(found[i] != np.uint8(0))
    return found


def _with_other_numpy(first: Bytes, used: Bytes, other: np.uint8) -> Bytes:
    """`first` [n] with `other` where it is 0 and `used` [n], 0 or 1, is not."""
    return np.where((first == 0) & (used != 0), other, first)


@jit(twin=_with_other_numpy)
def with_other(first: Bytes, used: Bytes, other: np.uint8) -> Bytes:
    symbols = np.empty(first.size, np.uint8)
    for i in range(first.size):  # times 0 or 1, not a choice: it is not vectorised
        symbols[i] = np.uint8(first[i] + other * np.uint8(used[i] * np.uint8(first[i] == np.uint8(0))))
    return symbols


def _without_zeros_numpy(symbols: Bytes, plane: Bytes) -> Bytes:
    """Return the bytes of `plane` [n] where `symbols` [n] is not 0."""
    kept: Bytes = plane[symbols != 0]
    return kept


@jit(twin=_without_zeros_numpy)
def without_zeros(symbols: Bytes, plane: Bytes) -> Bytes:
    kept = np.empty(plane.size + 1, np.uint8)
    place = 0
    for i in range(plane.size):
        kept[place] = plane[i]
        place += 1 if symbols[i] != np.uint8(0) else 0
    return kept[:place].copy()


def _with_zeros_numpy(symbols: Bytes, kept: Bytes) -> Bytes:
    """Return uint8 [n] that holds `kept` where `symbols` [n] is not 0, and 0 elsewhere."""
    plane = np.zeros(len(symbols), np.uint8)
    plane[symbols != 0] = kept
    return plane


@jit(twin=_with_zeros_numpy)
def with_zeros(symbols: Bytes, kept: Bytes) -> Bytes:
    plane = np.zeros(symbols.size, np.uint8)
    place = 0
    for i in range(plane.size):
        if symbols[i] != np.uint8(0):
            plane[i] = kept[place]
            place += 1
    return plane
