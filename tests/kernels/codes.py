"""Random tables, contexts and weights for the tests of the entropy coder's kernels, from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.rans import SYMBOLS


@dataclass(frozen=True)
class Codes:
    """Tables for classes that are sums of a row's and a column's, and grid points that they fit, more or less."""

    bits: int
    machine: bool
    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    frequencies: NDArray[np.int64]  # [tables, 256]
    low_bits: NDArray[np.int32]
    points: NDArray[np.int16]

    @cached_property
    def known(self) -> NDArray[np.uint8]:
        """1 where a symbol has a frequency."""
        return (self.frequencies > 0).astype(np.uint8)

    @cached_property
    def intervals(self) -> NDArray[np.uint32]:
        """What the encoder looks up."""
        starts = np.cumsum(self.frequencies, axis=1) - self.frequencies
        return (starts << 16 | self.frequencies).astype(np.uint32).reshape(-1)

    @cached_property
    def slots(self) -> NDArray[np.uint32]:
        """What the decoder looks up."""
        found = [
            np.full(count, count << 20 | symbol) + (np.arange(count) << 8)
            for table in self.frequencies
            for symbol, count in enumerate(table)
        ]
        return np.concatenate(found).astype(np.uint32)

    def offsets(self, index: NDArray[np.uint16]) -> NDArray[np.int32]:
        """Where the table of each coded weight begins in the slots."""
        return (index >> 8).astype(np.int32) << self.bits


def frequencies(random: np.random.Generator, bits: int, sigma: float) -> NDArray[np.int64]:
    """Of one table: a bell around the symbol of 0, with gaps; the escape has one, none has them all."""
    weights = np.exp(-0.5 * ((np.arange(SYMBOLS) - 127) / sigma) ** 2)
    weights[random.random(SYMBOLS) < 0.05] = 0
    weights[[126, 255]] = 1e-3, 1e-3
    weights[255] += random.random() < 0.1
    counts = np.floor(weights / weights.sum() * (1 << bits)).astype(np.int64)
    counts[[126, 255]] = np.maximum(counts[[126, 255]], 1)
    counts[counts.argmax()] += (1 << bits) - counts.sum()
    return counts


def random_codes(seed: int, rows: int, width: int, *, machine: bool, low: bool = False, bits: int = 11) -> Codes:
    """Contexts, tables and points of a matrix [rows, width]."""
    random = np.random.default_rng(seed)
    of_rows, of_columns = random.integers(0, 3, rows), random.integers(0, 4, width)
    sigmas = 0.4 * 2 ** np.arange(6)
    tables = [frequencies(random, bits, sigma) for sigma in sigmas for _ in range(1 + machine)]
    low_bits = np.array([0, 0, 0, 1, 2, 5] if low else [0] * 6, np.int32)
    classes = of_rows[:, None] + of_columns
    points = np.rint(random.standard_normal((rows, width)) * (sigmas * (1 + machine) * 2.0**low_bits)[classes])
    points[random.random((rows, width)) < 0.002] = random.choice([-32768, -16385, -600, 600, 16384, 32767])
    contexts = of_rows.astype(np.int32), of_columns.astype(np.int32)
    return Codes(bits, machine, *contexts, np.array(tables), low_bits, on_the_grid(points, machine))


def on_the_grid(points: NDArray[np.float64], machine: bool) -> NDArray[np.int16]:
    """The nearest points towards zero that the state machine can be in a state for."""
    points = np.clip(points, -32766, 32766).astype(np.int32)
    if machine:
        state = np.zeros(points.shape[1], np.int32)
        for row in points:
            q, k = state & 1, abs(row) + 1 >> 1
            k = np.where(q == 1, k, abs(row) >> 1)
            row[:] = np.sign(row) * (2 * k - q * (k > 0))
            k = k * np.sign(row)
            state = q << 2 | ((k ^ state >> 2) & 1) << 1 | (state ^ state >> 1) & 1
    return points.astype(np.int16)
