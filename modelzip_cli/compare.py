"""Figures of error from the sums of the kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from modelzip_cli.kernels.sums import ERROR_SUMS, Sums


@dataclass(frozen=True)
class Errors:
    """How far restored weights are from the source. Sums run over slabs in order: the same on any machine."""

    weights: int
    sums: Sums  # float64 [6], named by ERROR_SUMS

    @staticmethod
    def of(weights: int, slabs: list[Sums]) -> Errors:
        """Add up the sums of the slabs, or tensors, in the order given."""
        total = np.zeros(len(ERROR_SUMS))
        for sums in slabs:
            largest = max(total[3], sums[3])
            total = total + sums
            total[3] = largest
        return Errors(weights, total)

    @property
    def finite(self) -> bool:
        """False when a weight or a restored weight is NaN or infinite."""
        return bool(np.isfinite(self.sums[:3]).all())

    @property
    def exact(self) -> bool:
        """Whether nothing was lost."""
        return bool(self.sums[1] == 0)

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise, 10 log10(sum w^2 / sum e^2), in dB; None when nothing was lost or w is 0."""
        signal, noise = float(self.sums[0]), float(self.sums[1])
        return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between source and restored weights; None when either is 0."""
        w2, e2, r2 = map(float, self.sums[:3])
        norms = math.sqrt(w2) * math.sqrt(r2)
        cosine = (w2 + r2 - e2) / (2 * norms) if norms else None  # |w - r|^2 = w^2 + r^2 - 2 w.r
        return None if cosine is None else max(-1.0, min(1.0, cosine))

    @property
    def energy_kept(self) -> float | None:
        """Sum of squares of the restored weights over that of the source; None when the source is 0."""
        return float(self.sums[2] / self.sums[0]) if self.sums[0] > 0 else None

    @property
    def max_abs_error(self) -> float:
        """The largest |w - restored w|, in units of the weight."""
        return float(self.sums[3])

    @property
    def sparsity_before(self) -> float:
        """Exact zeros of the source over its weights."""
        return float(self.sums[4]) / self.weights if self.weights else 0.0

    @property
    def sparsity(self) -> float:
        """Exact zeros of the restored weights over all."""
        return float(self.sums[5]) / self.weights if self.weights else 0.0
