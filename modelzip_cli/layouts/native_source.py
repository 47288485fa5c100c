"""A native file read as the weights that it stands for.

The manifest is untrusted input: all of it is checked against what the container holds before any memory is taken.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from base64 import b64decode
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING, Any, NoReturn

from modelzip_cli.coders import coder
from modelzip_cli.containers.checksum import combine
from modelzip_cli.containers.ledger import Ledger
from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.strict_json import NotStrict, parse
from modelzip_cli.containers.tree import Call, Named, Weights, from_json
from modelzip_cli.errors import BrokenCheckpoint, UnsupportedCheckpoint, UsageError, inert
from modelzip_cli.kernels import jit
from modelzip_cli.layouts import Part
from modelzip_cli.layouts.native import (
    BITPACK,
    CODES,
    DIGEST,
    FORMAT_VERSION,
    KEY,
    LOSSLESS,
    RANS,
    VALUES,
    Record,
    native_parts,
    slabs,
)
from modelzip_cli.schemes import parse_scheme
from modelzip_cli.tensors import DTYPES, U8, DType, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    from modelzip_cli.coders.tables import Tables
    from modelzip_cli.schemes.base import Params, Scheme
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
        self.manifest = _read_manifest(container)
        self._ledger = Ledger()
        try:
            records, self._header = _records(container, self.manifest)
            self.records = {record.spec.name: record for record in records}
            self.metadata, self.outer = _surroundings(self.manifest, self.records)
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
        self._tables = _tables(self.manifest, self.label)
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
            block = Rans().unpack_points(data, contexts, tables, params["step"][0, 0])
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


def is_native(metadata: Mapping[str, str]) -> bool:
    """Say whether the metadata of a container is that of a native output."""
    return KEY in metadata or DIGEST in metadata  # one flipped bit in a key must not make it another file


def _read_manifest(container: Any) -> dict[str, Any]:
    label, metadata = container.file.label, container.metadata
    text = metadata.get(KEY, "")
    try:
        manifest = parse(text)
    except NotStrict as error:
        raise BrokenCheckpoint(f"{label}: its manifest is not JSON: {inert(str(error), longest=200)}") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version < 1:
        raise BrokenCheckpoint(f"{label}: its manifest has no format version")
    if version > FORMAT_VERSION:
        writer = inert(str(manifest.get("modelzip")), longest=40)
        raise UnsupportedCheckpoint(
            f"{label}: written by modelzip {writer} in format {version}; "
            f"this one reads up to {FORMAT_VERSION}: update modelzip"
        )
    if hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() != metadata.get(DIGEST):
        raise BrokenCheckpoint(f"{label}: its manifest does not match its checksum: the file is damaged")
    return dict(manifest)


def _records(container: Any, manifest: Mapping[str, Any]) -> tuple[list[Record], Record | None]:
    """Check each tensor of the manifest, and a header that was kept, against the arrays of the container."""
    arrays = dict(container.specs)
    sets = len(manifest.get("tables", []))
    size = container.file.size
    found = [_record(name, entry, arrays, sets, size) for name, entry in manifest["tensors"].items()]
    header = None
    if "header" in manifest["source"]:
        header = _record("header", manifest["source"]["header"], arrays, sets, size)
        if header.spec.dtype != U8 or len(header.spec.shape) != 1 or header.coder != LOSSLESS:
            raise ValueError("the header of the source is not stored as one")
    if arrays:
        raise ValueError(f"the array {next(iter(arrays))} belongs to no tensor")
    return found, header


MOST_A_BYTE = 1 << 14  # weights that a byte of a stream can hold: each takes log2(2048 / 2047) bits at least
MOST_A_SLAB = 1 << 30  # bytes of a decoded slab, and 512 times those of the file: as restored files may have


def _record(name: str, entry: Mapping[str, Any], arrays: dict[str, TensorSpec], sets: int, stored_in: int) -> Record:
    spec = TensorSpec(name, DTYPES[entry["dtype"]], _shape(entry["shape"]))
    scheme = parse_scheme(entry["scheme"]) if "scheme" in entry else None
    if ("scheme" in entry) != (scheme is not None) or (scheme is not None and str(scheme) != entry["scheme"]):
        raise ValueError(f"{name}: {entry['scheme']!r} is not the name of a scheme")
    if scheme is not None and ((spec.dtype.kind != "float" and not scheme.raw) or spec.size == 0):
        raise ValueError(f"{name}: {spec.dtype} tensors have no scheme")
    coder_id = entry.get("coder")
    if coder_id not in _coders(scheme):
        raise ValueError(f"{name}: {scheme} is not coded by {coder_id!r}")
    tables: Any = entry.get("tables")
    needs_tables = scheme is not None and scheme.levels is None and not scheme.raw
    if needs_tables != (type(tables) is int) or (needs_tables and not 0 <= tables < sets):
        raise ValueError(f"{name}: its tables are missing")
    expected = native_parts(spec, scheme, coder_id)
    if {part.local for part in expected} != set(entry["parts"]):
        raise ValueError(f"{name}: its parts are not those of its scheme")
    parts, checksums, sizes = [], {}, {}
    for part in expected:
        stored = arrays.pop(entry["parts"][part.local]["name"], None)
        if stored is None:
            raise ValueError(f"{name}: its {part.local} are missing or used twice")
        fits = stored.dtype == U8 and len(stored.shape) == 1 if part.coded else stored.shape == part.spec.shape
        if stored.dtype != part.spec.dtype or not fits:
            raise ValueError(f"{name}: its {part.local} are {stored.dtype} {stored.shape}, not what its shape asks for")
        parts.append(Part(part.local, stored, part.per_row, part.coded))
        checksums[part.local] = _checksums(entry["parts"][part.local]["crc32"])
        if part.coded and part.per_row:
            sizes[part.local] = _checksums(entry["parts"][part.local]["bytes"])
            if len(sizes[part.local]) != len(checksums[part.local]) or sum(sizes[part.local]) != stored.bytes:
                raise ValueError(f"{name}: the sizes of its slabs do not add up")
        count = len(checksums[part.local])
        pieces = [*islice(slabs(spec, scheme), count + 1)] if part.per_row else [(0, 1)]  # a shape may have 2^60
        if len(pieces) != count:
            raise ValueError(f"{name}: its {part.local} have the wrong number of checksums")
        if part.coded and part.per_row and coder_id == RANS:
            columns = spec.matrix[1]
            for (first, last), size in zip(pieces, sizes[part.local], strict=True):
                weights = (last - first) * columns
                if weights > size * MOST_A_BYTE or 4 * weights > MOST_A_SLAB + 512 * stored_in:
                    raise ValueError(f"{name}: its shape asks for more weights than its {part.local} can hold")
    figures = {
        key: value
        for key, value in entry.items()
        if key not in ("dtype", "shape", "scheme", "coder", "parts", "tables")
    }
    return Record(spec, scheme, tuple(parts), checksums, figures, coder_id, sizes, tables)


def _coders(scheme: Scheme | None) -> tuple[str | None, ...]:
    """The coders that codes of a scheme may have."""
    if scheme is None or scheme.plain is not None:
        return (None,)
    if scheme.raw:
        return (LOSSLESS,)
    return (BITPACK, RANS) if scheme.levels is not None else (RANS,)


def _tables(manifest: Mapping[str, Any], label: str) -> list[Tables]:
    """The sets of tables of a file."""
    if "tables" not in manifest:
        return []
    from modelzip_cli.coders.tables import Damaged, read_set

    try:
        return [read_set(b64decode(text, validate=True)) for text in manifest["tables"]]
    except (Damaged, TypeError, ValueError) as error:
        raise BrokenCheckpoint(f"{label}: its tables are malformed: {inert(str(error), longest=200)}") from None


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > 64 or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise ValueError("a shape is not a list of sizes")
    return tuple(shape)


def _checksums(text: Any) -> tuple[int, ...]:
    if not isinstance(text, str) or len(text) % 8 or not re.fullmatch("[0-9a-f]*", text):  # int() takes signs
        raise ValueError("a checksum is not 8 hexadecimal digits a slab")
    return tuple(int(text[place : place + 8], 16) for place in range(0, len(text), 8))


def _surroundings(manifest: Mapping[str, Any], records: Mapping[str, Record]) -> tuple[dict[str, str], Outer | None]:
    """The source's own metadata, and what a torch source had around its weights."""
    source = manifest["source"]
    kinds = {"name": str, "container": str, "bytes": int, "sha256": str, "metadata": dict}
    if set(source) - {"header"} != set(kinds) or not all(type(source[key]) is kind for key, kind in kinds.items()):
        raise ValueError("the source is not described as it should be")
    if not 0 <= source["bytes"] < 1 << 62:
        raise ValueError("the size of the source is out of range")
    metadata = source["metadata"]
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata of the source is not text")
    if not isinstance(manifest["recipe"], dict) or not isinstance(manifest["modelzip"], str):
        raise ValueError("the recipe or the version is missing")
    if not isinstance(manifest["dropped"], list) or not all(isinstance(name, str) for name in manifest["dropped"]):
        raise ValueError("the names of what was dropped are not text")
    around = manifest["outer"]
    if around is None:
        return metadata, None
    names, ties = around["names"], around["ties"]
    if not isinstance(names, list) or not isinstance(ties, dict):
        raise ValueError("names and ties are not a list and a map")
    if not all(isinstance(name, str) for name in (*names, *ties.values())):
        raise ValueError("a name is not text")
    names = tuple(names)
    if len(set(names)) != len(names) or not set(ties) <= set(names) or set(ties) & set(records):
        raise ValueError("a name appears twice")
    if not set(ties.values()) <= set(names) - set(ties) or not set(names) - set(ties) <= set(records):
        raise ValueError("a tie or a name points to no tensor")
    tree = from_json(around["tree"])
    places = list(_places(tree))
    if any(isinstance(place, Weights) and place.kind == "tensor" and len(names) != 1 for place in places):
        raise ValueError("several names for one bare tensor")
    if sum(isinstance(place, Weights) for place in places) != 1:
        raise ValueError("there is no single place for the weights")
    if not {place.name for place in places if isinstance(place, Named)} <= set(records) - set(names):
        raise ValueError("a tensor beside the weights is missing")
    return metadata, Outer(tree, names, ties)


def _places(tree: Any) -> Iterator[Weights | Named]:
    """What stands for tensors in a tree."""
    if isinstance(tree, (Weights, Named)):
        yield tree
    elif isinstance(tree, dict):
        yield from _places([*tree, *tree.values(), getattr(tree, "_metadata", None)])
    elif isinstance(tree, (list, tuple, set, frozenset)):
        for value in tree:
            yield from _places(value)
    elif isinstance(tree, Call):
        yield from _places(tree.arguments)
    if isinstance(tree, Weights):
        yield from _places([tree.metadata, *(item for _, *pair in tree.others for item in pair)])
