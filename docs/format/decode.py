"""Read a native modelzip file: every checksum, scheme and coder. Written from docs/format.md alone; needs only numpy.

`python docs/format/decode.py FILE` lists the tensors of a file. Numbers in brackets are sections of the page.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterator
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Stored = tuple[str, list[int], bytes]  # dtype id, shape and bytes of one array of the file
SLAB = 512 * 1024
# [2] id: bits of an element, and the numpy type of its values, or of its raw bits where numpy has no such values
DTYPES = {
    **{"f64": (64, "<f8"), "f32": (32, "<f4"), "f16": (16, "<f2"), "bf16": (16, "<u2")},
    **dict.fromkeys(("f8_e4m3", "f8_e5m2", "f8_e8m0", "f8_e4m3fnuz", "f8_e5m2fnuz"), (8, "u1")),
    **{"f6_e2m3": (6, "u1"), "f6_e3m2": (6, "u1"), "f4": (4, "u1"), "bool": (8, "?")},
    **{f"{kind}{bits}": (bits, f"<{kind}{bits // 8}") for kind in "iu" for bits in (8, 16, 32, 64)},
    **{"c32": (32, "<u4"), "c64": (64, "<c8"), "c128": (128, "<c16")},
}
KINDS = "int|fixed|binary|ternary|codebook|nf4|fp8|fp16|bf16|fp32|ecq|lossless"
SCHEME = re.compile(rf"({KINDS})(\d*)((?:-channel|-tensor|-g\d+|-asym|-mse|-m2|-n-?\d+|-s[\d.]+|-t1|-columns)*)")
# [5] What a code of nf4 and one of fp8 stands for; two of the latter are NaN
NF4 = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
    -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
    0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"""
E4M3 = [(code & 7) / 512 if code < 8 else (8 + (code & 7)) / 8 * 2.0 ** ((code >> 3) - 7) for code in range(127)]
TABLES = {
    "nf4": np.array(NF4.split(), np.float32),
    "fp8": np.array([*E4M3, np.nan, *(-value for value in E4M3), np.nan], np.float32),
}


# [7] The next state of the trellis, by state and parity of k
EIGHTHS = np.array([1.0, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081])  # of an octave
NEXT = np.array([[0, 2], [5, 7], [1, 3], [4, 6], [2, 0], [7, 5], [3, 1], [6, 4]])


def require(condition: bool, what: str) -> None:
    """Refuse the file when something that must hold does not."""
    if not condition:
        raise ValueError(what)


def parse_json(text: bytes | str) -> Any:
    """JSON without NaN, and without a key that appears twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len({key for key, _ in pairs}) == len(pairs), "a key appears twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique, parse_constant=lambda name: require(False, f"{name} in JSON"))


def read_safetensors(data: bytes) -> tuple[dict[str, Stored], dict[str, str]]:
    """[1] The arrays of the file by name, and its metadata."""
    length = int.from_bytes(data[:8], "little")
    require(len(data) >= 8 and length <= min(len(data) - 8, 100_000_000), "not a safetensors file, or cut short")
    header = parse_json(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    arrays, position = {}, 8 + length
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (begin, end), dtype, shape = entry["data_offsets"], entry["dtype"].lower(), entry["shape"]
        require(8 + length + begin == position and 8 * (end - begin) == size(shape) * DTYPES[dtype][0], f"{name}: size")
        arrays[name] = (dtype, shape, data[position : position + end - begin])
        position += end - begin
    require(position == len(data), "the arrays do not cover the file")
    return arrays, metadata


def size(shape: list[int]) -> int:
    """How many elements a shape has."""
    require(all(type(length) is int and length >= 0 for length in shape), "a shape is not a list of sizes")
    return prod(shape)


def read_manifest(metadata: dict[str, str]) -> dict[str, Any]:
    """[6] The manifest, its checksum compared."""
    manifest: dict[str, Any] = parse_json(metadata["modelzip"])
    require(manifest["format_version"] == 1, "a newer format than this decoder knows")
    digest = hashlib.sha256(metadata["modelzip"].encode()).hexdigest()
    require(digest == metadata["modelzip.sha256"], "the manifest is damaged")
    return manifest


def matrix(shape: list[int]) -> tuple[int, int]:
    """[3] Rows and columns of the matrix view."""
    if len(shape) <= 1:
        return 1, size(shape)
    if len(shape) == 3 and shape[2] >= 64:
        return shape[0] * shape[1], shape[2]
    return shape[0], size(shape[1:])


class Scheme:
    """[5] What the name of a scheme says: kind, width of a code, its params, and how many weights share one."""

    def __init__(self, name: str, columns: int) -> None:
        found = SCHEME.fullmatch(name)
        require(found is not None, f"no scheme {name!r}")
        self.kind, width, options = found.groups() if found else ("", "", "")
        self.plain = {"fp16": "f16", "bf16": "bf16", "fp32": "f32"}.get(self.kind)
        self.raw, self.open = self.kind == "lossless", self.kind == "ecq"
        self.trellis = "-t1" not in options
        self.coders = ("lossless",) if self.raw else ("rans",) if self.open else ("bitpack", "rans")
        self.terms = 2 if "-m2" in options else 1
        self.bits = int(width or {"ternary": 2, "nf4": 4, "fp8": 8}.get(self.kind, self.terms))
        self.levels = 2**self.bits - (self.kind in ("fixed", "ternary"))
        group = re.search(r"-g(\d+)", options or ("-g64" if self.kind == "nf4" else ""))
        self.group = int(group[1]) if group else columns
        self.per_row = "-channel" in options if self.kind == "fixed" else "-tensor" not in options
        self.per_row &= self.kind not in ("codebook", "ecq")
        if self.kind == "fixed":
            self.params = {"fraction_bits": "i16"}
        elif self.kind == "codebook":
            self.params = {"codebook": "f32"}
        elif self.raw or self.open:
            vectors = ["column_class", *["column_step"] * ("-columns" in options)]
            self.params = {"step": "f32", **dict.fromkeys(vectors, "u8")} if self.open else {}
        else:  # params of a group are bf16, others float32
            self.params = dict.fromkeys(("scale", "scale2")[: self.terms], "bf16" if group else "f32")
        if "-asym" in options:
            self.params["zero_point"] = "u8"

    def parts(self, shape: list[int], coder: str) -> dict[str, tuple[str, list[int] | None]]:
        """Dtype and shape of every part of a tensor; no shape: bytes, as many as there are."""
        if self.plain:
            return {"values": (self.plain, shape)}
        if self.raw or self.open:
            shapes: dict[str, list[int] | None] = {"step": [1, 1]}
            return {name: (dtype, shapes.get(name)) for name, dtype in self.params.items()} | {"codes": ("u8", None)}
        rows, columns = matrix(shape)
        groups = self.levels if self.kind == "codebook" else -(-columns // self.group)
        params = {name: (dtype, [rows if self.per_row else 1, groups]) for name, dtype in self.params.items()}
        return params | {"codes": ("u8", [rows, -(-columns * self.bits // 8)] if coder == "bitpack" else None)}

    def decode(self, codes: Array, parts: dict[str, Array], columns: int) -> Array:
        """The weights, float32 [rows, columns]."""
        require(int(codes.max()) < self.levels, "a code is out of range")
        require(all(bool(np.isfinite(parts[name]).all()) for name in self.params), "a param is not finite")
        if self.kind == "codebook":
            return parts["codebook"][0][codes] + np.float32(0)  # -0 becomes +0
        if self.kind == "fixed":
            n = parts["fraction_bits"].astype(np.int32)
            require(n.min() >= -125 and n.max() <= 126, "fraction_bits are out of range")
            parts = {"scale": np.ldexp(np.float32(1), -n)}
        group = np.arange(columns) // self.group  # of each column
        with np.errstate(over="ignore", invalid="ignore"):
            weights = self.factors(codes, parts, group) * parts["scale"][:, group]
            if self.terms == 2:
                weights += (2 * (codes & 1).astype(np.float32) - 1) * parts["scale2"][:, group]
        require(bool(np.isfinite(weights).all()), "a weight is not finite")
        result: Array = weights + np.float32(0)
        return result

    def factors(self, codes: Array, parts: dict[str, Array], group: Array) -> Array:
        """What `scale` is multiplied by, float32 [rows, columns]."""
        if self.kind in TABLES:
            return TABLES[self.kind][codes]
        if self.kind == "binary":
            return 2 * (codes >> self.terms - 1).astype(np.float32) - 1
        zero_point = parts["zero_point"][:, group] if "zero_point" in parts else np.array(self.levels // 2)
        factors: Array = codes.astype(np.float32) - zero_point.astype(np.float32)
        return factors


def unpack(packed: Array, bits: int, columns: int) -> Array:
    """[5] Codes [rows, columns] of `bits` bits each, the least significant bit first, every row from a new byte."""
    single = np.unpackbits(packed, axis=1, bitorder="little", count=columns * bits)
    return single.reshape(-1, columns, bits) @ (1 << np.arange(bits, dtype=np.uint16))


def values_of(dtype: str, shape: list[int], data: bytes) -> Array:
    """[2] An array: bf16 as float32, what numpy has no values for as raw bits, below 8 bits as packed bytes."""
    bits, numpy_dtype = DTYPES[dtype]
    values = np.frombuffer(data, numpy_dtype)
    if dtype == "bf16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(shape) if bits >= 8 else values


class Bytes:
    """[7] Bytes that are read from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        require(count <= len(self.data) - self.place, "a stream is cut short")
        self.place += count
        return self.data[self.place - count : self.place]

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.take(len(self.data) - self.place)

    def number(self) -> int:
        """7 bits a byte, lowest first; the top bit says that another byte follows."""
        value = 0
        for shift in range(0, 35, 7):
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                require(byte > 0 or shift == 0, "a number is longer than it needs to be")
                return value
        raise ValueError("a number is out of range")

    def tables(self, count: int) -> Array:
        """Tables of codes: frequencies [count, 256]."""
        tables = np.zeros((count, 256), np.int64)
        for table in tables:
            first, symmetric = divmod(self.number(), 2)
            last = first + self.number()
            require(last < 255 and (first == 127 or not symmetric), "a table lists a symbol above 254")
            table[first : last + 1] = [self.number() for _ in range(first, last + 1)]
            if symmetric:
                table[:127] = table[254:127:-1]
            table[255] = 2048 - table.sum()
        return checked(tables)

    def vector(self, count: int) -> Array:
        """Small numbers [count] with a table of their own."""
        stream = Bytes(self.take(self.number()))
        tables = stream.tables(1)
        found = [symbols for _, symbols in rans(stream.rest(), tables, count, 1, lambda i: np.zeros(1, np.int64))]
        return np.concatenate(found)


def checked(tables: Array) -> Array:
    """[7] Tables whose frequencies are right."""
    require(bool((tables >= 0).all() and (tables < 2048).all()), "a frequency is out of range")
    require(bool((tables.sum(axis=1) == 2048).all()), "the frequencies of a table do not add up")
    return tables


def rans(
    data: bytes, tables: Array, rows: int, width: int, table_of: Callable[[int], Array]
) -> Iterator[tuple[int, Array]]:
    """[7] The states and words of a stream as rows of symbols. `table_of(i)`: the table of every weight of row i."""
    each = tables.reshape(
        -1
    )  # of every value of the lower 11 bits: the symbol, its frequency, the place in its interval
    symbol, frequency = np.repeat(np.arange(each.size) % 256, each), np.repeat(each, each)
    place = np.arange(symbol.size) - np.repeat(np.cumsum(each) - each, each)
    lanes = min(32, width)
    require(len(data) >= 4 * lanes and len(data) % 2 == 0, "a stream is cut short")
    states = np.frombuffer(data, "<u4", lanes).astype(np.int64)
    words, taken = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.int64), 0
    require(bool((states >= 1 << 16).all()), "a state is out of range")
    for i in range(rows):
        table, symbols = table_of(i), np.empty(width, np.int64)
        for left in range(0, width, 32):
            x = states[: width - left]  # a view: what is written to it stays
            slot = table[left : left + 32] * 2048 + (x & 2047)
            symbols[left : left + 32] = symbol[slot]
            x[:] = frequency[slot] * (x >> 11) + place[slot]
            (short,) = np.nonzero(x < 1 << 16)
            require(taken + len(short) <= len(words), "a stream is cut short")
            x[short] = x[short] << 16 | words[taken : taken + len(short)]
            taken += len(short)
        yield i, symbols
    require(taken == len(words) and bool((states == 1 << 16).all()), "a stream does not end where it should")


def closed_codes(data: bytes, bits: int, rows: int, columns: int) -> Array:
    """[7] A slab of codes that have a table of their own."""
    stream, low = Bytes(data), max(0, bits - 8)
    tables = stream.tables(1)
    packed = np.frombuffer(stream.take(-(-rows * columns * low // 8)), np.uint8)
    codes = np.empty((rows, columns), np.int64)
    for i, symbols in rans(stream.rest(), tables, rows, columns, lambda i: np.zeros(columns, np.int64)):
        codes[i] = symbols
    return codes << low | unpack(packed[None], low, rows * columns).reshape(rows, columns) if low else codes


class Open:
    """[7] A set of tables of `ecq`, and the slabs that are coded with it."""

    def __init__(self, data: bytes) -> None:
        stream = Bytes(data)
        self.each, self.first, more = stream.take(3)
        self.last = self.first + more
        require(self.each in (1, 2) and self.last < 40, "a set of tables is malformed")
        self.tables = stream.tables((more + 1) * self.each)
        require(not stream.rest(), "a set of tables goes on where it should end")

    def slab(self, data: bytes, rows: int, columns: int, column_class: Array, trellis: bool) -> Array:
        """The integers n of a slab, [rows, columns]."""
        require(self.each == 1 + trellis, "a set of tables is for another kind of scheme")
        stream = Bytes(data)
        along, across = stream.vector(rows), column_class  # the path and its lanes
        classes = along[:, None] + across
        require(self.first <= classes.min() and classes.max() <= self.last, "a class has no table")
        if turned := rows < 256 and columns > rows:
            classes = classes.T
        escapes = self.escapes(stream, classes.size)
        low = np.maximum(0, (classes - (26 if trellis else 22)) // 4)
        raw = np.zeros(classes.shape, np.int64)
        for width in np.unique(low[low > 0]):  # boolean masks go row by row
            count = int((low == width).sum())
            packed = np.frombuffer(stream.take(-(-count * int(width) // 8)), np.uint8)
            raw[low == width] = unpack(packed[None], int(width), count)[0]
        points, state, used = np.empty(classes.shape, np.int64), np.zeros(classes.shape[1], np.int64), 0

        def table_of(i: int) -> Array:
            table: Array = (classes[i] - self.first) * self.each + (state & 1 if trellis else 0)
            return table

        for i, symbols in rans(stream.rest(), self.tables, *classes.shape, table_of):
            k = symbols - 127
            (rare,) = np.nonzero(symbols == 255)
            require(used + len(rare) <= len(escapes), "there are too few escapes")
            k[rare] = escapes[used : used + len(rare)]
            used += len(rare)
            k = k << low[i] | raw[i]
            points[i] = 2 * k - (state & 1) * np.sign(k) if trellis else k
            state = NEXT[state, k & 1]
        require(used == len(escapes), "there are too many escapes")
        require(bool((np.abs(points) < 1 << 31).all()), "an escape is out of range")
        return points.T if turned else points

    def escapes(self, stream: Bytes, most: int) -> Array:
        """The values of the symbols 255, in order."""
        count = stream.number()
        if not count:
            return np.zeros(0, np.int64)
        (width,) = stream.take(1)
        require(count <= most and width in (1, 2, 4), "the escapes are malformed")
        return np.frombuffer(stream.take(count * width), f"<i{width}").astype(np.int64)


class Planes:
    """[8] A lossless slab."""

    def __init__(self, data: bytes, dtype: str, units: int, columns: int) -> None:
        self.stream, self.columns = Bytes(data), columns
        self.dtype = {"c32": "f16", "c64": "f32"}.get(dtype, dtype)
        halves = 2 if self.dtype != dtype else 1
        self.units, self.columns = units * halves, columns * halves
        self.bytes = unit_bytes(dtype) // halves

    def decode(self) -> bytes:
        """The units as they were."""
        (mode,) = self.stream.take(1)
        require(mode < 2, "a stream is of an unknown kind")
        if mode == 0:
            require(len(self.stream.data) - 1 == self.units * self.bytes, "a stream has the wrong length")
            return self.stream.rest()
        (other,) = self.stream.take(1)
        first = self.plane(self.units)
        kept = first != 0 if other else np.ones(self.units, bool)
        planes = np.zeros((self.bytes, self.units), np.uint8)
        planes[0] = np.where(first == other, 0, first) if other else first
        for plane in planes[1:]:
            plane[kept] = self.plane(int(kept.sum()))
        require(not self.stream.rest(), "a stream goes on where it should end")
        words = np.ascontiguousarray(planes[::-1].T).view(f"<u{self.bytes}")[:, 0]
        return self.unit(words).astype(f"<u{self.bytes}").tobytes()

    def plane(self, size: int, *, classes: bool = True) -> Array:
        """A plane of `size` bytes."""
        (kind,) = self.stream.take(1)
        if kind == 0:
            return np.frombuffer(self.stream.take(size), np.uint8)
        require(size > 0 and kind < (4 if classes else 3), "a plane is of an unknown kind")
        if kind == 1:
            return np.full(size, self.stream.take(1)[0], np.uint8)
        width, count = flat_width(size), 1
        if kind == 3:
            count, low, shift = self.stream.take(3)
            require(0 < count <= 64 and shift < 8, "a plane has too many tables")
            width = self.columns if 64 <= self.columns <= size and size % self.columns == 0 else width
        rows, table = -(-size // width), np.zeros((1, width), np.int64)
        if kind == 3:
            row, column = (self.plane(length, classes=False).astype(np.int64) for length in (rows, width))
            table = np.clip(((row[:, None] + column) >> shift) - low, 0, count - 1)
        tables = self.tables(count)
        words = self.stream.number()
        data = self.stream.take(4 * min(32, width) + 2 * words)
        found = [symbols for _, symbols in rans(data, tables, rows, width, lambda i: table[i % len(table)])]
        plane = np.concatenate(found).astype(np.uint8)
        require(bool((plane[size:] == plane[size - 1]).all()), "a plane is not filled up with its last byte")
        return plane[:size]

    def tables(self, count: int) -> Array:
        """Tables of bytes: frequencies [count, 256]."""
        tables = np.zeros((count, 256), np.int64)
        for table in tables:
            first = self.stream.number()
            last = first + self.stream.number()
            require(last < 256, "a table lists a symbol above 255")
            table[first : last + 1] = [self.stream.number() for _ in range(first, last + 1)]
        return checked(tables)

    def unit(self, w: Array) -> Array:
        """Words as units."""
        if self.dtype in ("f16", "bf16", "f32"):
            small = 8 * self.bytes - 9  # bits below the sign
            return w << 8 & 1 << small + 8 | w >> 1 & 0xFF << small | w & (1 << small) - 1
        if self.dtype == "f64":
            return w << 60 & 7 << 60 | w << 8 & 1 << 63 | w >> 4 & 0xFF << 52 | w >> 3 & (1 << 52) - 1
        if self.dtype in ("f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz"):
            return w >> 1 | w << 7
        return w >> 1 ^ -(w & 1) if self.dtype[0] == "i" else w


def flat_width(size: int) -> int:
    """[8] The width of rows that have no classes."""
    if size < 1 << 14:
        return 2 if size < 1 << 10 else 8
    return min(range(4096, 1023, -32), key=lambda width: -size % width)


def unit_bytes(dtype: str) -> int:
    """[2] Bytes of a unit."""
    bits = DTYPES[dtype][0]
    return bits // 8 if bits in (16, 32, 64) else 1


def unit_slabs(dtype: str, shape: list[int]) -> Iterator[tuple[int, int]]:
    """[3] Slabs of a tensor without a scheme, in units."""
    columns = matrix(shape)[1]
    step = SLAB - SLAB % columns if 0 < columns <= SLAB else SLAB
    units = size(shape) * DTYPES[dtype][0] // 8 // unit_bytes(dtype)
    return ((first, min(first + step, units)) for first in range(0, units, step))


def row_slabs(shape: list[int], tall: bool) -> Iterator[tuple[int, int]]:
    """[3] Slabs of a tensor with a scheme, in rows."""
    rows, columns = matrix(shape)
    step = max(1, SLAB // columns)
    if tall:
        most = min(1024, max(1, 4 * SLAB // columns))
        step = -(-rows // -(-rows // most))
    return ((first, min(first + step, rows)) for first in range(0, rows, step))


def decode_tensor(entry: dict[str, Any], arrays: dict[str, Stored], sets: list[Open]) -> Array:
    """[5] One tensor of the manifest; its parts are taken out of `arrays`, and their checksums compared."""
    dtype, shape = entry["dtype"], entry["shape"]
    bits, (rows, columns) = DTYPES[dtype][0], matrix(shape)
    scheme = Scheme(entry["scheme"], columns) if "scheme" in entry else None
    coder = entry.get("coder", "")
    if scheme is None:
        named = bits >= 8 and dtype not in ("c32", "c128")
        expected: dict[str, tuple[str, list[int] | None]]
        expected = {"raw": (dtype, shape) if named else ("u8", [size(shape) * bits // 8])}
    else:
        require(scheme.raw or dtype in ("f64", "f32", "f16", "bf16"), f"{dtype} has no scheme")
        require(rows * columns > 0, f"{shape} has no scheme")
        require(coder in (("",) if scheme.plain else scheme.coders), "unknown coder")
        expected = scheme.parts(shape, coder)
    require(set(entry["parts"]) == set(expected), "its parts are not those of its scheme")
    slabs: list[tuple[int, int]] = []
    parts, pieces = {}, []
    for local, (part_dtype, part_shape) in expected.items():
        part = entry["parts"][local]
        *stored, data = arrays.pop(part["name"], ("", [], b""))
        wanted = [part_dtype, [len(data)] if part_shape is None else part_shape]
        require(stored == wanted, f"{local} is missing, used twice or not what its shape asks for")
        require(part_shape is not None or columns <= len(data) << 19, "its shape asks for more than there is")
        by_rows = scheme is not None and not scheme.raw
        slabs = [*islice(row_slabs(shape, scheme.open) if by_rows else unit_slabs(dtype, shape), len(data) + 1)]
        if scheme and local in scheme.params and not scheme.per_row:
            sizes = [len(data)]
        elif part_shape is None:  # the manifest has them
            sizes = np.frombuffer(bytes.fromhex(part["bytes"]), ">u4").tolist()
            require(len(sizes) == len(slabs) and sum(sizes) == len(data), f"the slabs of {local} do not add up")
        else:
            unit = unit_bytes(dtype) if scheme is None else len(data) // rows
            sizes = [(last - first) * unit for first, last in slabs]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        pieces = [data[end - length : end] for end, length in zip(ends, sizes, strict=True)]
        require("".join(f"{zlib.crc32(piece):08x}" for piece in pieces) == part["crc32"], f"{local} is damaged")
        if part_shape is not None:
            parts[local] = values_of(part_dtype, part_shape, data) if scheme else values_of(dtype, shape, data)
        elif local in ("column_class", "column_step"):
            stream = Bytes(data)
            parts[local] = stream.vector(columns)
            most = 40 if local == "column_class" else 64
            require(not stream.rest() and parts[local].max() < most, f"{local} is malformed")
    if scheme is None:
        return parts["raw"]
    if scheme.plain:
        return parts["values"].astype(np.float32)
    if scheme.raw:
        found = [Planes(piece, dtype, b - a, columns).decode() for piece, (a, b) in zip(pieces, slabs, strict=True)]
        return values_of(dtype, shape, b"".join(found))
    if coder == "bitpack":
        return scheme.decode(unpack(parts["codes"], scheme.bits, columns), parts, columns).reshape(shape)
    if not scheme.open:
        each = [closed_codes(piece, scheme.bits, b - a, columns) for piece, (a, b) in zip(pieces, slabs, strict=True)]
        return scheme.decode(np.concatenate(each), parts, columns).reshape(shape)
    number, step = entry["tables"], parts["step"][0, 0]
    require(type(number) is int and 0 <= number < len(sets), "its tables are missing")
    require(bool(np.isfinite(step) and step > 0), "its step is not positive")
    each = [
        sets[number].slab(piece, b - a, columns, parts["column_class"], scheme.trellis)
        for piece, (a, b) in zip(pieces, slabs, strict=True)
    ]
    with np.errstate(over="ignore"):
        weights = np.concatenate(each).astype(np.float32) * step
        if "column_step" in parts:
            octaves, eighths = np.divmod(parts["column_step"].astype(np.int64), 8)
            weights *= np.ldexp(EIGHTHS[eighths], octaves - 4).astype(np.float32)
    require(bool(np.isfinite(weights).all()), "a weight is not finite")
    return weights.reshape(shape)


def decode(path: str | Path) -> dict[str, Array]:
    """Return every tensor by name. Treated weights are float32, before they are rounded to the dtype of the source."""
    return read(path)[0]


def read(path: str | Path) -> tuple[dict[str, Array], bytes | None]:
    """The tensors, and the header that the source had, where it was kept."""
    arrays, metadata = read_safetensors(Path(path).read_bytes())
    manifest = read_manifest(metadata)
    sets = [Open(b64decode(text, validate=True)) for text in manifest.get("tables", [])]
    tensors = {}
    for name, entry in manifest["tensors"].items():
        try:
            tensors[name] = decode_tensor(entry, arrays, sets)
        except ValueError as error:
            raise ValueError(f"tensor {name}: {error}") from None
    header = None
    if "header" in manifest["source"]:
        header = decode_tensor(manifest["source"]["header"], arrays, sets).tobytes()
    require(not arrays, f"arrays of no tensor: {', '.join(arrays)}")
    outer = manifest["outer"] or {"names": list(tensors), "ties": {}}  # [4]
    return {name: tensors[outer["ties"].get(name, name)] for name in outer["names"]} | tensors, header


if __name__ == "__main__":
    for name, weights in decode(sys.argv[1]).items():
        sys.stdout.write(f"{name} {list(weights.shape)} {weights.dtype}\n")
