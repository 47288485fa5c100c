"""Frequency tables of the entropy coder: from counts, as bytes, and as what its kernels look up.

A set of tables has one row of 256 frequencies a table that add up to 2^11. A symbol of frequency 0 cannot be coded
with its table; no frequency is 2^11, so that an entry of the decoder fits 32 bits (docs/format.md, section 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.rans import SYMBOLS

BITS = 11
TOTAL = 1 << BITS
CENTRE = 127  # the symbol of 0 in an open range
RARE = 1 << 13

Frequencies = NDArray[Any]  # integers, [tables, 256]


class Damaged(ValueError):
    """Bytes that no encoder wrote; the message says what is wrong with them."""


@dataclass(frozen=True, eq=False)
class Tables:
    """A set of tables: int16 [tables, 256], each row of sum 2^11. Only those of `span` are stored and may be used.

    A model may have a set for each tensor, all in memory at once: what can be looked up quickly is not kept.
    """

    frequencies: Frequencies
    span: tuple[int, int] | None = None  # None: all

    def __post_init__(self) -> None:
        object.__setattr__(self, "frequencies", self.frequencies.astype(np.int16, copy=False))

    @property
    def used(self) -> tuple[int, int]:
        """The tables that may be used, [first, last)."""
        return self.span or (0, len(self.frequencies))

    @cached_property
    def intervals(self) -> NDArray[np.uint32]:
        """For the encoder: start << 16 | frequency, uint32 [tables * 256]."""
        starts = np.cumsum(self.frequencies, axis=1) - self.frequencies
        return (starts << 16 | self.frequencies).astype(np.uint32).reshape(-1)

    @cached_property
    def slots(self) -> NDArray[np.uint32]:
        """For the decoder, of the tables that may be used: frequency << 20 | offset in the interval << 8 | symbol,
        uint32 [tables * 2^11]."""
        used = self.frequencies[slice(*self.used)]
        each = used.reshape(-1).astype(np.int64)
        symbols = np.tile(np.arange(SYMBOLS), len(used))
        starts = np.cumsum(each) - each
        offsets = np.arange(len(used) * TOTAL) - np.repeat(starts, each)
        return (np.repeat(each, each) << 20 | offsets << 8 | np.repeat(symbols, each)).astype(np.uint32)

    @cached_property
    def known(self) -> NDArray[np.uint8]:
        """1 where a symbol has a frequency, uint8 [tables, 256]."""
        return (self.frequencies > 0).astype(np.uint8)

    @property
    def rates(self) -> NDArray[np.int64]:
        """What each symbol costs, in 1/256 bit; int64 [tables, 256], 2^15 where it cannot be coded."""
        return RATES[self.frequencies]

    def to_bytes(self) -> bytes:
        """One table after the other: twice the first symbol used, how many there are up to the last one below 255, less
        one, and their frequencies; each number in 7 bits a byte, lowest first, the top bit set on all bytes but its
        last. What lacks to 2^11 is the frequency of 255. A table that is symmetric about 127 begins there, with 255 for
        twice the first symbol, and lists one side."""
        out = bytearray()
        for row in self.frequencies[slice(*self.used)]:
            (used,) = np.nonzero(row[: SYMBOLS - 1])
            first, last = int(used[0]), int(used[-1])
            symmetric = np.array_equal(row[: SYMBOLS - 1], row[SYMBOLS - 2 :: -1])
            if symmetric:
                first = CENTRE
            for number in (2 * first + symmetric, last - first, *(int(f) for f in row[first : last + 1])):
                write_number(out, number)
        return bytes(out)

    @staticmethod
    def from_bytes(data: bytes, count: int, place: int = 0) -> tuple[Tables, int]:
        """Read `count` tables from byte `place` on: the tables, and where they end. Raises Damaged."""
        frequencies = np.zeros((count, SYMBOLS), np.int64)
        for row in frequencies:
            twice, place = read_number(data, place)
            more, place = read_number(data, place)
            first, symmetric = divmod(twice, 2)
            if first + more >= SYMBOLS - 1 or (symmetric and first != CENTRE):
                raise Damaged("a table lists a symbol above 254")
            for symbol in range(first, first + more + 1):
                row[symbol], place = read_number(data, place)
            if symmetric:
                row[:CENTRE] = row[CENTRE + 1 : SYMBOLS - 1][::-1]
            row[SYMBOLS - 1] = TOTAL - row.sum()
            if not 0 <= row.min() <= row.max() < TOTAL:
                raise Damaged("the frequencies of a table do not add up")
        return Tables(frequencies), place


OPEN_CLASSES = 40  # of an open range, each with one table or two


def write_set(tables: Tables) -> bytes:
    """A set of tables of an open range: how many tables a class has, the first class and how many more follow, then
    the tables of these classes."""
    width = len(tables.frequencies) // OPEN_CLASSES
    first, last = tables.used
    return bytes([width, first // width, (last - first) // width - 1]) + tables.to_bytes()


def read_set(data: bytes) -> Tables:
    """Read what `write_set` wrote. Raises Damaged."""
    if len(data) < 3 or data[0] not in (1, 2) or data[1] + data[2] >= OPEN_CLASSES:
        raise Damaged("a set does not begin with its classes")
    width, first, more = data[:3]
    span = first * width, (first + more + 1) * width
    found, end = Tables.from_bytes(data, span[1] - span[0], 3)
    if end != len(data):
        raise Damaged("a set has bytes that mean nothing")
    frequencies = np.zeros((OPEN_CLASSES * width, SYMBOLS), np.int64)
    frequencies[:, :2] = TOTAL // 2  # never used
    frequencies[slice(*span)] = found.frequencies
    return Tables(frequencies, span)


def write_number(out: bytearray, number: int) -> None:
    """Append a number in 7 bits a byte (LEB128)."""
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


def read_number(data: bytes, place: int) -> tuple[int, int]:
    """Read what `write_number` wrote: the number, below 2^35, and where it ends. Raises Damaged."""
    number = 0
    for shift in range(0, 35, 7):
        if place >= len(data):
            raise Damaged("it ends in the middle of a number")
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            if byte == 0 and shift:
                raise Damaged("a number is longer than it needs to be")
            return number, place
    raise Damaged("a number is out of range")


def _rates() -> NDArray[np.int64]:
    """256 * log2(2^11 / f) rounded, for f from 1 to 2^11, by integer arithmetic alone; 2^15 for f = 0.

    The logarithm of f / 2^floor(log2 f) bit by bit: squaring a number in [1, 2) doubles its logarithm.
    """
    rates = [1 << 15]
    for frequency in range(1, TOTAL + 1):
        whole = frequency.bit_length() - 1
        mantissa, fraction = frequency << (32 - whole), 0  # 32 fraction bits
        for _ in range(9):
            mantissa = mantissa * mantissa >> 32
            carry = mantissa >> 33
            fraction = fraction << 1 | carry
            mantissa >>= carry
        rates.append((BITS << 8) - ((whole << 9 | fraction) + 1 >> 1))
    return np.array(rates, np.int64)


RATES = _rates()


def symmetric_from_counts(counts: NDArray[np.int64]) -> Frequencies:
    """The same for an open range: k and -k, the symbols 127 + k and 127 - k, have the same frequency, 255 escapes."""
    sides = counts[CENTRE : SYMBOLS - 1].astype(np.int64) + counts[CENTRE::-1]
    sides[1:] -= sides[1:] & 1  # pairs
    total = int(sides[0] // 2 + sides[1:].sum() + counts[SYMBOLS - 1])
    sides = np.where(sides * RARE < total, 0, sides)
    sides[0] //= 2
    escaped = max(1, (total - int(sides.sum())) * TOTAL // max(total, 1))
    (used,) = np.nonzero(sides)
    if not len(used):
        used = np.array([0])
        sides[0] = 1
    weights, each = sides[used], np.where(used == 0, 1, 2)
    total = int(sides.sum())
    left = TOTAL - min(escaped, TOTAL // 2)
    found = np.maximum(1, (weights * left + total * each // 2) // (total * each))
    while (lacking := left - int((found * each).sum())) not in (0, 1):
        if lacking > 0:
            found[np.argmax(weights / (found * each))] += 1
        else:
            found[np.argmin(np.where(found > 1, weights / (found * each), np.inf))] -= 1
    frequencies = np.zeros(SYMBOLS, np.int64)
    frequencies[CENTRE + used] = frequencies[CENTRE - used] = found
    frequencies[SYMBOLS - 1] = TOTAL - int(frequencies.sum())
    return frequencies


def from_counts(counts: NDArray[np.int64], *, escape: int | None = None) -> Frequencies:
    """Frequencies int64 [256] of one table for symbols that were counted, [256].

    `escape`: the symbol that stands for those without a frequency. It always has one, and symbols that come up less
    than once in 2^13 go to it; without `escape`, every symbol that was counted gets a frequency. What rounding leaves
    is given to, or taken from, the symbols that gain most or lose least by it.
    """
    counts = counts.astype(np.int64)
    if escape is not None:
        rare = counts * RARE < counts.sum()
        counts = np.where(rare, 0, counts)
        counts[escape] = max(1, int(counts[escape]))
    if not counts.any():
        counts[0] = 1
    if np.count_nonzero(counts) == 1:  # at least two symbols: none may have all
        only = int(counts.argmax())
        counts[only], counts[(only + 1) % SYMBOLS] = TOTAL, 1
    (used,) = np.nonzero(counts)
    weights, total = counts[used], int(counts.sum())
    found = np.clip((weights * TOTAL + total // 2) // total, 1, TOTAL - 1)
    while (lacking := TOTAL - int(found.sum())) != 0:
        if lacking > 0:
            found[np.argmax(weights / found * (found < TOTAL - 1))] += 1
        else:
            found[np.argmin(np.where(found > 1, weights / found, np.inf))] -= 1
    frequencies = np.zeros(SYMBOLS, np.int64)
    frequencies[used] = found
    return frequencies
