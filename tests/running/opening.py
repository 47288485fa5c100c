"""Short ways to open data in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelzip_cli.running.data import DataOptions, open_data
from modelzip_cli.running.inputs import Examples, Wanted

NUMBERS = {"x": np.arange(12, dtype=np.float32).reshape(4, 3), "y": np.array([0, 1, 2, 1])}
TOKENS = {"x": np.arange(20, dtype=np.uint8).reshape(4, 5)}


def opened(path: Path | str, wanted: Wanted | None = None, **options: Any) -> Examples:
    """`open_data` for a model that takes floats of any shape, unless it is said what is `wanted`."""
    return open_data(str(path), wanted or Wanted(), DataOptions(**options))


def tokens(**more: Any) -> Wanted:
    """A model that takes tokens."""
    return Wanted(kind="tokens", **more)


def every(examples: Examples) -> tuple[list[Any], Any]:
    """All examples as one batch: inputs and labels as nested lists."""
    batch = examples.batch(np.arange(len(examples)))
    return [x.tolist() for x in batch.inputs], None if batch.labels is None else batch.labels.tolist()


def dtypes(examples: Examples) -> list[torch.dtype]:
    """The dtypes of the first example's inputs, and of its label."""
    batch = examples.batch(np.array([0]))
    return [tensor.dtype for tensor in (*batch.inputs, batch.labels) if tensor is not None]


def saved(path: Path, **arrays: Any) -> Path:
    """An `.npz` file."""
    np.savez(path, **arrays)
    return path


def written(path: Path, text: str) -> Path:
    """A text file."""
    path.write_text(text, encoding="utf-8")
    return path
