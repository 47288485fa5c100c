"""What is known of a tensor before its bytes are read, and how bytes are asked for. Weights are raw bits, never floats.

Definitions that two developers must share to write the same bytes stand here: the dtype table, the matrix view and
the cut into slabs (docs/format.md, sections 2 and 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # numpy takes 60 ms to import: `inspect` does without
    import numpy as np
    from numpy.typing import NDArray

    Bits = NDArray[Any]  # unsigned integers that hold the raw bits of a tensor
    Block = NDArray[np.float32]  # weights, [rows, columns]

TALL_ROWS, TALL_WEIGHTS = 1024, 2 << 20  # a path of 512 rows costs 0.001 bit more than one of 1,024
SLAB_WEIGHTS = 512 * 1024  # float32 working copies of a slab (2 MB) stay in a shared cache; 512 Ki keeps calls few


@dataclass(frozen=True)
class DType:
    """One element type: `id` as in reports, `bits` an element, `kind`, and torch's name (None: torch has none)."""

    id: str
    bits: int
    kind: str  # float, small-float (8 bits and less), int, bool or complex
    torch: str | None

    @property
    def unit_bytes(self) -> int:
        """Bytes of the integer that raw bits are read as: an element, or 1 where no integer has its width."""
        return self.bits // 8 if self.bits in (16, 32, 64) else 1

    @property
    def unit(self) -> str:
        """That integer as a numpy dtype string."""
        return f"<u{self.unit_bytes}"

    def __str__(self) -> str:
        return self.id


DTYPES: dict[str, DType] = {
    dtype.id: dtype
    for dtype in (
        DType("f64", 64, "float", "float64"),
        DType("f32", 32, "float", "float32"),
        DType("f16", 16, "float", "float16"),
        DType("bf16", 16, "float", "bfloat16"),
        DType("f8_e4m3", 8, "small-float", "float8_e4m3fn"),
        DType("f8_e5m2", 8, "small-float", "float8_e5m2"),
        DType("f8_e8m0", 8, "small-float", "float8_e8m0fnu"),
        DType("f8_e4m3fnuz", 8, "small-float", "float8_e4m3fnuz"),
        DType("f8_e5m2fnuz", 8, "small-float", "float8_e5m2fnuz"),
        DType("f6_e2m3", 6, "small-float", None),
        DType("f6_e3m2", 6, "small-float", None),
        DType("f4", 4, "small-float", None),
        DType("i64", 64, "int", "int64"),
        DType("i32", 32, "int", "int32"),
        DType("i16", 16, "int", "int16"),
        DType("i8", 8, "int", "int8"),
        DType("u64", 64, "int", "uint64"),
        DType("u32", 32, "int", "uint32"),
        DType("u16", 16, "int", "uint16"),
        DType("u8", 8, "int", "uint8"),
        DType("bool", 8, "bool", "bool"),
        DType("c32", 32, "complex", "complex32"),
        DType("c64", 64, "complex", "complex64"),
        DType("c128", 128, "complex", "complex128"),
    )
}
F64, F32, F16, BF16 = (DTYPES[name] for name in ("f64", "f32", "f16", "bf16"))
U8, I16 = DTYPES["u8"], DTYPES["i16"]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a tensor."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes its raw bits take; sub-byte elements are packed, the last byte may be short."""
        return (self.size * self.dtype.bits + 7) // 8

    @property
    def units(self) -> int:
        """How many raw units `Source.read` counts: elements, or bytes where `dtype.unit` is a byte of many."""
        return self.bytes // self.dtype.unit_bytes

    @property
    def is_fused(self) -> bool:
        """Whether it holds fused experts, [experts, out, in]."""
        return len(self.shape) == 3 and self.shape[2] >= 64

    @property
    def matrix(self) -> tuple[int, int]:
        """The matrix view, (rows, columns): what groups, rows and slabs refer to."""
        if len(self.shape) <= 1:
            return 1, self.size
        if self.is_fused:
            return self.shape[0] * self.shape[1], self.shape[2]
        return self.shape[0], prod(self.shape[1:])

    def row_slabs(self, *, tall: bool = False) -> Iterator[tuple[int, int]]:
        """Cut the matrix of a treated tensor into slabs of whole rows, about 512 Ki weights: (row, last row + 1).

        With `tall`, slabs of up to 1,024 rows and 2 Mi weights, about equally tall.
        """
        rows, columns = self.matrix
        step = max(1, SLAB_WEIGHTS // max(1, columns))
        if tall:
            step = min(TALL_ROWS, max(1, TALL_WEIGHTS // max(1, columns)))
            step = -(-rows // max(1, -(-rows // step)))
        return ((first, min(first + step, rows)) for first in range(0, rows if columns else 0, step))

    def unit_slabs(self) -> Iterator[tuple[int, int]]:
        """Cut a tensor that is stored as it is into pieces of 512 Ki units, whole rows where that many hold one."""
        columns = self.matrix[1]
        step = SLAB_WEIGHTS - SLAB_WEIGHTS % columns if 0 < columns <= SLAB_WEIGHTS else SLAB_WEIGHTS
        return ((first, min(first + step, self.units)) for first in range(0, self.units, step))


class Source(Protocol):
    """Gives the raw bits of named tensors. Bound to one open file; threads may read at the same time."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The weights by name, in file order; every name of a tie has its own entry."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The text pairs that a container keeps beside its arrays."""

    def read(self, name: str, start: int, stop: int) -> Bits:
        """Return the units [start, stop) of tensor `name` in C order, shape [stop - start].

        Raises BrokenCheckpoint when the bytes are not there or do not match their checksum.
        """

    def finish(self) -> None:
        """Check what can only be known after reading: checksums of whole entries, and that the file did not change."""

    def close(self) -> None:
        """Close the file."""


class Statistics(Protocol):
    """What running a model on data left of its weights (statistics.py): matrices by weight and kind.

    `label`: where they lie. `sha256`: of the header of the file. `kinds`: those that there are of some weight.
    """

    label: str
    sha256: str
    kinds: tuple[str, ...]

    def has(self, spec: TensorSpec, kind: str) -> bool:
        """Whether there is this kind for a weight."""

    def read(self, spec: TensorSpec, kind: str, first: int = 0, last: int | None = None) -> Block:
        """Rows [first, last) of it, float32."""

    def require(self, specs: Iterable[TensorSpec], kinds: Iterable[str]) -> None:
        """Raise UsageError unless there is each of `kinds` for every weight."""


class ArraySink(Protocol):
    """Takes named arrays one after the other."""

    def begin(self, spec: TensorSpec) -> None:
        """Make room for the next array."""

    def write(self, name: str, offset: int, data: memoryview, crc: int) -> None:
        """Put `data` at byte `offset` of array `name`; pieces of one array come in order. `crc`: its CRC-32."""

    def resize(self, name: str, size: int) -> None:
        """Let array `name`, uint8 and the last that was begun, have `size` bytes after all."""


class Sink(ArraySink, Protocol):
    """Makes a file of the arrays that appears whole or not at all."""

    @property
    def pending(self) -> Path:
        """Where the file lies before the commit."""

    def finish(self, metadata: Mapping[str, str], outer: Any) -> int:
        """Write what comes last (header, pickle, directory), bring all to the disk, return the size of the file.

        `metadata`: text pairs; `outer`: what a torch file has around its weights, or None for a flat dict of arrays.
        """

    def commit(self) -> None:
        """Let the file appear under its name."""

    def abort(self) -> None:
        """Leave nothing behind; without effect after the commit."""
