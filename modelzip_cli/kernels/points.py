"""Grid points of the open range to rANS symbols under contexts, and back: the row passes around the coder.

A point n of a weight in a state with quantizer q is coded as k = (n + q sign n) / 2 of the trellis, or as k = n of the
plain grid (`machine` False). k is cut into r raw low bits, r a matter of the weight's class, and the symbol
k >> r, +127; what lies outside 0..254 is the symbol 255 (`ESCAPE`) and stands in a side list. The table of a weight is
class * 2 + q, or class; its class the sum of those of row and column.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.jit import jit
from modelzip_cli.kernels.rans import Index, Slots, States, Words, _take, vectors

ESCAPE, CENTRE = 255, 127
DAMAGED = -1

Classes = NDArray[np.int32]
LowBits = NDArray[np.int32]  # raw bits of each class


def index_of(
    points: NDArray[Any], rows: Classes, columns: Classes, machine: bool, low_bits: LowBits, known: NDArray[np.uint8]
) -> tuple[Index, NDArray[np.int32], NDArray[np.uint8]]:
    """Return the index uint16 [path, lanes] that rANS codes, the escapes int32 in order, and the raw low bits.

    `points` [path, lanes]; `rows` int32 [path] and `columns` int32 [lanes] are classes; `known` uint8 [tables, 256]:
    1 for symbols that have a frequency; the others escape. Raw bits are uint8, one entry a weight whose class has any.
    """
    index = np.empty(points.shape, np.uint16)
    low = np.empty(points.size if points.size and _has_low_bits(rows, columns, low_bits) else 0, np.uint8)
    escapes = np.empty(points.size // 256 + 64, np.int32)  # of more, a second run gives all
    while True:
        counts = _index_of(np.ascontiguousarray(points), rows, columns, machine, low_bits, known, index, escapes, low)
        if counts[0] <= len(escapes):
            return index, escapes[: counts[0]], low[: counts[1]]
        escapes = np.empty(counts[0], np.int32)


def _has_low_bits(rows: Classes, columns: Classes, low_bits: LowBits) -> bool:
    """Say whether a class between the lowest and the highest has raw bits."""
    return bool(low_bits[rows.min() + columns.min() : rows.max() + columns.max() + 1].any())


def _index_of_numpy(
    points: NDArray[Any],
    rows: Classes,
    columns: Classes,
    machine: bool,
    low_bits: LowBits,
    known: NDArray[np.uint8],
    index: Index,
    escapes: NDArray[np.int32],
    low: NDArray[np.uint8],
) -> tuple[int, int]:
    """Fill `index`, and `escapes` and `low` as far as they reach; return how many of both there are."""
    state = np.zeros(points.shape[1], np.int32)
    found, lows = 0, 0
    for i in range(len(points)):
        n = points[i].astype(np.int32)
        classes = rows[i] + columns
        tables, k = classes, n
        if machine:
            q = state & 1
            k = n + q * np.sign(n) >> 1
            tables = classes * 2 + q
            state = q << 2 | ((k ^ state >> 2) & 1) << 1 | (state ^ state >> 1) & 1
        raw = low_bits[classes]
        bits = (k & (1 << raw) - 1)[raw > 0]
        low[lows : lows + len(bits)] = bits
        lows += len(bits)
        k = k >> raw
        inside = (k >= -CENTRE) & (k < ESCAPE - CENTRE)
        symbol = np.where(inside, k + CENTRE, ESCAPE)
        symbol = np.where(known[tables, symbol] == 1, symbol, ESCAPE)
        index[i] = tables * 256 + symbol
        rare = k[symbol == ESCAPE]
        part = escapes[found : found + len(rare)]
        part[:] = rare[: len(part)]
        found += len(rare)
    return found, lows


@jit(twin=_index_of_numpy)
def _index_of(
    points: NDArray[Any],
    rows: Classes,
    columns: Classes,
    machine: bool,
    low_bits: LowBits,
    known: NDArray[np.uint8],
    index: Index,
    escapes: NDArray[np.int32],
    low: NDArray[np.uint8],
) -> tuple[int, int]:
    i16: Any = np.int16
    i32: Any = np.int32
    u16, u64, lanes, tables = np.uint16, np.uint64, points.shape[1], known.shape[0]
    per_class = i32(512 if machine else 256)
    lowest, highest = np.empty(tables, i16), np.empty(tables, i16)  # of the known k around 0 without a gap
    for table in range(tables):
        first, last = 127, 126
        while last < 254 and known[table, last + 1] == 1:
            last += 1
        while 0 < first <= last and known[table, first - 1] == 1:
            first -= 1
        lowest[table], highest[table] = i16(first - 127), i16(last - 127)
    low_class = i32(rows.min()) if rows.size else i32(0)
    classes = i32(rows.max()) - low_class + 1 if rows.size else 0
    expanded, limits = np.zeros(classes, np.uint8), np.empty((classes, 2, lanes), i16)
    work, base, rare = np.zeros((4, lanes), i16), np.empty(lanes, u16), np.zeros((lanes + 7) // 8 * 8, np.uint8)
    eights = rare.view(np.uint64)
    states, qs, ks, short = work[0], work[1], work[2], work[3]
    for j in range(lanes):
        base[j] = u16(columns[j] * per_class)
    found: Any = 0
    lows: Any = 0
    for i in range(points.shape[0]):
        row, out, a, first_index = points[i], index[i], rows[i], u16(rows[i] * per_class + i32(127))
        least, most = limits[a - low_class, 0], limits[a - low_class, 1]
        if not expanded[a - low_class]:
            expanded[a - low_class] = 1
            for j in range(lanes):
                table = a + columns[j]
                if low_bits[u64(table)] > 0:
                    expanded[a - low_class] = 2
                one, two = (u64(table * 2), u64(table * 2 + 1)) if machine else (u64(table), u64(table))
                least[j], most[j] = i16(max(lowest[one], lowest[two])), i16(min(highest[one], highest[two]))
        if points.itemsize == 2:
            for j in range(lanes):
                short[j] = i16(row[j])
        else:  # far points: the same signs and low bits
            for j in range(lanes):
                n = i32(row[j])
                near = i32(i32(n & i32(16383)) | i32(16384) if n > 0 else i32(n | i32(-16384)) & i32(-16385))
                short[j] = i16(n if n < i32(16384) and n >= i32(-16384) else near)
        if machine:
            for j in range(lanes):
                n, s = short[j], states[j]
                q, h, minus = i16(s & i16(1)), i16(n >> i16(1)), i16(n >> i16(15))
                k = i16(h + i16(i16(i16(n & i16(1)) + minus) & i16(-q)))
                qs[j], ks[j] = i16(q << i16(8)), k
                states[j] = i16(i16(i16(s >> i16(1)) ^ i16(i16(k + k) & i16(2))) ^ i16(q ^ i16(q << i16(2))))
        else:
            for j in range(lanes):
                ks[j] = short[j]
        if expanded[a - low_class] == 2:
            for j in range(lanes):
                raw, k = low_bits[u64(a + columns[j])], i32(ks[j])
                low[u64(lows)] = np.uint8(k & i32(i32(i32(1) << raw) - i32(1)))
                lows += np.int64(raw > 0)
                ks[j] = i16(k >> raw if k < i32(8192) and k >= i32(-8192) else i32(8192))  # far: looked at below
        for j in range(lanes):
            k = ks[j]
            rare[j] = np.uint8(np.uint8(k < least[j]) | np.uint8(k > most[j]))
            out[j] = u16(u16(first_index + base[j]) + u16(u16(k) + u16(qs[j])))
        for eight in range(eights.size):
            if eights[eight]:
                for j in range(eight * 8, eight * 8 + 8):
                    if rare[j]:
                        n, q = i32(row[j]), i32(qs[j] >> i16(8))
                        k = i32(i32(n + i32(q & i32(n > 0)) - i32(q & i32(n < 0))) >> i32(1)) if machine else n
                        table = i32(a + columns[j])
                        k = i32(k >> low_bits[table])
                        table = i32(i32(table + table) + q) if machine else table
                        symbol = i32(k + i32(127)) if k >= i32(-127) and k < i32(128) else i32(255)
                        symbol = symbol if known[table, symbol] == 1 else i32(255)
                        out[j] = u16(table * 256 + symbol)
                        if symbol == i32(255):
                            if found < escapes.size:
                                escapes[found] = k
                            found += 1
    return found, lows


def decode_points(
    words: Words,
    states: States,
    slots: Slots,
    rows: Classes,
    columns: Classes,
    bits: int,
    machine: bool,
    low_bits: LowBits,
    escapes: NDArray[np.int32],
    low: NDArray[np.uint8],
    step: np.float32,
) -> tuple[NDArray[np.float32], int]:
    """Return `n * step` float32 [path, lanes], and how many words were taken; -1: the stream is damaged.

    `slots`: those of the table t begin at t << bits. `escapes` and `low` as `index_of` gives them; all must be used.
    """
    values = np.empty((len(rows), len(columns)), np.float32)
    if not values.size:
        return values, DAMAGED if escapes.size or low.size else 0
    run = found.decode_points if (found := vectors(bits)) else _decode_points
    taken = run(words, states, slots, rows, columns, bits, machine, low_bits, escapes, low, np.float32(step), values)
    return values, taken


def _decode_points_numpy(
    words: Words,
    states: States,
    slots: Slots,
    rows: Classes,
    columns: Classes,
    bits: int,
    machine: bool,
    low_bits: LowBits,
    escapes: NDArray[np.int32],
    low: NDArray[np.uint8],
    step: np.float32,
    values: NDArray[np.float32],
) -> int:
    """Fill `values`."""
    place, lanes, width = 0, len(states), len(columns)
    x, mask = states.astype(np.uint64), np.uint64((1 << bits) - 1)
    state = np.zeros(width, np.int32)
    found, lows = 0, 0
    symbols = np.empty(width, np.int32)
    for i in range(len(rows)):
        classes = rows[i] + columns
        q = state & 1
        offsets = (classes * 2 + q if machine else classes) << bits
        for left in range(0, width, lanes):
            offset = offsets[left : left + lanes]
            part = x[: len(offset)]
            entry = slots[offset + (part & mask).astype(np.int64)].astype(np.uint64)
            symbols[left : left + lanes] = entry & 0xFF
            part = (entry >> 20) * (part >> bits) + (entry >> 8 & 0xFFF)
            x[: len(offset)], place = _take(words, place, part)
            if place < 0:
                return DAMAGED
        k = symbols - CENTRE
        (rare,) = np.nonzero(symbols == ESCAPE)
        if found + len(rare) > len(escapes):
            return DAMAGED
        k[rare] = escapes[found : found + len(rare)]
        found += len(rare)
        raw = low_bits[classes]
        (split,) = np.nonzero(raw)
        if lows + len(split) > len(low):
            return DAMAGED
        k[split] = k[split] << raw[split] | low[lows : lows + len(split)]
        lows += len(split)
        n = 2 * k - q * np.sign(k) if machine else k
        state = q << 2 | ((k ^ state >> 2) & 1) << 1 | (state ^ state >> 1) & 1
        values[i] = n.astype(np.float32) * step
    states[:] = x
    return place if found == len(escapes) and lows == len(low) else DAMAGED


@jit(twin=_decode_points_numpy)
def _decode_points(
    words: Words,
    states: States,
    slots: Slots,
    rows: Classes,
    columns: Classes,
    bits: int,
    machine: bool,
    low_bits: LowBits,
    escapes: NDArray[np.int32],
    low: NDArray[np.uint8],
    step: np.float32,
    values: NDArray[np.float32],
) -> int:
    i16, i32, u64, lanes, width = np.int16, np.int32, np.uint64, states.size, columns.size
    place: Any = 0
    b, mask = np.uint32(bits), np.uint32((1 << bits) - 1)
    to_class = i32(bits + 1 if machine else bits)
    x, machines = states.copy(), np.zeros(width, i16)
    base, offsets, ks = np.empty(width, i32), np.empty(width, i32), np.empty(width, i32)
    symbols = np.empty(width, np.uint8)
    for j in range(width):
        base[j] = i32(columns[j] << to_class)
    least, most = (columns.min(), columns.max()) if width else (i32(0), i32(-1))
    found: Any = 0
    lows: Any = 0
    for i in range(rows.size):
        a, row, even = rows[i], values[i], i32(rows[i] << to_class)
        odd = i32(even + (i32(1) << bits))
        for j in range(width):
            offsets[j] = i32(base[j] + (odd if machines[j] & i16(1) else even))
        for left in range(0, width, lanes):
            out, begin = symbols[left : left + lanes], offsets[left : left + lanes]
            if place + out.size <= words.size:
                for j in range(out.size):
                    y = x[j]
                    entry = slots[np.uint64(begin[j]) + np.uint64(y & mask)]
                    out[j] = np.uint8(entry)
                    y = np.uint32((entry >> np.uint32(20)) * (y >> b) + (entry >> np.uint32(8) & np.uint32(4095)))
                    short = np.uint32(y < np.uint32(65536))
                    word = np.uint32(words[np.uint64(place)]) & np.uint32(-np.int32(short))
                    x[j] = np.uint32(y << np.uint32(short << np.uint32(4)) | word)
                    place += np.int64(short)
            else:  # near the end, or damaged: look before every word
                for j in range(out.size):
                    y = x[j]
                    entry = slots[np.uint64(begin[j]) + np.uint64(y & mask)]
                    out[j] = np.uint8(entry)
                    y = np.uint32((entry >> np.uint32(20)) * (y >> b) + (entry >> np.uint32(8) & np.uint32(4095)))
                    if y < np.uint32(65536):
                        if place >= words.size:
                            return -1
                        y = np.uint32(y << np.uint32(16) | np.uint32(words[np.uint64(place)]))
                        place += 1
                    x[j] = y
        for left in range(0, width, 64):
            part, k = symbols[left : left + 64], ks[left : left + 64]
            rare = np.uint8(0)
            for j in range(part.size):
                k[j] = i32(part[j]) - i32(127)
                rare |= np.uint8(part[j] == np.uint8(255))
            if rare:
                for j in range(part.size):
                    if part[j] == np.uint8(255):
                        if found >= escapes.size:
                            return -1
                        k[j] = escapes[found]
                        found += 1
        fine = False
        for c in range(a + least, a + most + 1):
            fine |= low_bits[u64(c)] > 0
        if fine:
            for j in range(width):
                raw = low_bits[u64(a + columns[j])]
                some = np.int64(raw > 0)
                if lows + some > low.size:
                    return -1
                bits_of = i32(low[u64(min(lows, low.size - 1))]) & i32(-some) if low.size else i32(0)
                ks[j] = i32(i32(ks[j] << raw) | bits_of)
                lows += some
        if machine:
            for j in range(width):
                k, s = ks[j], i32(machines[j])
                q, n = i32(s & i32(1)), i32(k + k)
                machines[j] = i16(i32(s >> i32(1)) ^ i32(n & i32(2)) ^ q ^ i32(q << i32(2)))
                row[j] = np.float32(i32(n - i32(q & i32(k > 0)) + i32(q & i32(k < 0)))) * step
        else:
            for j in range(width):
                row[j] = np.float32(ks[j]) * step
    states[:] = x
    return place if found == escapes.size and lows == low.size else -1
