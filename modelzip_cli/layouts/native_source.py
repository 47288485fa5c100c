"""A native file read as the weights that it stands for.

What its manifest says has been checked before (layouts/manifest.py); bytes are checked while they are read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NoReturn

from modelzip_cli.coders import coder
from modelzip_cli.containers.checksum import combine
from modelzip_cli.containers.ledger import Ledger
from modelzip_cli.errors import BrokenCheckpoint, UsageError, inert
from modelzip_cli.kernels import jit
from modelzip_cli.layouts import Part
from modelzip_cli.layouts.manifest import read_manifest, read_records, read_surroundings, read_tables
from modelzip_cli.layouts.native import (
    BITPACK,
    CODES,
    VALUES,
    Record,
    slabs,
)
from modelzip_cli.tensors import DType, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    from modelzip_cli.schemes.base import Params
    from modelzip_cli.tensors import Bits, Block


class NativeSource:
    """A native file as the weights that it stands for, decoded row by row while they are read."""

    compressed = True

    def __init__(self, container: Any) -> None:
        self._container = container
        self.container = container.container
        self.file = container.file
        self.sha256 = container.sha256
        self.label = container.file.label
        self.warnings: tuple[str, ...] = ()
        self.manifest = read_manifest(container)
        self._ledger = Ledger()
        try:
            records, self._header = read_records(container, self.manifest)
            self.records = {record.spec.name: record for record in records}
            self.metadata, self.outer = read_surroundings(self.manifest, self.records)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
            raise BrokenCheckpoint(
                f"{self.label}: its manifest is malformed: {inert(str(error), longest=200)}"
            ) from None
        except UsageError as error:  # of a scheme name or its options
            raise BrokenCheckpoint(f"{self.label}: its manifest is malformed: {error}") from None
        beside = set(self.records) - set(self.outer.names) if self.outer else set()
        ties = self.outer.ties if self.outer else {}
        names = self.outer.names if self.outer else tuple(self.records)
        specs = ((name, self.records[ties.get(name, name)].spec) for name in names)
        self.specs = {name: TensorSpec(name, spec.dtype, spec.shape) for name, spec in specs}
        self.beside = {name: record.spec for name, record in self.records.items() if name in beside}
        self._tables = read_tables(self.manifest, self.label)
        self._recent: tuple[tuple[str, int], Any] | None = None
        self._params = {  # those that have to be decoded wait until they are needed
            name: self._tensor_params(record)
            for name, record in self.records.items()
            if not any(part.coded and not part.per_row for part in record.parts)
        }

    def read(self, name: str, start: int, stop: int) -> Bits:
        owner = self.outer.ties.get(name, name) if self.outer else name
        record = self.records[owner]
        if record.scheme is None:
            (part,) = record.parts
            width = record.spec.dtype.unit_bytes // part.spec.dtype.unit_bytes
            bits = self._read_part(part, start * width, stop * width)
            return bits.view(record.spec.dtype.unit)
        if record.scheme.raw:
            units: Bits = self._pieces(record, start, stop)
            return units
        from modelzip_cli.kernels.widen import narrow

        columns = record.spec.matrix[1]
        first, last = start // columns, -(-stop // columns)
        block = self._decode(record, first, last)
        return narrow(block, record.spec.dtype).reshape(-1)[start - first * columns : stop - first * columns]

    @cached_property
    def header(self) -> bytes | None:
        """The header that the source had, where it was kept."""
        if self._header is None:
            return None
        return bytes(self._pieces(self._header, 0, self._header.spec.size))

    @property
    def _all_records(self) -> list[Record]:
        return [*self.records.values(), *([self._header] if self._header else [])]

    def pieces(self, name: str) -> Iterator[tuple[int, int]]:
        """The units of a tensor in the pieces that are decoded at a time."""
        record = self.records[self.outer.ties.get(name, name) if self.outer else name]
        if record.scheme is None or not any(part.coded and part.per_row for part in record.parts):
            return record.spec.unit_slabs()
        width = 1 if record.scheme.raw else record.spec.matrix[1]
        return ((first * width, last * width) for first, last in slabs(record.spec, record.scheme))

    def finish(self) -> None:
        """Check every part that was read against its checksums."""
        for record in self._all_records:
            for part in record.parts:
                self._check_part(record, part)
        self._container.finish()

    def verify(self) -> Iterator[tuple[str, int, list[str]]]:
        """Read everything; yield (tensor, bytes, what is wrong: an empty list when nothing is)."""
        for record in self._all_records:
            name, bad = record.spec.name, []
            for part in record.parts:
                for number, (begin, end) in enumerate(_part_slabs(record, part)):
                    crc = zlib.crc32(self._container.read(part.spec.name, begin, end))
                    if crc != record.crc32[part.local][number]:
                        bad.append(f"{part.local}: slab {number} does not match its checksum")
            if not bad and record is not self._header:
                self._params_of(record)  # what was decoded late is checked as well
            yield name, sum(part.spec.bytes for part in record.parts), bad

    def close(self) -> None:
        self._container.close()

    def _decode(self, record: Record, first: int, last: int) -> Block:
        """Rows [first, last) of a treated tensor as float32."""
        import numpy as np

        scheme, (_, columns) = record.scheme, record.spec.matrix
        assert scheme is not None
        if scheme.levels is None:
            values: Block = self._pieces(record, first, last)
            return values
        params = dict(self._params_of(record))
        packed = None
        for part in record.parts:
            if not part.per_row:
                continue
            if part.coded:
                packed = self._pieces(record, first, last)
                continue
            row = part.spec.units // record.spec.matrix[0]
            bits = self._read_part(part, first * row, last * row)
            if part.local in (CODES, VALUES):
                packed = bits
            else:
                params[part.local] = _from_bits(bits.reshape(last - first, -1), part.spec.dtype)
        assert packed is not None
        self._check_params(record, params)
        if scheme.plain is not None:
            return scheme.decode(packed.reshape(last - first, columns), params)
        codes = packed
        if record.coder == BITPACK:
            codes = coder(BITPACK).unpack(packed, scheme.bits, last - first, columns)
        if scheme.levels < 1 << scheme.bits and codes.size and int(codes.max()) >= scheme.levels:
            self._broken(record, "a code is out of range")
        block = scheme.decode(codes, params)
        if not np.isfinite(block).all():
            self._broken(record, "a weight is not finite")
        return block

    def _pieces(self, record: Record, start: int, stop: int) -> Any:
        """Rows, or units of a raw tensor, [start, stop) of a coded part: codes, or float32 of an open range."""
        import numpy as np

        found, begin = [], 0
        part = next(part for part in record.parts if part.coded and part.per_row)
        ends = [*accumulate(record.sizes[part.local])]
        for number, (first, last) in enumerate(slabs(record.spec, record.scheme)):
            if first < stop and last > start:
                begin = ends[number - 1] if number else 0
                whole = self._piece(record, part, number, (begin, ends[number]), (first, last))
                found.append(whole[max(start - first, 0) : stop - first])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _piece(self, record: Record, part: Part, number: int, place: tuple[int, int], rows: tuple[int, int]) -> Any:
        """One slab of a coded part, whole; the last one is remembered, since readers may ask for less at a time."""
        key, recent = (part.spec.name, number), self._recent  # a tensor may be called like the header
        if recent is not None and recent[0] == key:
            return recent[1]
        width = 1 if record.scheme and record.scheme.raw else record.spec.matrix[1]
        jit.expect((rows[1] - rows[0]) * width, jit.CODED)
        data = self._read_part(part, *place)
        if zlib.crc32(data.data) != record.crc32[part.local][number]:
            self._broken(record, f"{part.local}: slab {number} does not match its checksum: the file is damaged")
        from modelzip_cli.coders.tables import Damaged

        try:
            found = self._unpacked(record, data, *rows)
        except Damaged as error:
            self._broken(record, f"{part.local}: slab {number} cannot be decoded: {error}")
        self._recent = key, found
        return found

    def _unpacked(self, record: Record, data: Bits, first: int, last: int) -> Any:
        scheme, (_, columns) = record.scheme, record.spec.matrix
        assert scheme is not None
        if scheme.raw:
            from modelzip_cli.coders.lossless import unpack

            return unpack(data, record.spec.dtype, last - first, columns)
        from modelzip_cli.coders.rans import Rans

        if scheme.levels is not None:
            return Rans().unpack(data, scheme.bits, last - first, columns)
        import numpy as np

        params = {**self._params_of(record), "row_class": np.zeros((last - first, 1), np.int32)}
        contexts = scheme.contexts(params, last - first, columns)
        tables = self._tables[record.tables or 0]
        with np.errstate(over="ignore"):  # what is not finite is found below
            block = scheme.absolute(Rans().unpack_points(data, contexts, tables, params["step"][0, 0]), params)
        if not np.isfinite(block).all():
            self._broken(record, "a weight is not finite")
        return block

    def _params_of(self, record: Record) -> Params:
        name = record.spec.name
        if name not in self._params:
            self._params[name] = self._tensor_params(record)
        return self._params[name]

    def _tensor_params(self, record: Record) -> Params:
        params = {}
        for part in record.parts:
            if not part.per_row:
                stored = self._read_part(part, 0, part.spec.units)
                params[part.local] = (
                    self._vector(record, part, stored)
                    if part.coded
                    else _from_bits(stored.reshape(part.spec.shape), part.spec.dtype)
                )
        self._check_params(record, params)
        return params

    def _vector(self, record: Record, part: Part, stored: Bits) -> Any:
        """A param of small integers that the entropy coder stored, [1, columns]."""
        from modelzip_cli.coders.rans import unpack_vector
        from modelzip_cli.coders.tables import Damaged

        if zlib.crc32(stored.data) != record.crc32[part.local][0]:
            self._broken(record, f"{part.local} does not match its checksum: the file is damaged")
        jit.expect(record.spec.matrix[1], jit.ONE_LANE)
        try:
            values, rest = unpack_vector(stored, record.spec.matrix[1])
        except Damaged as error:
            self._broken(record, f"{part.local} cannot be decoded: {error}")
        if len(rest):
            self._broken(record, f"{part.local} has bytes that mean nothing")
        return values.reshape(1, -1)

    def _check_params(self, record: Record, params: Params) -> None:
        import numpy as np

        for local, values in params.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                self._broken(record, f"{local} is not finite")
        if record.scheme is not None and params and (wrong := record.scheme.check(params)):
            self._broken(record, wrong)

    def _read_part(self, part: Part, begin: int, end: int) -> Bits:
        bits: Bits = self._container.read(part.spec.name, begin, end)
        self._ledger.note(part.spec.name, begin * bits.itemsize, bits.data.cast("B"))
        return bits

    def _check_part(self, record: Record, part: Part) -> None:
        if part.spec.name not in self._ledger.names():
            return
        width = part.spec.dtype.unit_bytes
        expected = 0
        for crc, (begin, end) in zip(record.crc32[part.local], _part_slabs(record, part), strict=True):
            expected = combine(expected, crc, (end - begin) * width)
        if self._ledger.crc(part.spec.name, part.spec.bytes, partial(self._bytes_of, part)) != expected:
            self._broken(record, f"{part.local} does not match its checksum: the file is damaged")

    def _bytes_of(self, part: Part, begin: int, end: int) -> bytes:
        width = part.spec.dtype.unit_bytes
        bits: Bits = self._container.read(part.spec.name, begin // width, end // width)
        return bits.tobytes()

    def _broken(self, record: Record, what: str) -> NoReturn:
        raise BrokenCheckpoint(f"{self.label}: tensor {inert(record.spec.name, longest=200)}: {what}")


def _from_bits(bits: Bits, dtype: DType) -> np.ndarray[Any, Any]:
    from modelzip_cli.kernels.widen import widen

    if dtype.kind == "float":
        return widen(bits, dtype)
    return bits.view(f"<{dtype.id[0]}{dtype.bits // 8}")


def _part_slabs(record: Record, part: Part) -> Iterator[tuple[int, int]]:
    """The pieces of a part that have a checksum each, in units of the part."""
    if part.coded and part.per_row:
        ends = [0, *accumulate(record.sizes[part.local])]
        return iter([*pairwise(ends)])
    if record.scheme is None:
        width = record.spec.dtype.unit_bytes // part.spec.dtype.unit_bytes
        return ((begin * width, end * width) for begin, end in record.spec.unit_slabs())
    if not part.per_row:
        return iter([(0, part.spec.units)])
    row = part.spec.units // max(1, record.spec.matrix[0])
    return ((first * row, last * row) for first, last in record.spec.row_slabs())
