"""What the lossless coder does to every unit of a slab: units to byte planes and back, counts, sums and contexts.

A float becomes a word whose first byte is its exponent, or exponent and upper bits of the mantissa, and whose sign
comes next: files hide dead bits at the low end of the mantissa, and whole bytes of them cost nothing.
"""

from __future__ import annotations

from typing import Any

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


def _grouped_numpy(counts: Counts, shift: int, few: int) -> tuple[int, Counts]:
    """Sum `counts` [contexts, 256] over 2^shift contexts each, and those at both ends into one that has at least `few`.

    Returns which group is the first, and the sums, int64 [groups, 256].
    """
    groups = np.add.reduceat(counts, np.arange(0, len(counts), 1 << shift))
    each = groups.sum(axis=1)
    low = int(np.argmax(np.cumsum(each) >= few))
    high = max(low, len(groups) - 1 - int(np.argmax(np.cumsum(each[::-1]) >= few)))
    found = groups[low : high + 1].copy()
    found[0] += groups[:low].sum(axis=0)
    found[-1] += groups[high + 1 :].sum(axis=0)
    return low, found


@jit(twin=_grouped_numpy)
def grouped(counts: Counts, shift: int, few: int) -> tuple[int, Counts]:
    number = (counts.shape[0] - 1 >> shift) + 1
    each = np.zeros(number, np.int64)
    for c in range(counts.shape[0]):
        row = counts[c]
        for s in range(row.size):
            each[c >> shift] += row[s]
    low, high = 0, number - 1
    below, above = each[low], each[high]
    while below < few and low < number - 1:
        low += 1
        below += each[low]
    while above < few and high > 0:
        high -= 1
        above += each[high]
    if below < few or above < few:  # all together are few
        low, high = 0, number - 1
    high = max(low, high)
    found = np.zeros((high - low + 1, 256), np.int64)
    for c in range(counts.shape[0]):
        row, out = counts[c], found[min(max((c >> shift) - low, 0), high - low)]
        for s in range(row.size):
            out[s] += row[s]
    return low, found


def _normalised_numpy(counts: Counts, rates: Counts) -> tuple[Counts, int]:
    """Frequencies int64 [tables, 256] that add up to 2^11 in each row, about as `counts` [tables, 256], and the bits
    that coding with them takes. `rates` int64 [2^11 + 1]: 1/256 bits of a symbol by its frequency.

    Whatever was counted gets 1 at least and nothing gets all: a row with one symbol gives 1 to the next. What rounding
    leaves is given to, or taken from, the symbols that gain most or lose least by it.
    """
    total = len(rates) - 1
    frequencies = np.zeros(counts.shape, np.int64)
    for row, found in zip(counts, frequencies, strict=True):
        (used,) = np.nonzero(row)
        if len(used) < 2:
            only = int(used[0]) if len(used) else 0
            found[only], found[(only + 1) % SYMBOLS] = total - 1, 1
            continue
        weights, whole = row[used], int(row.sum())
        each = np.clip((weights * total + whole // 2) // whole, 1, total - 1)
        while (lacking := total - int(each.sum())) != 0:
            if lacking > 0:
                each[np.argmax(weights / each)] += 1
            else:
                each[np.argmin(np.where(each > 1, weights / each, np.inf))] -= 1
        found[used] = each
    return frequencies, int((counts * rates[frequencies]).sum()) >> 8


@jit(twin=_normalised_numpy)
def normalised(counts: Counts, rates: Counts) -> tuple[Counts, int]:
    total = rates.size - 1
    frequencies = np.zeros(counts.shape, np.int64)
    used, each = np.empty(256, np.int64), np.empty(256, np.int64)
    ratio = np.empty(256, np.float64)
    cost = 0
    for t in range(counts.shape[0]):
        row, found = counts[t], frequencies[t]
        number, whole = 0, 0
        for s in range(row.size):
            if row[s] > 0:
                used[number] = s
                number += 1
                whole += row[s]
        if number < 2:
            only = used[0] if number else 0
            found[only] = total - 1
            found[(only + 1) % 256] = 1
            cost += row[only] * rates[total - 1]
            continue
        lacking = total
        for k in range(number):
            each[k] = min(max((row[used[k]] * total + whole // 2) // whole, 1), total - 1)
            ratio[k] = row[used[k]] / each[k]
            lacking -= each[k]
        while lacking != 0:
            place = -1
            for k in range(number):
                if lacking > 0:
                    if place < 0 or ratio[k] > ratio[place]:
                        place = k
                elif each[k] > 1 and (place < 0 or ratio[k] < ratio[place]):
                    place = k
            step = 1 if lacking > 0 else -1
            each[place] += step
            ratio[place] = row[used[place]] / each[place]
            lacking -= step
        for k in range(number):
            found[used[k]] = each[k]
            cost += row[used[k]] * rates[each[k]]
    return frequencies, cost >> 8


def _slots_numpy(frequencies: Counts) -> NDArray[np.uint32]:
    """What the decoder looks up: frequency << 20 | offset in the interval << 8 | symbol, one table after the other."""
    symbols = np.tile(np.arange(SYMBOLS), len(frequencies))
    each = frequencies.reshape(-1)
    starts = np.cumsum(each) - each
    offsets = np.arange(int(each.sum())) - np.repeat(starts, each)
    return (np.repeat(each, each) << 20 | offsets << 8 | np.repeat(symbols, each)).astype(np.uint32)


@jit(twin=_slots_numpy)
def slots(frequencies: Counts) -> NDArray[np.uint32]:
    found = np.empty(frequencies.sum(), np.uint32)
    begin = 0
    for t in range(frequencies.shape[0]):
        row = frequencies[t]
        for s in range(row.size):
            part = found[begin : begin + row[s]]
            entry = np.uint32(np.uint32(row[s]) << np.uint32(20) | np.uint32(s))
            for k in range(part.size):
                part[k] = np.uint32(entry + (np.uint32(k) << np.uint32(8)))
            begin += row[s]
    return found


def _intervals_numpy(frequencies: Counts) -> NDArray[np.uint32]:
    """What the encoder looks up: start << 16 | frequency of each symbol, one table after the other."""
    starts = np.cumsum(frequencies, axis=1) - frequencies
    return (starts << 16 | frequencies).astype(np.uint32).reshape(-1)


@jit(twin=_intervals_numpy)
def intervals(frequencies: Counts) -> NDArray[np.uint32]:
    found = np.empty(frequencies.size, np.uint32)
    for t in range(frequencies.shape[0]):
        row = frequencies[t]
        start = np.uint32(0)
        for s in range(256):
            frequency = np.uint32(row[s])
            found[256 * t + s] = np.uint32(start << np.uint32(16)) | frequency
            start = np.uint32(start + frequency)
    return found


def _write_tables_numpy(frequencies: Counts) -> Bytes:
    """The bytes of `frequencies` [tables, 256], all below 2^14: of each table the first symbol used, how many there are
    up to the last one, less one, and their frequencies; a number above 127 takes two bytes, the lower 7 bits with the
    top bit set first."""
    out = bytearray()
    for row in frequencies:
        (used,) = np.nonzero(row)
        first, last = int(used[0]), int(used[-1])
        for number in (first, last - first, *row[first : last + 1].tolist()):
            out += bytes((number & 127 | 128, number >> 7)) if number > 127 else bytes((number,))
    return np.frombuffer(out, np.uint8)


@jit(twin=_write_tables_numpy)
def write_tables(frequencies: Counts) -> Bytes:
    out = np.empty(frequencies.shape[0] * 516, np.uint8)
    place = 0
    for t in range(frequencies.shape[0]):
        row = frequencies[t]
        first, last = 255, 0
        for s in range(256):
            if row[s] > 0:
                first, last = min(first, s), s
        for k in range(first - 2, last + 1):
            number = row[k] if k >= first else (first if k == first - 2 else last - first)
            if number > 127:
                out[place] = np.uint8(number & 127 | 128)
                place += 1
                number >>= 7
            out[place] = np.uint8(number)
            place += 1
    return out[:place].copy()


def _read_tables_numpy(data: Bytes, place: int, frequencies: Counts, total: int) -> int:
    """Fill `frequencies` [tables, 256], zeros, with what `write_tables` wrote, from byte `place` on; where it ends.

    -1: it does not end, a number is longer than it needs to be, a symbol is above 255, a frequency is `total`, or the
    frequencies of a table do not add up to it.
    """
    for row in frequencies:
        numbers: list[int] = []
        while len(numbers) < 2 or len(numbers) < numbers[1] + 3:
            if place >= len(data):
                return -1
            number = int(data[place])
            place += 1
            if number > 127:
                if place >= len(data) or not 0 < data[place] < 128:
                    return -1
                number = number & 127 | int(data[place]) << 7
                place += 1
            numbers.append(number)
            if len(numbers) == 2 and sum(numbers) > 255:
                return -1
        row[numbers[0] : numbers[0] + numbers[1] + 1] = numbers[2:]
        if row.sum() != total or row.max() == total:
            return -1
    return place


@jit(twin=_read_tables_numpy)
def read_tables(data: Bytes, place: int, frequencies: Counts, total: int) -> int:
    for t in range(frequencies.shape[0]):
        row = frequencies[t]
        numbers, left = 0, total
        count: Any = 2
        first: Any = 0
        while numbers < count:
            if place >= data.size:
                return -1
            number = np.int64(data[place])
            place += 1
            if number > 127:
                if place >= data.size or data[place] == 0 or data[place] > 127:
                    return -1
                number = number & 127 | np.int64(data[place]) << 7
                place += 1
            if numbers == 0:
                first = number
            elif numbers == 1:
                count = number + 3
                if first + number > 255:
                    return -1
            else:
                row[first + numbers - 2] = number
                left -= int(number)
                if number == total:
                    return -1
            numbers += 1
        if left != 0:
            return -1
    return place


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
