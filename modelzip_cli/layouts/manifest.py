"""The manifest of a native file, read.

It is untrusted input: all of it is checked against what the container holds before any memory is taken.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.strict_json import NotStrict, parse
from modelzip_cli.containers.tree import Call, Named, Weights, from_json
from modelzip_cli.errors import BrokenCheckpoint, UnsupportedCheckpoint, inert
from modelzip_cli.layouts import Part
from modelzip_cli.layouts.native import (
    BITPACK,
    DIGEST,
    FORMAT_VERSION,
    KEY,
    LOSSLESS,
    RANS,
    Record,
    native_parts,
    slabs,
)
from modelzip_cli.schemes import parse_scheme
from modelzip_cli.tensors import DTYPES, U8, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.coders.tables import Tables
    from modelzip_cli.schemes.base import Scheme


def is_native(metadata: Mapping[str, str]) -> bool:
    """Say whether the metadata of a container is that of a native output."""
    return KEY in metadata or DIGEST in metadata  # one flipped bit in a key must not make it another file


def read_manifest(container: Any) -> dict[str, Any]:
    """The manifest as JSON values, its version known and its checksum right. Raises BrokenCheckpoint otherwise,
    UnsupportedCheckpoint for a newer version."""
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


def read_records(container: Any, manifest: Mapping[str, Any]) -> tuple[list[Record], Record | None]:
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


def read_tables(manifest: Mapping[str, Any], label: str) -> list[Tables]:
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


def read_surroundings(
    manifest: Mapping[str, Any], records: Mapping[str, Record]
) -> tuple[dict[str, str], Outer | None]:
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
