"""Safetensors files, read strictly and written in one pass.

Source: the format section of the safetensors README, and safetensors 0.8.0 `tensor.rs`. Two rules are stricter than
that reader: a key may not appear twice, and the metadata may not hold lone surrogates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.containers.streams import open_output
from modelzip_cli.containers.strict_json import NotStrict, dumps, parse
from modelzip_cli.errors import BrokenCheckpoint, UnsupportedCheckpoint, inert
from modelzip_cli.tensors import DTYPES, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits

MOST_HEADER = 100_000_000  # as safetensors
MOST_TENSORS = 1_000_000
MOST_RANK = 64
METADATA = "__metadata__"
NAMES = {dtype.id.upper(): dtype for dtype in DTYPES.values() if dtype.id not in ("c32", "c128")}
ALIGNMENT = 64


class SafetensorsFile:
    """A safetensors file as named arrays. The header is checked whole before anything is read."""

    container = "safetensors"
    compressed = False
    outer: Outer | None = None
    warnings: tuple[str, ...] = ()

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        text = self._header_text()
        self.sha256 = hashlib.sha256(text).hexdigest()
        try:
            header = parse(text)
        except NotStrict as error:
            raise self._broken(f"its header is not the JSON of safetensors: {inert(str(error), longest=200)}") from None
        if not isinstance(header, dict):
            raise self._broken("its header is not a JSON object")
        self.metadata = self._metadata(header.pop(METADATA, {}))
        self._data = 8 + len(text)
        self.specs: dict[str, TensorSpec] = {}
        self._begin: dict[str, int] = {}
        if len(header) > MOST_TENSORS:
            raise self._broken(f"more than {MOST_TENSORS:,} tensors")
        for name, entry in header.items():
            self.specs[name], self._begin[name] = self._entry(name, entry)
        self._check_cover()

    @property
    def header(self) -> bytes:
        """The header as it stands in the file."""
        return self.file.read(8, self._data - 8)

    @property
    def beside(self) -> dict[str, TensorSpec]:
        """Tensors that are not weights: none in this container."""
        return {}

    def read(self, name: str, start: int, stop: int) -> Bits:
        import numpy as np

        dtype = self.specs[name].dtype
        offset = self._data + self._begin[name] + start * dtype.unit_bytes
        return np.frombuffer(self.file.read(offset, (stop - start) * dtype.unit_bytes), dtype.unit)

    def finish(self) -> None:
        self.file.check_unchanged()

    def close(self) -> None:
        self.file.close()

    def _broken(self, what: str) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"{self.file.label}: {what}")

    def _header_text(self) -> bytes:
        if self.file.size < 8:
            raise self._broken("too short for a safetensors file; download or copy it again")
        length = int.from_bytes(self.file.read(0, 8), "little")
        if length > MOST_HEADER:
            raise self._broken("not a safetensors file, or its header is longer than 100 MB")
        if 8 + length > self.file.size:
            raise self._broken(
                f"cut short: the header needs {8 + length:,} bytes, the file has {self.file.size:,}; "
                "download or copy it again"
            )
        text = self.file.read(8, length)
        if not text.startswith(b"{"):
            raise self._broken("not a safetensors file: its header does not begin with '{'")
        return text

    def _metadata(self, metadata: Any) -> dict[str, str]:
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._broken("its __metadata__ is not a map from text to text")
        return metadata

    def _entry(self, name: str, entry: Any) -> tuple[TensorSpec, int]:
        def broken(what: str) -> BrokenCheckpoint:
            return self._broken(f"tensor {inert(name, longest=200)}: {what}")

        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise broken("its header entry is not dtype, shape and data_offsets")
        dtype, shape, offsets = NAMES.get(str(entry["dtype"])), entry["shape"], entry["data_offsets"]
        if dtype is None:
            raise broken(f"unknown dtype {inert(str(entry['dtype']), longest=40)}")
        if not isinstance(shape, list) or len(shape) > MOST_RANK or not all(_is_count(size) for size in shape):
            raise broken("its shape is not a list of sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
            raise broken("its data_offsets are not two offsets")
        spec = TensorSpec(name, dtype, tuple(shape))
        begin, end = offsets
        if end - begin != spec.bytes or spec.size * dtype.bits % 8:
            raise broken(f"shape and dtype need {spec.bytes:,} bytes, its data_offsets give {end - begin:,}")
        return spec, begin

    def _check_cover(self) -> None:
        """The tensors must cover the data exactly: no hole, no overlap, no byte left."""
        position = 0
        for name in sorted(self.specs, key=lambda name: (self._begin[name], self.specs[name].bytes)):
            if self._begin[name] != position:
                raise self._broken(f"tensor {inert(name, longest=200)}: its bytes overlap others or leave a gap")
            position += self.specs[name].bytes
        if self._data + position != self.file.size:
            raise self._broken(
                f"the header describes {self._data + position:,} bytes, the file has {self.file.size:,}; "
                "download or copy it again"
            )


def places_of(header: bytes) -> dict[str, int]:
    """Where the arrays of a header begin in the data."""
    return {name: entry["data_offsets"][0] for name, entry in parse(header).items() if name != METADATA}


def fits(header: bytes, specs: Mapping[str, TensorSpec]) -> bool:
    """Whether a header describes exactly these arrays, one after the other."""
    try:
        entries = parse(header)
        entries.pop(METADATA, None)
        position = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            spec = specs[name]
            end = position + spec.bytes
            if entry != {"dtype": spec.dtype.id.upper(), "shape": [*spec.shape], "data_offsets": [position, end]}:
                return False
            position = end
        return set(entries) == set(specs)
    except (NotStrict, AttributeError, KeyError, TypeError, ValueError):
        return False


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def header_text(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> str:
    """The JSON header of arrays that follow each other in the order of `specs`."""
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    position = 0
    for spec in specs:
        end = position + spec.bytes
        header[spec.name] = {"data_offsets": [position, end], "dtype": spec.dtype.id.upper(), "shape": [*spec.shape]}
        position = end
    return dumps(header)


class SafetensorsSink:
    """Writes arrays one after the other, then the header, padded with spaces to the size reserved for it."""

    container = "safetensors"

    def __init__(self, path: Path, *, replace: bool, header_bytes: int, header: bytes | None = None) -> None:
        """`header`: the one to write, byte for byte, in which every array that comes has its place."""
        self._verbatim = header
        self._header_bytes = self.reserved(header_bytes) if header is None else len(header)
        if self._header_bytes > MOST_HEADER:
            raise UnsupportedCheckpoint(
                f"{inert(str(path))}: names and values beside the weights need {header_bytes:,} bytes of header, more "
                "than a safetensors file may have: write a torch file (-o NAME.pth)"
            )
        self.output = open_output(path, replace=replace)
        self._specs: list[TensorSpec] = []
        self._offsets: dict[str, int] = {}
        self._position = 8 + self._header_bytes
        self._given = {} if header is None else places_of(header)

    @staticmethod
    def reserved(header_bytes: int) -> int:
        """The padded size of a header of up to `header_bytes`: data begins at a multiple of 64."""
        return header_bytes + -(8 + header_bytes) % ALIGNMENT

    def begin(self, spec: TensorSpec) -> None:
        self._specs.append(spec)
        self._offsets[spec.name] = self._position
        if self._verbatim is not None:
            self._offsets[spec.name] = 8 + self._header_bytes + self._given[spec.name]
        self._position += spec.bytes

    def write(self, name: str, offset: int, data: memoryview, crc: int) -> None:
        self.output.write(self._offsets[name] + offset, data)

    def resize(self, name: str, size: int) -> None:
        last = self._specs[-1]
        place = next(k for k in reversed(range(len(self._specs))) if self._specs[k].name == name)
        assert place == len(self._specs) - 1 or self._specs[place].bytes == size, f"{name} is not the last: {last.name}"
        self._position += size - self._specs[place].bytes
        self._specs[place] = replace(self._specs[place], shape=(size,))

    def finish(self, metadata: Mapping[str, str], outer: Outer | None) -> int:
        text = self._verbatim or header_text(self._specs, metadata).encode()
        assert len(text) <= self._header_bytes, "the header outgrew the space reserved for it"
        self.output.write(0, self._header_bytes.to_bytes(8, "little") + text.ljust(self._header_bytes))
        return self.output.sync()

    @property
    def pending(self) -> Path:
        return self.output.pending

    def commit(self) -> None:
        self.output.commit()

    def abort(self) -> None:
        self.output.abort()
