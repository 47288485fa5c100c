"""What two checkpoints have in common and how far apart they are, tensor by tensor."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modelzip_cli.compare import Errors
from modelzip_cli.kernels import jit
from modelzip_cli.kernels.sums import Sums, error_sums
from modelzip_cli.kernels.widen import widen
from modelzip_cli.report import finite, significant
from modelzip_cli.source import Checkpoint
from modelzip_cli.tensors import TensorSpec


@dataclass(frozen=True)
class DiffRow:
    """One tensor that both have. `status`: equal, differs, shape differs, not comparable (dtypes)."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    status: str
    sqnr_db: float | None = None
    cosine: float | None = None
    max_abs_error: float | None = None
    changed: int | None = None  # elements that differ, where the dtype is no float

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {**vars(self), "shape": [*self.shape], "dtypes": [*self.dtypes], "exact": self.status == "equal"}


@dataclass(frozen=True)
class Difference:
    """All rows, the names that only one side has, and the figures over the float tensors that differ or are equal."""

    rows: tuple[DiffRow, ...]
    only_in: tuple[tuple[str, ...], tuple[str, ...]]
    totals: dict[str, float | None] = field(default_factory=dict)


def compare_sources(first: Checkpoint, second: Checkpoint, executor: Executor) -> Difference:
    """Compare by name; the first is the reference. Float tensors are compared by value, whatever their float dtypes."""
    common = [name for name in first.specs if name in second.specs]
    jit.expect(sum(first.specs[name].size for name in common))
    results = list(executor.map(lambda name: _compare(first, second, name), common))
    first.finish()
    second.finish()
    measured = [(row, sums) for row, sums in results if sums]
    slabs = [slab for _, sums in measured for slab in sums]
    errors = Errors.of(sum(first.specs[row.name].size for row, _ in measured), slabs)
    totals = {
        "equal": sum(row.status == "equal" for row, _ in results),
        "sqnr_db": finite(errors.sqnr_db, 4),
        "cosine": finite(errors.cosine, 8),
        "max_abs_error": significant(errors.max_abs_error),
    }
    only_in = (
        tuple(name for name in first.specs if name not in second.specs),
        tuple(name for name in second.specs if name not in first.specs),
    )
    return Difference(tuple(row for row, _ in results), only_in, totals)


def _compare(first: Checkpoint, second: Checkpoint, name: str) -> tuple[DiffRow, list[Sums]]:
    one, other = first.specs[name], second.specs[name]
    dtypes = (one.dtype.id, other.dtype.id)
    if one.shape != other.shape:
        return DiffRow(name, one.shape, dtypes, f"shape differs: {list(other.shape)}"), []
    if one.dtype.kind == other.dtype.kind == "float":
        return _compare_floats(first, second, one, other)
    if one.dtype != other.dtype:
        return DiffRow(name, one.shape, dtypes, "not comparable"), []
    changed = 0
    for start, stop in one.unit_slabs():
        changed += int(np.count_nonzero(first.read(name, start, stop) != second.read(name, start, stop)))
    return DiffRow(name, one.shape, dtypes, "differs" if changed else "equal", changed=changed), []


def _compare_floats(
    first: Checkpoint, second: Checkpoint, one: TensorSpec, other: TensorSpec
) -> tuple[DiffRow, list[Sums]]:
    sums, equal = [], one.dtype == other.dtype
    for begin, end in one.row_slabs():
        columns = one.matrix[1]
        a = first.read(one.name, begin * columns, end * columns)
        b = second.read(other.name, begin * columns, end * columns)
        equal = equal and a.tobytes() == b.tobytes()  # the bits: -0 is not 0, and f64 has more digits than float32
        shape = (end - begin, columns)
        values = widen(a.reshape(shape), one.dtype), widen(b.reshape(shape), other.dtype)
        sums.append(error_sums(values[0].reshape(-1), values[1].reshape(-1)))
    errors = Errors.of(one.size, sums)
    if equal:
        return DiffRow(one.name, one.shape, (one.dtype.id, other.dtype.id), "equal", None, None, 0.0), sums
    figures = (finite(errors.sqnr_db, 4), finite(errors.cosine, 8), significant(errors.max_abs_error))
    return DiffRow(one.name, one.shape, (one.dtype.id, other.dtype.id), "differs", *figures), sums
