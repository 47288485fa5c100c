"""What running a model on data left of its weights: the file of it.

`running/calibrate.py` makes one, docs/statistics.md says how others can; reading it takes no model and no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modelzip_cli.containers.safetensors_file import SafetensorsFile
from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.errors import BrokenCheckpoint, UnsupportedCheckpoint, UsageError, inert
from modelzip_cli.kernels.widen import widen
from modelzip_cli.tensors import TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

SECOND_MOMENT, HESSIAN, FISHER, TAYLOR, SENSITIVITY = "second_moment", "hessian", "fisher", "taylor", "sensitivity"
KINDS = {  # what writes and uses each, as a message says it
    SECOND_MOMENT: "prune --criterion wanda",
    HESSIAN: "quantize, or prune --criterion sparsegpt",
    FISHER: "prune --criterion fisher",
    TAYLOR: "prune --criterion taylor",
    SENSITIVITY: "compress",
}
SIGNED = (HESSIAN,)


def shape_of(spec: TensorSpec, kind: str) -> tuple[int, int]:
    """The shape of a statistic of the tensor `spec` as a matrix, with `rows, columns` those of its matrix view.

    `fisher`, `taylor`: [rows, columns]. `second_moment`: [1, columns]. `hessian`: [columns, columns]. `sensitivity`:
    [1, 1].
    """
    rows, columns = spec.matrix
    return {
        SECOND_MOMENT: (1, columns),
        HESSIAN: (columns, columns),
        SENSITIVITY: (1, 1),
    }.get(kind, (rows, columns))


class StatisticsFile:
    """A safetensors file with an array `NAME:KIND` for each statistic of a weight called NAME, of a float dtype.

    Nothing is read before it is asked for; threads may read at the same time.
    """

    def __init__(self, path: Path) -> None:
        """Raises what opening a safetensors file raises, UnsupportedCheckpoint for one without any statistic."""
        self._file = SafetensorsFile(SourceFile(path))
        self.label, self.sha256 = self._file.file.label, self._file.sha256
        held = {name.rpartition(":")[2] for name in self._file.specs}
        self.kinds = tuple(kind for kind in KINDS if kind in held)
        if not self.kinds:
            self.close()
            raise UnsupportedCheckpoint(
                f"{self.label}: holds no statistics, which are called WEIGHT:KIND, with a kind of {', '.join(KINDS)}"
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def has(self, spec: TensorSpec, kind: str) -> bool:
        """Whether there is this statistic of a weight. Raises UsageError where its shape is that of another weight."""
        found = self._file.specs.get(f"{spec.name}:{kind}")
        if found is None:
            return False
        rows, columns = shape_of(spec, kind)
        if found.dtype.kind != "float" or found.size != rows * columns:
            raise UsageError(
                f"{self.label}: {inert(found.name, longest=200)} is {found.dtype} {[*found.shape]}, for a weight "
                f"{[*spec.shape]} it would be f32 {[rows, columns]}: are these the statistics of another model?"
            )
        return True

    def read(self, spec: TensorSpec, kind: str, first: int = 0, last: int | None = None) -> Block:
        """Rows [first, last) of a statistic that is there, float32, in the shape of `shape_of`.

        Raises BrokenCheckpoint for values that it cannot have: NaN, infinity, or below 0.
        """
        rows, columns = shape_of(spec, kind)
        last = rows if last is None else last
        name = f"{spec.name}:{kind}"
        bits = self._file.read(name, first * columns, last * columns).reshape(last - first, columns)
        values = widen(bits, self._file.specs[name].dtype)
        if not np.isfinite(values).all() or (kind not in SIGNED and values.min(initial=0) < 0):
            raise BrokenCheckpoint(f"{self.label}: {inert(name, longest=200)} holds values that it cannot have")
        return values

    def require(self, specs: Iterable[TensorSpec], kinds: Iterable[str]) -> None:
        """Raise UsageError unless there is each of `kinds` for every weight."""
        specs = list(specs)
        for kind in kinds:
            missing = [spec.name for spec in specs if not self.has(spec, kind)]
            if len(missing) == len(specs) and specs:
                raise UsageError(
                    f"{self.label}: holds no {kind} of these weights; {KINDS[kind]} writes it with --data and "
                    "--save-statistics"
                )
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                name = inert(missing[0], longest=200)
                raise UsageError(
                    f"{self.label}: holds no {kind} of {name}{more}: leave it as it is with --set '{name}=keep'"
                )


def metadata_of(examples: int, data: str, network: str) -> Mapping[str, str]:
    """What a file says of itself."""
    return {
        "format": "modelzip.statistics",
        "version": "1",
        "examples": str(examples),
        "data": data,
        "network": network,
    }
