"""Tables of the lossless coder: counts made few, frequencies that add up, what the coder looks up, tables as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.jit import jit
from modelzip_cli.kernels.rans import SYMBOLS

Bytes = NDArray[np.uint8]
Counts = NDArray[np.int64]


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
