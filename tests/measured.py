"""Statistics of layers for tests: inputs that have something to do with each other, and files of what they come to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from modelzip_cli.statistics import StatisticsFile


def inputs_of(columns: int, seed: int = 0, examples: int = 300) -> NDArray[np.float64]:
    """Correlated inputs of a layer, [examples, columns], of several scales."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((examples, columns)) @ (np.eye(columns) + random.normal(0, 0.4, (columns, columns)))
    return mixed * np.exp(random.normal(0, 0.5, columns))


def hessian_of(inputs: NDArray[np.float64]) -> NDArray[np.float32]:
    """Mean x x^T, [columns, columns]."""
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def damped(hessian: NDArray[np.float32]) -> NDArray[np.float64]:
    """With 1 % of its mean diagonal added to it."""
    return hessian + 0.01 * hessian.diagonal().astype(np.float64).mean() * np.eye(len(hessian))


def output_error(inputs: NDArray[np.float64], weight: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """What outputs change by, sum of squares."""
    return float(np.square(inputs @ (weight.astype(np.float64) - other).T).sum())


def statistics_file(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> StatisticsFile:
    """A file of statistics by `WEIGHT:KIND`, open."""
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path)
    return StatisticsFile(path)
