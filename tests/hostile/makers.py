"""Hostile files made by code: an assembler for pickles, a zip writer with wrong fields, a safetensors header writer.

And `read_all`, which takes everything out of a checkpoint, as the tests compare it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from modelzip_cli.containers.tree import to_json
from modelzip_cli.containers.zip_file import CENTRAL, END, LOCAL
from modelzip_cli.source import open_source

# Pickles: every function returns the opcodes that leave one value on the stack

MARK, STOP, REDUCE, BUILD, POP = b"(", b".", b"R", b"b", b"0"


def pickle_of(*opcodes: bytes, protocol: int = 2) -> bytes:
    """A whole pickle that leaves what `opcodes` leave."""
    return b"\x80" + bytes([protocol]) + b"".join(opcodes) + STOP


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(raw) < 256:
        return b"\x8a" + bytes([len(raw)]) + raw
    return b"\x8b" + struct.pack("<I", len(raw)) + raw


def name(dotted: str) -> bytes:
    """A global: `os.system`."""
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def sequence(*values: bytes) -> bytes:
    """A tuple."""
    return MARK + b"".join(values) + b"t"


def items(*values: bytes) -> bytes:
    """A list."""
    return b"](" + b"".join(values) + b"e"


def mapping(pairs: Mapping[str, bytes] | Iterable[tuple[bytes, bytes]]) -> bytes:
    """A dict; keys are text, or opcodes when `pairs` are pairs."""
    found = [(text(key), value) for key, value in pairs.items()] if isinstance(pairs, Mapping) else pairs
    return b"}(" + b"".join(key + value for key, value in found) + b"u"


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + sequence(*arguments) + REDUCE


def memoized(value: bytes, place: int) -> bytes:
    return value + b"r" + struct.pack("<I", place)


def recalled(place: int) -> bytes:
    return b"j" + struct.pack("<I", place)


def storage(key: str = "0", count: int = 4, kind: str = "torch.FloatStorage") -> bytes:
    return sequence(text("storage"), name(kind), text(key), text("cpu"), integer(count)) + b"Q"


def tensor(
    shape: Sequence[int] = (2, 2),
    strides: Sequence[int] | None = None,
    *,
    offset: int = 0,
    held: bytes | None = None,
    metadata: Sequence[bytes] = (),
) -> bytes:
    """A call of `_rebuild_tensor_v2` on storage 0, which holds as many floats as the shape asks for."""
    if strides is None:
        strides = [prod(shape[place + 1 :]) for place in range(len(shape))]
    return call(
        "torch._utils._rebuild_tensor_v2",
        storage(count=prod(shape)) if held is None else held,
        integer(offset),
        sequence(*map(integer, shape)),
        sequence(*map(integer, strides)),
        b"\x89",
        call("collections.OrderedDict"),
        *metadata,
    )


# Zip archives


@dataclass(frozen=True)
class Member:
    """A zip entry; what is None is what an honest writer would put there."""

    name: str
    data: bytes
    crc: int | None = None
    method: int = 0
    flags: int = 0
    size: int | None = None  # in the directory; `stored` likewise
    stored: int | None = None
    local_name: str | None = None
    header: int | None = None  # where the directory says that it begins
    twice: bool = False  # in the directory


def zip_of(
    members: Sequence[Member],
    *,
    before: bytes = b"",
    after: bytes = b"",
    comment: bytes = b"",
    count: int | None = None,
    shift: int = 0,
) -> bytes:
    """An archive. `count` and `shift` falsify what its last record says of the directory."""
    out, directory = bytearray(before), bytearray()
    for member in members:
        raw, local = member.name.encode(), (member.local_name or member.name).encode()
        crc = zlib.crc32(member.data) if member.crc is None else member.crc
        begin = len(out) if member.header is None else member.header
        size = len(member.data)
        out += LOCAL.pack(b"PK\x03\x04", 20, member.flags, member.method, 0, 33, crc, size, size, len(local), 0)
        out += local + member.data
        stored = size if member.stored is None else member.stored
        size = size if member.size is None else member.size
        fields = (20, 20, member.flags, member.method, 0, 33, crc, stored, size, len(raw), 0, 0, 0, 0, 0, begin)
        directory += (CENTRAL.pack(b"PK\x01\x02", *fields) + raw) * (2 if member.twice else 1)
    number = sum(1 + member.twice for member in members) if count is None else count
    end = END.pack(b"PK\x05\x06", 0, 0, number, number, len(directory), len(out) + shift, len(comment))
    return bytes(out + directory) + end + comment + after


def torch_members(pickle: bytes, storages: Mapping[str, bytes] | None = None, root: str = "archive") -> list[Member]:
    """The entries of a torch file; without `storages`, storage 0 holds four floats."""
    if storages is None:
        storages = {"0": struct.pack("<4f", 1, 2, 3, 4)}
    entries = {"data.pkl": pickle, "byteorder": b"little"}
    entries |= {f"data/{key}": data for key, data in storages.items()}
    return [Member(f"{root}/{entry}", data) for entry, data in (entries | {"version": b"3\n"}).items()]


def torch_file(path: Path, *opcodes: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    """A torch file whose pickle leaves what `opcodes` leave."""
    path.write_bytes(zip_of(torch_members(pickle_of(*opcodes), storages)))
    return path


# Safetensors files


def safetensors_of(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of `header`: bytes as they are, anything else as JSON. `length` falsifies the first eight bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    """The header entry of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# Reading


@dataclass(frozen=True)
class Model:
    """All that a checkpoint says: (dtype, shape, bytes) by name, ties, what is around the weights, text pairs."""

    tensors: dict[str, tuple[str, tuple[int, ...], bytes]]
    ties: dict[str, str] = field(default_factory=dict)
    around: Any = None
    metadata: dict[str, str] = field(default_factory=dict)


def read_all(path: Path, *, key: str | None = None, keep_extras: bool = True) -> Model:
    """Read everything in the checkpoint at `path` and check it. Raises what the reader raises."""
    source = open_source(path, key=key, keep_extras=keep_extras)
    try:
        found = {}
        for tensor_name, spec in {**source.specs, **source.beside}.items():
            pieces = [source.read(tensor_name, start, stop) for start, stop in spec.unit_slabs()]
            data = b"".join(piece.tobytes() for piece in pieces)
            assert len(data) == spec.bytes
            found[tensor_name] = (spec.dtype.id, spec.shape, data)
        source.finish()
        outer = source.outer
        around = None if outer is None else to_json(outer.tree)
        return Model(found, dict(outer.ties) if outer else {}, around, dict(source.metadata))
    finally:
        source.close()
