"""Static range asymmetric numeral systems (rANS) with interleaved lanes: symbols to 16-bit words and back.

Source: Duda, arXiv:1311.2540; Giesen, Interleaved entropy coders, arXiv:1402.3392. A lane is a 32-bit state; weight
(i, j) of a matrix [rows, width] belongs to lane j mod 32. Decoding goes row by row, from left to right. A state `x`
with the table of a symbol of frequency f that begins at c, frequencies adding up to 2^bits:

    slot = x mod 2^bits;  x = f * floor(x / 2^bits) + slot - c;  if x < 2^16: x = x * 2^16 + next word

All lanes take their words from one stream. Every state begins and ends at 2^16 where encoding begins, which is how a
decoder knows that it has read what was written. Encoding runs backwards.

The kernels here do a lane at a time; `vector` has them with eight, which `vectors` hands out where it can. The bytes
are the same.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels import jit as choice
from modelzip_cli.kernels.jit import jit

LANES = 32
LOWEST = 1 << 16  # of a state
SYMBOLS = 256

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint16]
States = NDArray[np.uint32]
Index = NDArray[np.uint16]  # table * 256 + symbol
Symbols = NDArray[np.uint8] | Index
Lines = NDArray[np.int32]  # where tables begin, for each column; one line for all rows that are alike
Slots = NDArray[np.uint32]  # freq << 20 | (slot - start) << 8 | symbol, 2^bits entries a table


def vectors(bits: int) -> ModuleType | None:
    """The module `vector`, if this run is compiled for a CPU that has its instructions.

    Its quotients are exact from 11 bits on.
    """
    if bits < 11 or not choice.runs_compiled():
        return None
    from modelzip_cli.kernels import vector  # imports numba

    return vector if vector.AVAILABLE else None


def encode(
    symbols: Symbols,
    intervals: NDArray[np.uint32],
    bits: int,
    lines: Lines | None = None,
    line_of: NDArray[np.intp] | None = None,
    room: Words | None = None,
) -> tuple[States, Words]:
    """Return the states, uint32 [min(32, width)], and words, uint16, of `symbols` [rows, width].

    `intervals` uint32: start << 16 | frequency of each symbol of each table. `lines` int32 [lines, width] and `line_of`
    [rows]: where the tables of a row begin in it; None: `symbols` are themselves places in it. Every symbol must have a
    frequency of 1 to 2^bits - 1. `room`: memory for the words, of `room_for` entries.
    """
    rows, width = symbols.shape
    states = np.full(min(LANES, width), LOWEST, np.uint32)
    if room is None:
        room = np.empty(room_for(symbols.size, bits), np.uint16)
    if not symbols.size:
        return states, room[:0]
    if lines is None or line_of is None:
        lines, line_of = np.zeros((1, width), np.int32), np.zeros(rows, np.intp)
    run = found.encode if (found := vectors(bits)) else _encode
    given = cast("Symbols", np.ascontiguousarray(symbols))
    begin = run(given, lines, line_of, intervals, bits, states, room)
    return states, room[begin:]


def room_for(symbols: int, bits: int) -> int:
    """How many words an encoder of so many symbols must have room for: a symbol takes at most `bits` bits."""
    return symbols * bits // 16 + LANES + 1


def _encode_numpy(
    symbols: Symbols,
    lines: Lines,
    line_of: NDArray[np.intp],
    intervals: NDArray[np.uint32],
    bits: int,
    states: States,
    room: Words,
) -> int:
    """Update `states`, fill `room` from its end and return where the words begin."""
    place, lanes = len(room), len(states)
    x = states.astype(np.uint64)
    for i in reversed(range(len(symbols))):
        found = intervals[symbols[i].astype(np.int64) + lines[line_of[i]]].astype(np.uint64)
        freq, start = found & 0xFFFF, found >> 16
        for left in reversed(range(0, symbols.shape[1], lanes)):
            f, c = freq[left : left + lanes], start[left : left + lanes]
            part = x[: len(f)]
            full = part >= f << (32 - bits)
            words = part[full] & 0xFFFF
            room[place - len(words) : place] = words
            place -= len(words)
            part = np.where(full, part >> 16, part)
            x[: len(f)] = (part // f << bits) + part % f + c
    states[:] = x
    return int(place)


@jit(twin=_encode_numpy)
def _encode(
    symbols: Symbols,
    lines: Lines,
    line_of: NDArray[np.intp],
    intervals: NDArray[np.uint32],
    bits: int,
    states: States,
    room: Words,
) -> int:
    lanes, b, down = states.size, np.uint32(bits), np.uint32(32 - bits)
    place: Any = room.size
    work = np.empty(64, np.uint32)
    intervals_of, x = work[:32], work[32:]
    x[:lanes] = states
    for back in range(symbols.shape[0] - 1, -1, -1):
        row, line = symbols[back], lines[line_of[back]]
        left = (row.size - 1) // lanes * lanes
        size = row.size - left
        while left >= 0:
            for j in range(size):
                intervals_of[j] = intervals[np.uint64(row[left + j]) + np.uint64(line[left + j])]
            for j in range(size - 1, -1, -1):
                y, u = x[j], np.uint64(place - 1)
                room[u] = np.uint16(y)  # stays if the state is full, is written over if not: a branch would cost more
                full = np.uint32(y >= np.uint32(np.uint32(intervals_of[j] & np.uint32(0xFFFF)) << down))
                place -= np.int64(full)
                x[j] = np.uint32(y >> np.uint32(full << np.uint32(4)))
            for j in range(size):
                found, y = intervals_of[j], x[j]
                f, c = np.uint32(found & np.uint32(0xFFFF)), np.uint32(found >> np.uint32(16))
                q = np.uint32((np.float64(y) + 0.5) / np.float64(f))  # exact: 52 bits hold 32 and 12 more
                x[j] = np.uint32(np.uint32(q << b) + np.uint32(y - np.uint32(q * f)) + c)
            left -= lanes
            size = lanes
    states[:] = x[:lanes]
    return int(place)


def decode_symbols(
    words: Words,
    states: States,
    slots: Slots,
    lines: Lines,
    bits: int,
    line_of: NDArray[np.intp] | None = None,
    symbols: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.uint8], int]:
    """Return the symbols uint8 [rows, width] and how many words were taken; -1: the stream is damaged.

    `lines` int32 [lines, width]: where the tables of a row begin in `slots`; `line_of` [rows]: which of them a row has,
    None: each its own. `states` end as they were when encoding began. `symbols`: where to put what is found.
    """
    if line_of is None:
        line_of = np.arange(len(lines))
    if symbols is None:
        symbols = np.empty((len(line_of), lines.shape[1]), np.uint8)
    if not symbols.size:
        return symbols, 0
    run = found.decode_symbols if (found := vectors(bits)) else _decode_symbols
    taken = run(words, states, slots, np.ascontiguousarray(lines), line_of, bits, symbols)
    return symbols, taken


def _take(words: Words, place: int, x: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], int]:
    """Refill the states that need a word; -1 when there are none left."""
    short = x < LOWEST
    count = int(np.count_nonzero(short))
    if place + count > len(words):
        return x, -1
    x[short] = x[short] << 16 | words[place : place + count]
    return x, place + count


def _decode_symbols_numpy(
    words: Words,
    states: States,
    slots: Slots,
    lines: Lines,
    line_of: NDArray[np.intp],
    bits: int,
    symbols: NDArray[np.uint8],
) -> int:
    """Fill `symbols`."""
    place, lanes = 0, len(states)
    x, mask = states.astype(np.uint64), np.uint64((1 << bits) - 1)
    for i in range(len(symbols)):
        for left in range(0, symbols.shape[1], lanes):
            offset = lines[line_of[i], left : left + lanes]
            part = x[: len(offset)]
            found = slots[offset + (part & mask).astype(np.int64)].astype(np.uint64)
            symbols[i, left : left + lanes] = found & 0xFF
            part = (found >> 20) * (part >> bits) + (found >> 8 & 0xFFF)
            x[: len(offset)], place = _take(words, place, part)
            if place < 0:
                return -1
    states[:] = x
    return int(place)


@jit(twin=_decode_symbols_numpy)
def _decode_symbols(
    words: Words,
    states: States,
    slots: Slots,
    lines: Lines,
    line_of: NDArray[np.intp],
    bits: int,
    symbols: NDArray[np.uint8],
) -> int:
    lanes, b, mask = states.size, np.uint32(bits), np.uint32((1 << bits) - 1)
    place: Any = 0
    x = states.copy()
    for i in range(symbols.shape[0]):
        row, offset = symbols[i], lines[line_of[i]]
        for left in range(0, row.size, lanes):
            out, begin = row[left : left + lanes], offset[left : left + lanes]
            if place + out.size <= words.size:
                for j in range(out.size):
                    y = x[j]
                    found = slots[np.uint64(begin[j]) + np.uint64(y & mask)]
                    out[j] = np.uint8(found)
                    y = np.uint32((found >> np.uint32(20)) * (y >> b) + (found >> np.uint32(8) & np.uint32(4095)))
                    short = np.uint32(y < np.uint32(65536))
                    word = np.uint32(words[np.uint64(place)]) & np.uint32(-np.int32(short))
                    x[j] = np.uint32(y << np.uint32(short << np.uint32(4)) | word)
                    place += np.int64(short)
            else:  # near the end, or damaged: look before every word
                for j in range(out.size):
                    y = x[j]
                    found = slots[np.uint64(begin[j]) + np.uint64(y & mask)]
                    out[j] = np.uint8(found)
                    y = np.uint32((found >> np.uint32(20)) * (y >> b) + (found >> np.uint32(8) & np.uint32(4095)))
                    if y < np.uint32(65536):
                        if place >= words.size:
                            return -1
                        y = np.uint32(y << np.uint32(16) | np.uint32(words[np.uint64(place)]))
                        place += 1
                    x[j] = y
    states[:] = x
    return int(place)


def decode_units16(
    words: Words, states: States, slots: Slots, lines: Lines, bits: int, line_of: NDArray[np.intp], second: Bytes
) -> tuple[Words | None, int]:
    """Decode the first bytes of words of 16 bits and merge them with the `second` ones, uint8 [n], while they are at
    hand (`planes.merge16`): uint16 [n], and how many words of the stream were taken.

    -1: the stream is damaged, or what fills up the last row differs from the symbol before. None: this CPU, or this
    run, has no such kernel.
    """
    if not (found := vectors(bits)):
        return None, 0
    units = np.empty(len(second), np.uint16)
    taken = found.decode_units16(words, states, slots, np.ascontiguousarray(lines), line_of, bits, second, units)
    return units, taken


def _decode_units16_numpy(
    words: Words,
    states: States,
    slots: Slots,
    lines: Lines,
    line_of: NDArray[np.intp],
    bits: int,
    second: Bytes,
    units: Words,
) -> int:
    """Fill `units`."""
    symbols = np.empty((len(line_of), lines.shape[1]), np.uint8)
    taken = _decode_symbols_numpy(words, states, slots, lines, line_of, bits, symbols)
    first, low = symbols.reshape(-1), second.astype(np.uint16)
    if taken < 0 or (first[len(second) :] != first[len(second) - 1]).any():
        return -1
    units[:] = (low & 0x80) << 8 | first[: len(second)].astype(np.uint16) << 7 | low & 0x7F
    return taken
