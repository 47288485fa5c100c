"""Weights as float32 blocks of rows, read from a source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from modelzip_cli.errors import NonFinite, inert
from modelzip_cli.kernels.widen import widen
from modelzip_cli.source import Checkpoint
from modelzip_cli.tensors import Source, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block


class Blocks:
    """The slabs of a tensor as float32 blocks, read anew each time they are gone through."""

    def __init__(self, source: Source, spec: TensorSpec) -> None:
        self._source, self._spec = source, spec

    def __iter__(self) -> Iterator[Block]:
        for first, last in self._spec.row_slabs():
            yield read_block(self._source, self._spec, first, last)


def read_block(source: Source, spec: TensorSpec, first: int, last: int) -> Block:
    """Rows [first, last) of a tensor of a float dtype as float32 [rows, columns]."""
    columns = spec.matrix[1]
    bits = source.read(spec.name, first * columns, last * columns)
    return widen(bits.reshape(last - first, columns), spec.dtype)


def refuse_nonfinite(source: Checkpoint, spec: TensorSpec) -> NonFinite:
    """Look for what is not finite in a tensor and say where."""
    for first, last in spec.row_slabs():
        block = read_block(source, spec, first, last)
        bad = np.argwhere(~np.isfinite(block))
        if len(bad):
            row, column = bad[0]
            value = block[row, column]
            what = "NaN" if np.isnan(value) else "infinity" if spec.dtype.bits < 64 else "a value outside float32"
            return NonFinite(
                f"{source.file.label}: tensor {inert(spec.name, longest=200)} holds {what} "
                f"(first at row {first + row}, column {column}); --allow-nonfinite keeps such tensors as they are"
            )
    raise AssertionError(f"{spec.name} is finite")
