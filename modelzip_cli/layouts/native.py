"""The native layout: params and packed codes as arrays, and a manifest that says how to decode them.

docs/format.md describes it for other readers; docs/format/decode.py proves that page. Reading is `native_source.py`.
"""

from __future__ import annotations

import hashlib
import zlib
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelzip_cli.coders import coder
from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.safetensors_file import METADATA
from modelzip_cli.containers.strict_json import dumps
from modelzip_cli.containers.tree import to_json
from modelzip_cli.layouts import Part
from modelzip_cli.tensors import U8, DType, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    from modelzip_cli.coders.tables import Tables
    from modelzip_cli.schemes.base import Codes, Params, Scheme
    from modelzip_cli.tensors import Bits

FORMAT_VERSION = 1
KEY, DIGEST = "modelzip", "modelzip.sha256"  # the two entries of the container's metadata
RAW, VALUES, CODES = "raw", "values", "codes"  # local names: a kept tensor, one in a plain dtype, packed codes
BITPACK, RANS, LOSSLESS = "bitpack", "rans", "lossless"  # coders
STORED_AS_BYTES = ("c32", "c128", "f6_e2m3", "f6_e3m2", "f4")  # not all containers have a name for these


def native_parts(
    spec: TensorSpec, scheme: Scheme | None, coder_id: str | None, taken: Iterable[str] = ()
) -> tuple[Part, ...]:
    """The arrays that a tensor is stored as: params, then codes; or the tensor itself. Names avoid those in `taken`."""
    name = spec.name if spec.name != METADATA else _free(METADATA, {METADATA, *taken})
    if scheme is None:
        opaque = spec.dtype.id in STORED_AS_BYTES
        return (Part(RAW, TensorSpec(name, *((U8, (spec.bytes,)) if opaque else (spec.dtype, spec.shape)))),)
    if scheme.plain is not None:
        return (Part(VALUES, TensorSpec(name, scheme.plain, spec.shape)),)
    rows, columns = spec.matrix
    taken = set(taken)
    parts = []
    for local, param in scheme.param_specs(columns).items():
        shape = (param.columns // 2,) if param.coded else (rows if param.per_row else 1, param.columns)
        stored = TensorSpec(_free(f"{spec.name}:{local}", taken), param.dtype, shape)
        parts.append(Part(local, stored, param.per_row, param.coded))
    coded = coder_id != BITPACK
    shape = (scheme.guess(spec),) if coded else (rows, -(-columns * scheme.bits // 8))
    return (*parts, Part(CODES, TensorSpec(_free(f"{spec.name}:{CODES}", taken), U8, shape), coded=coded))


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "'"
    taken.add(name)
    return name


def encode_parts(
    scheme: Scheme, codes: Codes, params: Params, coder_id: str | None, tables: Tables | None
) -> dict[str, Bits]:
    """The bytes of a slab by local name: packed codes, and the params of its rows."""
    if scheme.plain is not None:
        return {VALUES: codes}
    from modelzip_cli.coders.rans import Rans, pack_vector

    parts: dict[str, Bits] = {
        local: pack_vector(params[local].reshape(-1)) if spec.coded else _to_bits(params[local], spec.dtype)
        for local, spec in scheme.param_specs(codes.shape[1]).items()
    }
    assert coder_id is not None
    if tables is None:
        return parts | {CODES: coder(coder_id).pack(codes, scheme.bits)}
    return parts | {CODES: Rans().pack_points(codes, scheme.contexts(params, *codes.shape), tables)}


def _to_bits(values: np.ndarray[Any, Any], dtype: DType) -> Bits:
    import numpy as np

    from modelzip_cli.kernels.widen import narrow

    if dtype.kind == "float":
        return narrow(np.ascontiguousarray(values, np.float32), dtype)
    return np.ascontiguousarray(values).view(dtype.unit)


@dataclass(frozen=True)
class Record:
    """What the manifest says of a tensor: spec, scheme, parts with the CRC-32 of their slabs, and figures."""

    spec: TensorSpec
    scheme: Scheme | None
    parts: tuple[Part, ...]
    crc32: Mapping[str, tuple[int, ...]]  # by local name
    figures: Mapping[str, Any]
    coder: str | None = None
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # bytes of the slabs of coded parts
    tables: int | None = None  # which of the file's sets of tables

    def to_json(self) -> dict[str, Any]:
        """The manifest entry. CRCs and sizes have 8 hexadecimal digits a slab, so that their width is known."""
        parts = {}
        for part in self.parts:
            parts[part.local] = {"name": part.spec.name, "crc32": _hexadecimal(self.crc32[part.local])}
            if part.coded and part.per_row:
                parts[part.local]["bytes"] = _hexadecimal(self.sizes[part.local])
        entry: dict[str, Any] = {"dtype": self.spec.dtype.id, "shape": [*self.spec.shape], "parts": parts}
        if self.scheme is None:
            return entry
        if self.coder is not None:
            entry["coder"] = self.coder
        if self.tables is not None:
            entry["tables"] = self.tables
        return entry | {"scheme": str(self.scheme), **self.figures}


def header_record(header: bytes, taken: Iterable[str]) -> tuple[Record, bytes]:
    """The header of a safetensors source as a tensor of bytes: its record and its stream."""
    import numpy as np

    from modelzip_cli.coders.lossless import pack
    from modelzip_cli.schemes.lossless import Lossless

    spec = TensorSpec("header", U8, (len(header),))
    data = np.frombuffer(header, np.uint8)
    streams = [pack(data[first:last], U8, len(header)).tobytes() for first, last in spec.unit_slabs()]
    (part,) = native_parts(spec, Lossless(), LOSSLESS, taken)
    sizes, checksums = ([f(stream) for stream in streams] for f in (len, zlib.crc32))
    record = Record(
        spec,
        Lossless(),
        (part.sized(sum(sizes)),),
        {CODES: tuple(checksums)},
        {},
        LOSSLESS,
        {CODES: tuple(sizes)},
    )
    return record, b"".join(streams)


def _hexadecimal(numbers: Iterable[int]) -> str:
    """8 digits each, so that the width is known before the numbers are."""
    return "".join(f"{number:08x}" for number in numbers)


def slabs(spec: TensorSpec, scheme: Scheme | None) -> Iterator[tuple[int, int]]:
    """The slabs of a tensor: rows of a treated one, units of one that is kept or coded as it is."""
    if scheme is None or scheme.raw:
        return spec.unit_slabs()
    return spec.row_slabs(tall=scheme.tall)


def slab_count(spec: TensorSpec, scheme: Scheme | None, part: Part) -> int:
    """How many slabs, and so checksums, a part has."""
    return sum(1 for _ in slabs(spec, scheme)) if part.per_row else 1


def manifest_metadata(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The two metadata entries of a native output."""
    text = dumps(manifest)
    return {KEY: text, DIGEST: hashlib.sha256(text.encode()).hexdigest()}


def build_manifest(
    *,
    modelzip: str,
    recipe: Mapping[str, Any],
    source: Mapping[str, Any],
    outer: Outer | None,
    metadata: Mapping[str, str],
    dropped: list[str],
    records: Iterable[Record],
    tables: Sequence[Tables] = (),
    aid: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest as JSON values; section 6 of docs/format.md says what each key means."""
    around = None
    if outer is not None:
        around = {"tree": to_json(outer.tree), "names": [*outer.names], "ties": dict(outer.ties)}
    from modelzip_cli.coders.tables import write_set

    coded = {"tables": [b64encode(write_set(each)).decode() for each in tables]} if tables else {}
    return {
        **coded,
        **({"aid": dict(aid)} if aid else {}),
        "format_version": FORMAT_VERSION,
        "modelzip": modelzip,
        "recipe": dict(recipe),
        "source": {**source, "metadata": dict(metadata)},
        "outer": around,
        "dropped": dropped,
        "tensors": {record.spec.name: record.to_json() for record in records},
    }
