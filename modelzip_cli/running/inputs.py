"""What a model takes and what data gives: the two sides of a batch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, dtype

IGNORED = -100  # the label of a position that does not count: torch's `ignore_index`

Rows = NDArray[np.int64]  # places of examples in a data set


@dataclass(frozen=True)
class Images:
    """How pictures become the model's input: resized, cropped to `size` (height, width), `(x - mean) / std` a channel.

    `crop`: the share of the resized picture that the crop takes. `source`: who says so, for the report.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: float = 1.0
    source: str = ""


@dataclass(frozen=True)
class Wanted:
    """What a model takes.

    `kind`: "floats" (pictures, features) or "tokens" (integers). `shape`: of one example, without the batch; None
    stands for an axis of any length, and for a model that says nothing. `batch`: the only batch size that it takes,
    where it was exported so. `inputs`: how many tensors; a second one is an attention mask. `images`: the preprocessing
    that its own configuration names. `tokenizer`: text -> tokens; `context`: the most tokens; `classes`: their names.
    `positions`: whether it answers at each position, as language models do; None: not known. `dtype`: of floating
    inputs, where that is not float32.
    """

    kind: str = "floats"
    shape: tuple[int | None, ...] | None = None
    batch: int | None = None
    inputs: int = 1
    images: Images | None = None
    tokenizer: Callable[[str], list[int]] | None = None
    context: int | None = None
    classes: tuple[str, ...] | None = None
    positions: bool | None = None
    dtype: dtype | None = None


@dataclass(frozen=True)
class Batch:
    """`inputs`: what the model is called with, each [batch, ...]; `labels` int64 [batch] or, a label a position,
    [batch, time], where IGNORED does not count; None without labels."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None


class Examples(ABC):
    """A data set, opened. Reading it again gives the same tensors: nothing is random here.

    `label`: its path, for messages. `labelled`; `a_label_a_position`: language models. `labels`: integers [examples] or
    [examples, time], where they are known before a batch is read, else None. `classes`: names by number, or None.
    `warnings`: what the user should know, such as pictures that were skipped. `fingerprint`: SHA-256 of what it
    consists of (list of files with sizes, or the bytes of the file) and of how it is prepared.
    """

    label: str
    labelled: bool
    a_label_a_position: bool = False
    labels: NDArray[Any] | None = None
    classes: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()
    fingerprint: str

    @abstractmethod
    def __len__(self) -> int:
        """How many examples."""

    @abstractmethod
    def batch(self, rows: Rows) -> Batch:
        """The examples at `rows`, in that order. Raises BadData that names what cannot be read."""

    def place(self, row: int) -> str:
        """How messages call an example: its file, its line, or its number."""
        return f"{self.label}: example {row} (counted from 0)"


class Converted(Examples):
    """A data set whose floating inputs have another dtype: that of a model in half precision."""

    def __init__(self, examples: Examples, kind: dtype) -> None:
        self._examples, self._kind = examples, kind
        self.label, self.labelled, self.a_label_a_position = (
            examples.label,
            examples.labelled,
            examples.a_label_a_position,
        )
        self.labels, self.classes, self.warnings = examples.labels, examples.classes, examples.warnings
        self.fingerprint = examples.fingerprint

    def __len__(self) -> int:
        return len(self._examples)

    def batch(self, rows: Rows) -> Batch:
        found = self._examples.batch(rows)
        inputs = tuple(x.to(self._kind) if x.is_floating_point() else x for x in found.inputs)
        return Batch(inputs, found.labels)

    def place(self, row: int) -> str:
        return self._examples.place(row)


def fingerprint(*parts: object) -> str:
    """SHA-256 of plain values (strings, numbers, None, tuples of them): what data consists of, how it is prepared."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def seed_of(*key: int | str) -> int:
    """A seed of 63 bits for a key, such as a user's seed and a step: the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1


def order(count: int, *key: int | str) -> Rows:
    """A permutation of 0 .. count-1 that depends on `key` alone, such as a seed and an epoch."""
    scores = np.random.Philox(key=seed_of(*key)).random_raw(count)
    return np.argsort(scores, kind="stable").astype(np.int64)


def split(rows: Rows, share: float, *key: int | str) -> tuple[Rows, Rows]:
    """`rows` in two parts, each in ascending order: the first without, the second with `share` of them, at least 1."""
    taken = order(len(rows), *key)
    held = max(1, round(share * len(rows)))
    return np.sort(rows[taken[held:]]), np.sort(rows[taken[:held]])
