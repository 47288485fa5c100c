"""The native layout: params and packed codes as arrays, and a manifest that says how to decode them.

docs/format.md describes it for other readers; docs/format/decode.py proves that page. Reading is `native_source.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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

    from modelzip_cli.schemes.base import Codes, Params, Scheme
    from modelzip_cli.tensors import Bits

FORMAT_VERSION = 1
KEY, DIGEST = "modelzip", "modelzip.sha256"  # the two entries of the container's metadata
RAW, VALUES, CODES = "raw", "values", "codes"  # local names: a kept tensor, one in a plain dtype, packed codes
BITPACK = "bitpack"
STORED_AS_BYTES = ("c32", "c128", "f6_e2m3", "f6_e3m2", "f4")  # not all containers have a name for these


def native_parts(spec: TensorSpec, scheme: Scheme | None, taken: Iterable[str] = ()) -> tuple[Part, ...]:
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
        shape = (rows if param.per_row else 1, param.columns)
        parts.append(Part(local, TensorSpec(_free(f"{spec.name}:{local}", taken), param.dtype, shape), param.per_row))
    packed = TensorSpec(_free(f"{spec.name}:{CODES}", taken), U8, (rows, -(-columns * scheme.bits // 8)))
    return (*parts, Part(CODES, packed))


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "'"
    taken.add(name)
    return name


def encode_parts(scheme: Scheme, codes: Codes, params: Params) -> dict[str, Bits]:
    """The bytes of a slab by local name: packed codes, and the params of its rows."""
    if scheme.plain is not None:
        return {VALUES: codes}
    parts: dict[str, Bits] = {
        local: _to_bits(params[local], spec.dtype) for local, spec in scheme.param_specs(codes.shape[1]).items()
    }
    return parts | {CODES: coder(BITPACK).pack(codes, scheme.bits)}


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

    def to_json(self) -> dict[str, Any]:
        """The manifest entry. CRCs are written as 8 hexadecimal digits a slab, so that their width is known."""
        parts = {
            part.local: {"name": part.spec.name, "crc32": "".join(f"{crc:08x}" for crc in self.crc32[part.local])}
            for part in self.parts
        }
        entry = {"dtype": self.spec.dtype.id, "shape": [*self.spec.shape], "parts": parts}
        if self.scheme is None:
            return entry
        coded = {} if self.scheme.plain is not None else {"coder": BITPACK}
        return entry | {"scheme": str(self.scheme), **coded, **self.figures}


def slab_count(spec: TensorSpec, scheme: Scheme | None, part: Part) -> int:
    """How many slabs, and so checksums, a part has."""
    if not part.per_row:
        return 1
    return sum(1 for _ in (spec.unit_slabs() if scheme is None else spec.row_slabs()))


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
) -> dict[str, Any]:
    """The manifest as JSON values; section 6 of docs/format.md says what each key means."""
    around = None
    if outer is not None:
        around = {"tree": to_json(outer.tree), "names": [*outer.names], "ties": dict(outer.ties)}
    return {
        "format_version": FORMAT_VERSION,
        "modelzip": modelzip,
        "recipe": dict(recipe),
        "source": {**source, "metadata": dict(metadata)},
        "outer": around,
        "dropped": dropped,
        "tensors": {record.spec.name: record.to_json() for record in records},
    }
