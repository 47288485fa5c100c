"""Named arrays <-> weights: `native` (the smallest) and `dense` (plain tensors that any loader reads)."""

from __future__ import annotations

from dataclasses import dataclass

from modelzip_cli.tensors import TensorSpec

LAYOUTS = ("native", "dense")


@dataclass(frozen=True)
class Part:
    """One stored array of a tensor: `local` is what it is to the tensor, `spec` what the container calls it.

    A part of a treated tensor has a row for every row of the matrix view (`per_row`) or one for the tensor.
    """

    local: str
    spec: TensorSpec
    per_row: bool = True
