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
SCHEME = re.compile(rf"({KINDS})(\d*)((?:-channel|-tensor|-g\d+|-asym|-mse|-m2|-n-?\d+|-s[\d.]+|-t1)*)")
# [5] What a code of nf4 and one of fp8 stands for; two of the latter are NaN
NF4 = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
    -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
    0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"""
E4M3 = [(code & 7) / 512 if code < 8 else (8 + (code & 7)) / 8 * 2.0 ** ((code >> 3) - 7) for code in range(127)]
TABLES = {
    "nf4": np.array(NF4.split(), np.float32),
    "fp8": np.array([*E4M3, np.nan, *(-value for value in E4M3), np.nan], np.float32),
}


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
        self.terms = 2 if "-m2" in options else 1
        self.bits = int(width or {"ternary": 2, "nf4": 4, "fp8": 8}.get(self.kind, self.terms))
        self.levels = 2**self.bits - (self.kind in ("fixed", "ternary"))
        group = re.search(r"-g(\d+)", options or ("-g64" if self.kind == "nf4" else ""))
        self.group = int(group[1]) if group else columns
        self.per_row = "-channel" in options if self.kind == "fixed" else "-tensor" not in options
        self.per_row &= self.kind != "codebook"
        if self.kind == "fixed":
            self.params = {"fraction_bits": "i16"}
        elif self.kind == "codebook":
            self.params = {"codebook": "f32"}
        else:  # params of a group are bf16, others float32
            self.params = dict.fromkeys(("scale", "scale2")[: self.terms], "bf16" if group else "f32")
        if "-asym" in options:
            self.params["zero_point"] = "u8"

    def parts(self, shape: list[int]) -> dict[str, tuple[str, list[int]]]:
        """Dtype and shape of every part of a tensor."""
        if self.plain:
            return {"values": (self.plain, shape)}
        rows, columns = matrix(shape)
        groups = self.levels if self.kind == "codebook" else -(-columns // self.group)
        params = {name: (dtype, [rows if self.per_row else 1, groups]) for name, dtype in self.params.items()}
        return params | {"codes": ("u8", [rows, -(-columns * self.bits // 8)])}

    def decode(self, parts: dict[str, Array], columns: int) -> Array:
        """The weights, float32 [rows, columns]."""
        codes = unpack(parts["codes"], self.bits, columns)
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


def decode_tensor(entry: dict[str, Any], arrays: dict[str, Stored]) -> Array:
    """[5] One tensor of the manifest; its parts are taken out of `arrays`, and their checksums compared."""
    dtype, shape = entry["dtype"], entry["shape"]
    bits, (rows, columns) = DTYPES[dtype][0], matrix(shape)
    scheme = Scheme(entry["scheme"], columns) if "scheme" in entry else None
    if scheme is None:
        named = bits >= 8 and dtype not in ("c32", "c128")
        expected = {"raw": (dtype, shape) if named else ("u8", [size(shape) * bits // 8])}
    else:
        require(dtype in ("f64", "f32", "f16", "bf16") and rows * columns > 0, f"{dtype} {shape} has no scheme")
        require(entry.get("coder") == (None if scheme.plain else "bitpack"), "unknown coder")
        expected = scheme.parts(shape)
    require(set(entry["parts"]) == set(expected), "its parts are not those of its scheme")
    parts = {}
    for local, (part_dtype, part_shape) in expected.items():
        part = entry["parts"][local]
        *stored, data = arrays.pop(part["name"], ("", [], b""))
        require(stored == [part_dtype, part_shape], f"{local} is missing, used twice or not what its shape asks for")
        if scheme is None:  # [6] slabs of units
            unit = bits // 8 if bits in (16, 32, 64) else 1
            piece = unit * (SLAB - SLAB % columns if 0 < columns <= SLAB else SLAB)
        elif local in scheme.params and not scheme.per_row:
            piece = len(data)
        else:  # slabs of rows
            piece = max(1, SLAB // columns) * len(data) // rows
        checksums = "".join(f"{zlib.crc32(data[i : i + piece]):08x}" for i in range(0, len(data), piece))
        require(checksums == part["crc32"], f"{local} does not match its checksum")
        parts[local] = values_of(part_dtype, part_shape, data) if scheme else values_of(dtype, shape, data)
    if scheme is None:
        return parts["raw"]
    return parts["values"].astype(np.float32) if scheme.plain else scheme.decode(parts, columns).reshape(shape)


def decode(path: str | Path) -> dict[str, Array]:
    """Return every tensor by name. Treated weights are float32, before they are rounded to the dtype of the source."""
    arrays, metadata = read_safetensors(Path(path).read_bytes())
    manifest = read_manifest(metadata)
    tensors = {}
    for name, entry in manifest["tensors"].items():
        try:
            tensors[name] = decode_tensor(entry, arrays)
        except ValueError as error:
            raise ValueError(f"tensor {name}: {error}") from None
    require(not arrays, f"arrays of no tensor: {', '.join(arrays)}")
    outer = manifest["outer"] or {"names": list(tensors), "ties": {}}  # [4]
    return {name: tensors[outer["ties"].get(name, name)] for name in outer["names"]} | tensors


if __name__ == "__main__":
    for name, weights in decode(sys.argv[1]).items():
        sys.stdout.write(f"{name} {list(weights.shape)} {weights.dtype}\n")
