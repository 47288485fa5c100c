"""Named arrays <-> weights: `native` (the smallest) and `dense` (plain tensors that any loader reads)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from modelzip_cli.tensors import TensorSpec

LAYOUTS = ("native", "dense")


@dataclass(frozen=True)
class Part:
    """One stored array of a tensor: `local` is what it is to the tensor, `spec` what the container calls it.

    A part of a treated tensor has a row for every row of the matrix view (`per_row`) or one for the tensor. One that
    is `coded` is bytes, as many as it takes: `spec` has a guess until it is written.
    """

    local: str
    spec: TensorSpec
    per_row: bool = True
    coded: bool = False

    def sized(self, size: int) -> Part:
        """The coded part with a size in bytes."""
        return replace(self, spec=replace(self.spec, shape=(size,)))
