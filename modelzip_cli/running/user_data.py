"""A data set of the user's own code, named by import path: a torch Dataset, or what is like one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modelzip_cli.errors import BadData, ModelzipError, inert
from modelzip_cli.running.arrays import check_shape, show_shape
from modelzip_cli.running.import_path import failed, import_object
from modelzip_cli.running.inputs import Batch, Examples, Rows, Wanted, fingerprint

NEEDED = "it has to return what has __len__ and __getitem__, as torch.utils.data.Dataset"

Example = tuple[tuple[Tensor, ...], Tensor | None]


class DatasetExamples(Examples):
    """What `dataset[i]` gives, x or (x, y), stacked; x may be a tuple of several inputs.

    Values become float32, or int64 for a model that takes tokens; nothing is scaled. Tokens without labels are labelled
    with the token after each, as those of files are. The fingerprint is made of the path, the number of examples and
    the first one. Labels are known once they are read, not before.
    """

    def __init__(self, path: str, dataset: Any, wanted: Wanted) -> None:
        self._path, self._dataset, self._tokens = path, dataset, wanted.kind == "tokens"
        self._next_token = self._tokens and wanted.positions is not False
        self.label, self._count = inert(path), len(dataset)
        if not self._count:
            raise BadData(f"{self.label}: the data set is empty")
        inputs, label = self._example(0)
        check_shape(tuple(inputs[0].shape), wanted, self.label)
        self.labelled = label is not None
        self.a_label_a_position = label is not None and label.ndim == 1
        again, _ = self._example(0)
        if not all(map(torch.equal, inputs, again)):
            self.warnings = (f"{self.label}: example 0 differs when it is read again; figures depend on chance",)
        first = hashlib.sha256(b"".join(values.numpy().tobytes() for values in inputs)).hexdigest()
        self.fingerprint = fingerprint(path, self._count, first)

    def __len__(self) -> int:
        return self._count

    def batch(self, rows: Rows) -> Batch:
        """Read one example after another: user's code need not stand threads."""
        inputs, labels = zip(*(self._example(int(row)) for row in rows), strict=True)
        stacked = tuple(self._stack(parts, rows) for parts in zip(*inputs, strict=True))
        return Batch(stacked, self._stack(labels, rows) if self.labelled else None)

    def _example(self, row: int) -> Example:
        try:
            found = self._dataset[row]
        except ModelzipError:
            raise
        except (Exception, SystemExit) as error:
            raise failed(f"{self._path}, example {row}", error) from error
        x, y = found if isinstance(found, (tuple, list)) and len(found) == 2 else (found, None)
        inputs = tuple(self._input(part, row) for part in (x if isinstance(x, tuple) else (x,)))
        if y is not None:
            return inputs, self._label(y, row)
        if self._next_token and len(inputs) == 1 and inputs[0].ndim == 1 and len(inputs[0]) > 1:
            return (inputs[0][:-1],), inputs[0][1:]
        return inputs, None

    def _input(self, part: object, row: int) -> Tensor:
        x = self._tensor(part, row)
        if self._tokens and x.is_floating_point():
            raise BadData(f"{self.place(row)}: x is {x.dtype}, but the model takes tokens: whole numbers")
        return x.to(torch.int64 if self._tokens else torch.float32)

    def _label(self, part: object, row: int) -> Tensor:
        y = self._tensor(part, row)
        if y.is_floating_point() or y.ndim > 1:
            raise BadData(f"{self.place(row)}: y is {y.dtype} {show_shape(y.shape)}; a label is a whole number")
        return y.to(torch.int64)

    def _tensor(self, part: object, row: int) -> Tensor:
        try:
            return torch.as_tensor(part)
        except (TypeError, ValueError, RuntimeError):
            kind = inert(type(part).__name__)
            raise BadData(f"{self.place(row)}: {kind}, no tensor, array or number; it has to be x or (x, y)") from None

    def _stack(self, parts: Sequence[Tensor | None], rows: Rows) -> Tensor:
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            raise BadData(f"{self.label}: some examples have labels, others none")
        for row, part in zip(rows, found, strict=True):
            if part.shape != found[0].shape:
                raise BadData(
                    f"{self.place(int(row))}: {show_shape(part.shape)}, but example {rows[0]} is "
                    f"{show_shape(found[0].shape)}; give all one shape"
                )
        return torch.stack(found)


def open_dataset(path: str, wanted: Wanted) -> DatasetExamples:
    """The data set that the object at an import path is, or gives when it is called.

    Raises what `import_object` does, UserCodeFailed, and BadData for what is no data set or does not fit the model.
    """
    found = import_object(path)
    try:
        dataset = found() if callable(found) else found
    except (Exception, SystemExit) as error:
        raise failed(path, error) from error
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise BadData(f"{inert(path)}: gives {inert(type(dataset).__name__)}; {NEEDED}")
    return DatasetExamples(path, dataset, wanted)
