"""Lossless: the raw units of a slab as byte planes, each entropy coded where that pays.

**A stream** begins with a byte: 0, and the units follow as they are, little-endian; or 1, and planes follow. What is
called a number below takes 7 bits a byte, the lowest first, the top bit set on all bytes but its last.

**Planes.** A unit is turned into a word, and the bytes of all words, highest first, are the planes. Words are, from
their highest bit:

| dtype | word |
|---|---|
| bf16, f32 | exponent, sign, mantissa |
| f16 | exponent, the upper 3 bits of the mantissa, sign, the rest of the mantissa |
| f64 | the lower 8 bits of the exponent, sign, mantissa, the upper 3 bits of the exponent |
| f8_e4m3, f8_e5m2 and their fnuz forms | exponent, mantissa, sign |
| i8 to i64 | 2 x for x >= 0, else -2 x - 1 |
| c32, c64 | twice as many units and columns, of f16 and f32 |
| all others | the unit |

**Zeros.** The next byte is `other`. Unless it is 0, the first plane holds symbols: 0 for a word of 0, `other` for
other words whose first byte is 0, else the first byte; the planes after it leave out the words that are 0.

**A plane** of m bytes begins with its kind:

0. m bytes follow.
1. One byte follows, and all m are like it.
2. One table; the number of 16-bit words of the stream; its states, 4 bytes each; its words (`kernels.rans`). The m
   bytes are rows of `flat_width(m)`, the last row filled up with copies of the last byte.
3. Three bytes: t, the number of tables; `low`; `shift`. The classes of the rows, uint8, as a plane of kind 0, 1 or 2,
   and those of the columns. Then t tables, and the rest as in 2, but rows are as wide as the slab has columns where
   64 <= columns <= m and columns divides m. Byte (i, j) is coded with table
   `min(max((row class i + column class j >> shift) - low, 0), t - 1)`.

**A table** is three things: the first symbol used, a number; how many follow up to the last one used, a number; and the
frequencies of these, numbers that add up to 2^11, none of them 2^11.

Classes of the first plane are mean exponents, in quarters of an octave; those of the others say how often a byte is 0
in a row. Nothing but the encoder depends on that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.coders.tables import BITS, RATES, TOTAL, Damaged, read_number, write_number
from modelzip_cli.kernels import coding_tables, rans
from modelzip_cli.kernels import planes as kernels

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits, DType

    Bytes = NDArray[np.uint8]
    Counts = NDArray[np.int64]
    Classes = tuple[Bytes, Bytes]  # of rows, of columns
    Grouping = tuple[Bytes, Bytes, int, int]  # classes of rows and of columns, `shift` and `low`
    Survey = tuple[Counts, Counts, int]  # sums of rows and of columns, the smallest byte
    Parts = list[bytes | bytearray | NDArray[np.uint8]]

SYMBOL_BITS = 8
RAW, PLANES = 0, 1
PLAIN, CONSTANT, CODED, CLASSED = 0, 1, 2, 3

LEAST_COLUMNS = 64  # rows shorter than that have no classes of their own
MOST_TABLES = 64
MOST_SHIFT = 7

# What only the encoder needs to know
LEAST = 4096  # bytes of a plane that has classes
MOST_CLASSES = 32
FEW = 1024  # bytes for which a table of their own does not pay
WORTH = 128  # a plane is coded where that saves one byte in this many: decoding costs more than copying
ZEROS = 100  # zeros have a symbol of their own where they are one word in this many
PIECE = 2048
SHARES = np.array([3, 6, 12, 24, 48])  # of zeros in a row, in 64ths: between those of rows with 3, 4 ... 8 dead bits
MOST_KEPT = 1 << 23  # bytes of a scratch array

OCTAVE = {"bf16": 1, "f32": 1, "f64": 1, "f16": 8, "f8_e5m2": 8, "f8_e5m2fnuz": 8, "f8_e4m3": 16, "f8_e4m3fnuz": 16}
PARTS = {"c32": ("f16", "<u2"), "c64": ("f32", "<u4")}  # what complex numbers are made of


def pack(bits: Bits, dtype: DType, columns: int) -> Bytes:
    """Return the stream of `bits` [n], the raw units of a slab whose matrix view has `columns` columns."""
    units = np.ascontiguousarray(bits).astype(dtype.unit, copy=False)
    raw = units.view(np.uint8)
    name = dtype.id
    if name in PARTS:
        name, unit = PARTS[name]
        units, columns = units.view(unit), 2 * columns
    parts: Parts = [bytes([RAW]), raw]
    if len(units):
        planes = _pack_planes(*_split(units, name, columns), columns, OCTAVE.get(name, 0))
        packed: Parts = [bytes([PLANES]), *(part for plane in planes for part in plane)]
        if sum(map(len, packed)) <= len(raw):
            parts = packed
    return np.frombuffer(b"".join(part.data if isinstance(part, np.ndarray) else part for part in parts), np.uint8)


def unpack(data: bytes | Bytes, dtype: DType, n: int, columns: int) -> Bits:
    """Return the `n` units that `pack` was given. Raises Damaged for what it cannot have written."""
    stream = np.frombuffer(data, np.uint8)
    if not len(stream):
        raise Damaged("it is empty")
    if stream[0] == RAW:
        if len(stream) - 1 != n * dtype.unit_bytes:
            raise Damaged("its length does not fit the tensor")
        return stream[1:].copy().view(dtype.unit)
    if stream[0] != PLANES:
        raise Damaged("its mode is unknown")
    name, unit = PARTS.get(dtype.id, (dtype.id, dtype.unit))
    parts = dtype.unit_bytes // int(unit[-1])
    reader, count = _Reader(stream, 1), int(unit[-1])
    units = reader.units(n * parts, columns * parts, count, name, unit)
    if reader.place != len(stream):
        raise Damaged("it goes on where it should end")
    return units.view(dtype.unit)


@lru_cache(1024)
def flat_width(size: int) -> int:
    """The width of rows that `size` bytes are cut into, where a slab's own do not serve: few lanes for few bytes, else
    the multiple of 32 from 1024 to 4096 that leaves the least to fill up, the largest of these."""
    if size < 1 << 14:
        return 2 if size < 1 << 10 else 8
    return min(range(4096, 1023, -32), key=lambda width: -size % width)


def matrix_width(size: int, columns: int) -> int:
    """The width of rows that have classes."""
    return columns if LEAST_COLUMNS <= columns <= size and size % columns == 0 else flat_width(size)


# Units and planes


class _Scratch(local):
    """Memory that the slabs of a thread share: new pages cost more than what is done with them."""

    def __init__(self) -> None:
        self.buffers: dict[str, Bytes] = {}

    def take(self, use: str, shape: tuple[int, int], kind: type) -> NDArray[Any]:
        """An array of `shape` with any content, until the next one for the same use."""
        size = shape[0] * shape[1] * np.dtype(kind).itemsize
        if size > MOST_KEPT:
            return np.empty(shape, kind)
        if use not in self.buffers or size > len(self.buffers[use]):
            self.buffers[use] = np.empty(size, np.uint8)
        return self.buffers[use][:size].view(kind).reshape(shape)


SCRATCH = _Scratch()


def _split(units: Bits, name: str, columns: int) -> tuple[Bytes, Survey | None]:
    """The planes, uint8 [bytes of a unit, n], and what is known of the first one without looking at it again."""
    planes: Bytes = SCRATCH.take("planes", (units.itemsize, len(units)), np.uint8)
    width = matrix_width(len(units), columns)
    if name in ("bf16", "f16") and len(units) >= LEAST and len(units) % width == 0:
        return planes, kernels.survey16(units, width, planes)
    if name in ("bf16", "f16"):
        kernels.split16(units, planes)
    elif name == "f32":
        kernels.split32(units, planes)
    else:
        planes[:] = np.ascontiguousarray(_word(units, name)).view(np.uint8).reshape(len(units), -1).T[::-1]
    return planes, None


def _merge(planes: list[Bytes], name: str, unit: str) -> Bits:
    if name in ("bf16", "f16"):
        return kernels.merge16(planes[0], planes[1])
    if name == "f32":
        return kernels.merge32(planes[0], planes[1], planes[2], planes[3])
    return _unit(np.stack(planes[::-1], axis=1).view(unit).reshape(-1), name)


def _word(x: Bits, name: str) -> NDArray[Any]:
    if name == "f64":
        return x << 4 & 0xFF << 56 | x >> 8 & 1 << 55 | (x & (1 << 52) - 1) << 3 | x >> 60 & 7
    if name in OCTAVE:
        return x << 1 | x >> 7
    return x << 1 ^ -(x >> 8 * x.itemsize - 1) if name[0] == "i" else x


def _unit(word: NDArray[Any], name: str) -> Bits:
    if name == "f64":
        return word >> 4 & 0xFF << 52 | word << 8 & 1 << 63 | word >> 3 & (1 << 52) - 1 | (word & 7) << 60
    if name in OCTAVE:
        return word >> 1 | word << 7
    return word >> 1 ^ -(word & 1) if name[0] == "i" else word


# Rows and their tables


def _lines(
    tables: int, rows: int, width: int, bits: int, grouping: Grouping | None
) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Where the tables, of 2^bits entries, of the bytes begin: the rows that differ, int32 [lines, width], and which of
    them a row is."""
    if grouping is None:
        return np.zeros((1, width), np.int32), np.zeros(rows, np.intp)
    row_class, column_class, shift, low = grouping
    present = np.flatnonzero(np.bincount(row_class))
    lines = SCRATCH.take("lines", (len(present), width), np.int32)
    kernels.places(present, column_class, shift, low, tables, bits, lines)
    return lines, np.searchsorted(present, row_class)


# Encoding


def _pack_planes(planes: Bytes, survey: Survey | None, columns: int, octave: int) -> list[Parts]:
    rest = list(planes[1:])
    other, symbols, counts = _with_symbol_for_others(planes, survey)
    if other:
        survey = None
        rest = [kernels.without_zeros(symbols, plane) for plane in rest]
    scales = _scale_classes(symbols, columns, octave, survey) if octave else None
    parts: list[Parts] = [[bytes([other])], _pack_plane(symbols, columns, scales, counts)]
    return parts + [_pack_mantissas(plane, columns) for plane in rest]


def _with_symbol_for_others(planes: Bytes, survey: Survey | None) -> tuple[int, Bytes, Counts | None]:
    """The symbol for words that are not 0 while their first byte is, the first plane with it, and its counts.

    0, the plane as it is and None: zeros are not worth a symbol of their own.
    """
    first, size = planes[0], planes.shape[1]
    if len(planes) == 1 or (survey[2] if survey else first.min()) > 0:
        return 0, first, None
    used = kernels.used(planes)
    zeros = size - np.count_nonzero(used)
    if zeros * ZEROS < size:
        return 0, first, None
    counts = kernels.count(first)
    (free,) = np.nonzero(counts[1:] == 0)
    if not len(free):
        return 0, first, counts
    other = int(free[-1]) + 1
    counts[0], counts[other] = zeros, counts[0] - zeros
    return other, kernels.with_other(first, used, np.uint8(other)), counts


def _pack_mantissas(plane: Bytes, columns: int) -> Parts:
    """Code a plane after the first, if a sample of it says that this may pay."""
    if not _may_pay(plane):
        return [bytes([PLAIN]), plane]
    return _pack_plane(plane, columns, _zero_classes(plane, columns))


def _pack_plane(plane: Bytes, columns: int, classes: Classes | None, counts: Counts | None = None) -> Parts:
    """Code `plane` in the way that takes least. `counts`: of its bytes, where they are known."""
    if len(plane) and plane[0] == plane[-1] and plane.min() == plane.max():
        return [bytes([CONSTANT, plane[0]])]
    best: Parts = [bytes([PLAIN]), plane]
    if not len(plane):
        return best
    size = len(plane) - len(plane) // WORTH
    if classes is None:
        way = _one_table(plane, kernels.count(plane) if counts is None else counts)
    else:
        contexts = int(classes[0].max()) + int(classes[1].max()) + 1
        tallied = kernels.tally(_filled(plane, matrix_width(len(plane), columns)), *classes, contexts)
        way = min(_ways(plane, tallied, classes), key=lambda way: way.size)
    return way.parts(plane, columns) if way.size < size else best


@dataclass(frozen=True)
class _Way:
    """A way to code a plane: what comes before the stream, which tables a byte is coded with, and about how many bytes
    that takes."""

    head: Parts
    frequencies: Counts
    size: int
    grouping: Grouping | None = None  # None: there is but one table

    def parts(self, plane: Bytes, columns: int) -> Parts:
        """The plane, coded."""
        width = matrix_width(len(plane), columns) if self.grouping else flat_width(len(plane))
        table = _filled(plane, width)
        intervals = coding_tables.intervals(self.frequencies)
        lines, line_of = _lines(len(self.frequencies), len(table), width, SYMBOL_BITS, self.grouping)
        room = SCRATCH.take("words", (1, rans.room_for(table.size, BITS)), np.uint16).reshape(-1)
        states, words = rans.encode(table, intervals, BITS, lines, line_of, room)
        number = bytearray()
        write_number(number, len(words))
        return [*self.head, number, states.tobytes(), words.tobytes()]


def _one_table(plane: Bytes, counts: Counts) -> _Way:
    frequencies, bits = coding_tables.normalised(counts[None], RATES)
    written = coding_tables.write_tables(frequencies)
    beside = len(written) + 4 + 4 * min(flat_width(len(plane)), rans.LANES)
    return _Way([bytes([CODED]), written], frequencies, bits // 8 + beside)


def _ways(plane: Bytes, counts: Counts, classes: Classes) -> Iterator[_Way]:
    """With one table for all, and with tables for one, two and four sums of classes each."""
    yield _one_table(plane, counts.sum(axis=0))
    vectors = [part for each in classes for part in _pack_plane(each, 0, None)]
    last = plane.size
    for shift in range(3):
        low, groups = coding_tables.grouped(counts, shift, FEW)
        if len(groups) == 1:
            return
        frequencies, bits = coding_tables.normalised(groups, RATES)
        written = coding_tables.write_tables(frequencies)
        beside = sum(map(len, vectors)) + len(written) + 7 + 4 * min(len(classes[1]), rans.LANES)
        head = [bytes([CLASSED, len(groups), low, shift]), *vectors, written]
        yield _Way(head, frequencies, bits // 8 + beside, (*classes, shift, low))
        if bits // 8 + beside > last:
            return
        last = bits // 8 + beside


def _filled(plane: Bytes, width: int) -> Bytes:
    """`plane` as rows of `width`, the last one filled up."""
    missing = -len(plane) % width
    return (np.concatenate([plane, np.full(missing, plane[-1])]) if missing else plane).reshape(-1, width)


def _may_pay(plane: Bytes) -> bool:
    """Whether a plane of mantissas may be worth coding, by 64 bytes of each 2048."""
    pieces = len(plane) // PIECE
    if pieces < 8:
        return True
    sample = np.ascontiguousarray(plane[: pieces * PIECE].reshape(pieces, -1)[:, :64]).reshape(-1)
    _, bits = coding_tables.normalised(kernels.count(sample)[None], RATES)
    return bits // 8 + len(sample) // WORTH < len(sample)


def _matrix(plane: Bytes, columns: int) -> Bytes | None:
    """The rows that may have classes; None: too little for that."""
    width = matrix_width(len(plane), columns)
    return None if len(plane) < LEAST or width < LEAST_COLUMNS else _filled(plane, width)


def _scale_classes(plane: Bytes, columns: int, octave: int, survey: Survey | None = None) -> Classes | None:
    """Classes of rows and columns by their mean exponent."""
    table = _matrix(plane, columns)
    if table is None:
        return None
    rows, width = table.shape
    sums = survey[:2] if survey else kernels.sums(table)
    used = (np.full(rows, width), np.full(width, rows))
    if (survey[2] if survey else table.min()) == 0:
        used = kernels.sums((table != 0).view(np.uint8))
    by_row, row_class = kernels.levels(sums[0], used[0], octave, width, MOST_CLASSES)
    by_column, column_class = kernels.levels(sums[1], used[1], octave, rows, MOST_CLASSES)
    if not by_row and not by_column:
        return None
    return row_class if by_row else np.zeros_like(row_class), column_class if by_column else np.zeros_like(column_class)


def _zero_classes(plane: Bytes, columns: int) -> Classes | None:
    """Classes of rows by how many of their bytes are 0."""
    table = _matrix(plane, columns)
    if table is None:
        return None
    share = kernels.zeros(table) * 64
    row_class = (share[:, None] > SHARES * table.shape[1]).sum(axis=1).astype(np.uint8)
    return None if row_class.min() == row_class.max() else (row_class, np.zeros(table.shape[1], np.uint8))


# Decoding


class _Reader:
    """Reads a stream from byte `place` on."""

    def __init__(self, stream: Bytes, place: int) -> None:
        self.stream, self.place = stream, place

    def take(self, count: int) -> Bytes:
        """The next `count` bytes."""
        if count > len(self.stream) - self.place:
            raise Damaged("it ends too soon")
        self.place += count
        return self.stream[self.place - count : self.place]

    def byte(self) -> int:
        return int(self.take(1)[0])

    def units(self, n: int, columns: int, count: int, name: str, unit: str) -> Bits:
        """Read all `count` planes and merge them to units [n]."""
        other = self.byte()
        first = self.coded(n, columns)
        if isinstance(first, _Coded):
            if not other and name in ("bf16", "f16") and self.stream[self.place : self.place + 1] == [PLAIN]:
                self.place += 1
                return first.units16(self.take(n))
            first = first.symbols(SCRATCH.take("plane 0", first.shape, np.uint8))
        kept = int(np.count_nonzero(first)) if other else n
        rest = [self.plane(kept, columns, use=f"plane {place}") for place in range(1, count)]
        if other:
            rest = [kernels.with_zeros(first, plane) for plane in rest]
            first = np.where(first == other, np.uint8(0), first)
        return _merge([first, *rest], name, unit)

    def plane(self, size: int, columns: int, use: str = "") -> Bytes:
        """Read a plane, uint8 [size], into the scratch memory for `use`; without one, it may have no classes."""
        found = self.coded(size, columns, with_classes=use != "")
        if isinstance(found, _Coded):
            return found.symbols(SCRATCH.take(use, found.shape, np.uint8) if use else np.empty(found.shape, np.uint8))
        return found

    def coded(self, size: int, columns: int, with_classes: bool = True) -> Bytes | _Coded:
        """Read a plane, uint8 [size], or what is to be decoded before the next one is read."""
        kind = self.byte()
        if kind == PLAIN:
            return self.take(size)
        if not size:
            raise Damaged("there is nothing to code")
        if kind == CONSTANT:
            return np.full(size, self.byte(), np.uint8)
        if kind == CODED:
            return self._coded(size, flat_width(size), 1, None)
        if kind != CLASSED or not with_classes:
            raise Damaged("a plane is of an unknown kind")
        tables, low, shift = (int(number) for number in self.take(3))
        if not 0 < tables <= MOST_TABLES or shift > MOST_SHIFT:
            raise Damaged("it has too many tables")
        width = matrix_width(size, columns)
        row_class, column_class = self.plane(-(-size // width), 0), self.plane(width, 0)
        return self._coded(size, width, tables, (row_class, column_class, shift, low))

    def _coded(self, size: int, width: int, tables: int, grouping: Grouping | None) -> _Coded:
        """Read tables and a stream: rows of `width`, and what they hold."""
        frequencies = np.zeros((tables, rans.SYMBOLS), np.int64)
        self.place = coding_tables.read_tables(self.stream, self.place, frequencies, TOTAL)
        if self.place < 0:
            raise Damaged("the frequencies of a table do not add up")
        count, used = read_number(self.stream[self.place : self.place + 5].tobytes(), 0)
        self.place += used
        states = self.take(4 * min(width, rans.LANES)).copy().view(np.uint32)
        stored = self.take(2 * count)
        words = SCRATCH.take("words", (1, count), np.uint16).reshape(-1)  # a copy: they may begin at an odd address
        words.view(np.uint8)[:] = stored
        if (states < rans.LOWEST).any():
            raise Damaged("a state of the coder is out of range")
        lines, line_of = _lines(tables, -(-size // width), width, BITS, grouping)
        return _Coded(size, (words, states, coding_tables.slots(frequencies), lines, BITS, line_of))


@dataclass(frozen=True)
class _Coded:
    """A plane of `size` bytes that is to be decoded before the next one is read: they share scratch memory."""

    size: int
    stream: tuple[NDArray[np.uint16], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int32], int, NDArray[np.intp]]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.stream[5]), self.stream[3].shape[1]

    def symbols(self, found: Bytes) -> Bytes:
        """The plane, decoded into `found`, uint8 of `shape`."""
        _, taken = rans.decode_symbols(*self.stream, found)
        self._check(taken)
        plane = found.reshape(-1)
        if (plane[self.size :] != plane[self.size - 1]).any():
            raise Damaged("it goes on where it should end")
        return plane[: self.size]

    def units16(self, second: Bytes) -> Bits:
        """The units of 16 bits whose first plane this is."""
        units, taken = rans.decode_units16(*self.stream, second)
        if units is None:
            return kernels.merge16(self.symbols(SCRATCH.take("plane 0", self.shape, np.uint8)), second)
        self._check(taken)
        return units

    def _check(self, taken: int) -> None:
        if taken < 0:
            raise Damaged("it ends too soon")
        words, states = self.stream[:2]
        if taken != len(words) or (states != rans.LOWEST).any():
            raise Damaged("the coder does not end where it began")
