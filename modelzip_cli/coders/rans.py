"""Entropy coding by static rANS: closed ranges with a table in each slab, open ranges under contexts and shared tables.

A stream is [front][states][words], where front holds what the decoder must know first, states are 4 bytes a lane and
words 2 bytes each, to the end; docs/format.md, section 7, has every byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.coders.base import Coder
from modelzip_cli.coders.tables import BITS, RATES, Damaged, Tables, from_counts, read_number, write_number
from modelzip_cli.kernels import bitpack
from modelzip_cli.kernels.points import ESCAPE, decode_points, index_of
from modelzip_cli.kernels.rans import LANES, LOWEST, decode_symbols, encode
from modelzip_cli.schemes.base import Codes, Contexts

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Rans(Coder):
    """Each code takes as many bits as it is rare; what comes up half of the time takes one."""

    id: ClassVar[str] = "rans"

    def pack(self, codes: Codes, bits: int) -> Bytes:
        """Closed range: [table][low bits][states][words]. Bits beyond 8 are low bits, stored as they are."""
        low = max(0, bits - 8)
        index = (codes >> low).astype(np.uint16)
        tables = Tables(from_counts(np.bincount(index.reshape(-1), minlength=256))[None])
        front = [_bytes(tables.to_bytes())]
        if low:
            front.append(bitpack.pack((codes & (1 << low) - 1).astype(np.uint8).reshape(1, -1), low).reshape(-1))
        return np.concatenate([*front, *_stream(index, tables)])

    def unpack(self, packed: Bytes, bits: int, rows: int, columns: int) -> Codes:
        low = max(0, bits - 8)
        tables, place = Tables.from_bytes(packed.tobytes(), 1)
        size = -(-rows * columns * low // 8)
        lows, rest = _cut(packed[place:], size)
        symbols = _symbols(rest, tables, rows, columns)
        if int(symbols.max(initial=0)) >> min(bits, 8):
            raise Damaged("a code is out of range")
        if not low:
            return symbols
        raw = bitpack.unpack(lows.reshape(1, -1), low, rows * columns).reshape(rows, columns)
        return symbols.astype(np.uint16) << low | raw

    def pack_points(self, points: Codes, contexts: Contexts, tables: Tables) -> Bytes:
        """Open range: [row classes][escapes][low bits][states][words], under `contexts` and with `tables`."""
        rows, columns = contexts.row_class, contexts.column_class
        front = pack_vector(rows.astype(np.uint8))
        if contexts.along_rows:
            points, rows, columns = np.ascontiguousarray(points.T), columns, rows
        index, escapes, low = index_of(points, rows, columns, contexts.machine, contexts.low_bits, tables.known)
        raw = _raw_of(rows, columns, contexts) if low.size else None
        return np.concatenate([front, _pack_escapes(escapes), _pack_low(low, raw), *_stream(index, tables)])

    def unpack_points(self, packed: Bytes, contexts: Contexts, tables: Tables, step: np.float32) -> NDArray[np.float32]:
        """Points times `step`, float32 [rows, columns]; of `contexts`, the classes of the rows are in the stream."""
        count = len(contexts.row_class)
        classes, rest = unpack_vector(packed, count)
        rows, columns = classes.astype(np.int32), contexts.column_class
        width = 2 if contexts.machine else 1
        first, last = tables.used
        least, most = (int(f(rows)) + int(f(columns)) for f in (np.min, np.max))
        if len(tables.frequencies) != contexts.tables or least * width < first or most * width >= last:
            raise Damaged("a class has no table")
        if contexts.along_rows:
            rows, columns = columns, rows
        escapes, rest = _unpack_escapes(rest, len(rows) * len(columns))
        raw = _raw_of(rows, columns, contexts) if contexts.low_bits[int(rows.max()) + int(columns.max())] else None
        low, rest = _unpack_low(rest, raw)
        states, words = _lanes(rest, len(columns))
        begin = first // width  # slots and low bits of the classes from here on
        values, taken = decode_points(
            words,
            states,
            tables.slots,
            rows - np.int32(begin),
            columns,
            BITS,
            contexts.machine,
            contexts.low_bits[begin:],
            escapes,
            low,
            step,
        )
        _check_end(states, words, taken)
        return np.ascontiguousarray(values.T) if contexts.along_rows else values


def count_points(points: Codes, contexts: Contexts, tables: Tables) -> tuple[NDArray[np.int64], int]:
    """How often each symbol of each table comes up: int64 [tables, 256], and the bytes of escapes and low bits.

    Symbols that `tables` do not know are counted as what they are, not as escapes.
    """
    rows, columns = contexts.row_class, contexts.column_class
    if contexts.along_rows:
        points, rows, columns = np.ascontiguousarray(points.T), columns, rows
    known = np.ones_like(tables.known)
    index, escapes, low = index_of(points, rows, columns, contexts.machine, contexts.low_bits, known)
    counts = np.bincount(index.reshape(-1), minlength=contexts.tables * 256).reshape(contexts.tables, 256)
    raw = int(contexts.low_bits[rows[:, None] + columns].sum()) // 8 if low.size else 0
    return counts, len(_pack_escapes(escapes)) - 1 + raw


def coded_bytes(codes: Codes, bits: int) -> float:
    """About the bytes that `pack` takes for codes of a closed range, without the states."""
    low = max(0, bits - 8)
    counts = np.bincount((codes >> low).reshape(-1), minlength=256)
    table = from_counts(counts)
    front = len(Tables(table[None]).to_bytes()) + codes.size * low / 8
    return int((counts * RATES[table]).sum()) / 2048 + front


def pack_vector(values: Bytes) -> Bytes:
    """Small integers as [table][state][words], with the number of bytes in front."""
    index = values.reshape(-1, 1).astype(np.uint16)
    tables = Tables(from_counts(np.bincount(index[:, 0], minlength=256))[None])
    stream = np.concatenate([_bytes(tables.to_bytes()), *_stream(index, tables)])
    front = bytearray()
    write_number(front, len(stream))
    return np.concatenate([_bytes(front), stream])


def unpack_vector(packed: Bytes, count: int) -> tuple[Bytes, Bytes]:
    """`count` integers, uint8, and the bytes that follow. Raises Damaged."""
    size, place = read_number(packed[:8].tobytes(), 0)
    stream, rest = _cut(packed[place:], size)
    tables, place = Tables.from_bytes(stream.tobytes(), 1)
    return _symbols(stream[place:], tables, count, 1).reshape(-1), rest


def _bytes(data: bytes | bytearray) -> Bytes:
    return np.frombuffer(bytes(data), np.uint8)


def _cut(data: Bytes, size: int) -> tuple[Bytes, Bytes]:
    if size > len(data):
        raise Damaged("it is cut short")
    return data[:size], data[size:]


def _stream(index: NDArray[np.uint16], tables: Tables) -> tuple[Bytes, Bytes]:
    """The states and the words of an index, as bytes."""
    states, words = encode(index, tables.intervals, BITS)
    return states.astype("<u4").view(np.uint8), np.ascontiguousarray(words, "<u2").view(np.uint8)


def _lanes(data: Bytes, width: int) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Split what `_stream` made."""
    states, words = _cut(data, 4 * min(LANES, width))
    if len(words) % 2:
        raise Damaged("it ends in the middle of a word")
    found = np.frombuffer(states.tobytes(), "<u4").copy()
    if (found < LOWEST).any():
        raise Damaged("a state of the coder is out of range")
    return found, np.frombuffer(words.tobytes(), "<u2")


def _check_end(states: NDArray[np.uint32], words: NDArray[np.uint16], taken: int) -> None:
    if taken != len(words) or (states != LOWEST).any():
        raise Damaged("it does not end where it began")


def _symbols(data: Bytes, tables: Tables, rows: int, columns: int) -> Bytes:
    """The symbols of a stream with one table, uint8 [rows, columns]."""
    states, words = _lanes(data, columns)
    line = np.zeros((1, columns), np.int32)
    symbols, taken = decode_symbols(words, states, tables.slots, line, BITS, np.zeros(rows, np.intp))
    _check_end(states, words, taken)
    return symbols


def _pack_escapes(escapes: NDArray[np.int32]) -> Bytes:
    """Their number, then, if there are any, the bytes of one (1, 2 or 4), then they themselves."""
    front = bytearray()
    write_number(front, len(escapes))
    if not len(escapes):
        return _bytes(front)
    width = next(w for w in (1, 2, 4) if np.array_equal(escapes.astype(f"<i{w}"), escapes))
    front.append(width)
    return np.concatenate([_bytes(front), escapes.astype(f"<i{width}").view(np.uint8)])


def _unpack_escapes(data: Bytes, most: int) -> tuple[NDArray[np.int32], Bytes]:
    count, place = read_number(data[:8].tobytes(), 0)
    if count == 0:
        return np.empty(0, np.int32), data[place:]
    if count > most or place >= len(data) or data[place] not in (1, 2, 4):
        raise Damaged("its escapes are malformed")
    width = int(data[place])
    stored, rest = _cut(data[place + 1 :], count * width)
    return np.frombuffer(stored.tobytes(), f"<i{width}").astype(np.int32), rest


def _raw_of(rows: NDArray[Any], columns: NDArray[Any], contexts: Contexts) -> Bytes:
    """How many raw bits each weight that has any has, in the order of the path."""
    raw = contexts.low_bits.astype(np.uint8)[rows[:, None] + columns].reshape(-1)
    found: Bytes = raw[raw > 0]
    return found


def _pack_low(low: Bytes, raw: Bytes | None) -> Bytes:
    """The raw bits of all weights that have one, then of those that have two, and so on; packed."""
    if raw is None:
        return np.empty(0, np.uint8)
    each = [bitpack.pack(low[raw == width].reshape(1, -1), int(width)).reshape(-1) for width in np.unique(raw)]
    return np.concatenate([np.empty(0, np.uint8), *each])


def _unpack_low(data: Bytes, raw: Bytes | None) -> tuple[Bytes, Bytes]:
    if raw is None:
        return np.empty(0, np.uint8), data
    low = np.empty(len(raw), np.uint8)
    for width in np.unique(raw):
        places = raw == width
        count = int(np.count_nonzero(places))
        stored, data = _cut(data, -(-count * int(width) // 8))
        low[places] = bitpack.unpack(stored.reshape(1, -1), int(width), count).reshape(-1)
    return low, data


__all__ = ["ESCAPE", "Rans", "count_points", "pack_vector", "unpack_vector"]
