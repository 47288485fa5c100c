"""What a run did, as plain data. No rendering here; the JSON form is docs/report.schema.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1
OF_A_LAYER = "of a layer that was dropped"  # why a tensor is not there


def finite(value: float | None, digits: int) -> float | None:
    """Round for a report; None where the value is not a finite number, which JSON cannot hold."""
    return round(value, digits) if value is not None and math.isfinite(value) else None


def significant(value: float) -> float | None:
    """Round to six significant digits; None where the value is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


@dataclass(frozen=True)
class TensorRow:
    """One tensor: what it was, what became of it and why. Figures of error are None where nothing was lost or read."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    status: str  # compressed, kept or dropped
    reason: str | None
    bytes_before: int
    bytes_after: int
    scheme: str | None = None
    coder: str | None = None
    bits_per_weight: float | None = None
    sparsity: float | None = None
    sparsity_before: float | None = None
    energy_kept: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    max_abs_error: float | None = None
    exact: bool = False
    pruned: bool = False
    feedback: bool = False  # errors of a column were passed on to those after it

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {"name": self.name, **{k: v for k, v in vars(self).items() if k != "name"}, "shape": [*self.shape]}


@dataclass(frozen=True)
class Side:
    """The source or the output of a run."""

    path: str
    container: str
    bytes: int
    tensors: int
    parameters: int
    layout: str | None = None
    compressed: bool = False

    def to_json(self, *, source: bool) -> dict[str, Any]:
        """A source as CLI.md lists it, or an output."""
        common = {"path": self.path, "container": self.container, "bytes": self.bytes}
        if not source:
            return {**common, "layout": self.layout}
        return {**common, "compressed": self.compressed, "tensors": self.tensors, "parameters": self.parameters}


@dataclass(frozen=True)
class Gate:
    """One limit that the user set and what the run reached."""

    metric: str
    limit: float
    value: float | None
    passed: bool


@dataclass(frozen=True)
class Report:
    """All that is said about one checkpoint. `totals` has the keys of the JSON report; None: not a number."""

    command: str
    modelzip: str
    source: Side
    output: Side | None
    recipe: Mapping[str, Any]
    totals: Mapping[str, float | int | None]
    tensors: tuple[TensorRow, ...]
    gates: tuple[Gate, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys of one command only
    stages: tuple[tuple[str, Any], ...] = ()  # Evaluations of the model, from the dense one to the output

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; keys as in CLI.md."""
        return {
            "schema_version": SCHEMA_VERSION,
            "modelzip": self.modelzip,
            "command": self.command,
            "source": self.source.to_json(source=True),
            "output": self.output.to_json(source=False) if self.output else None,
            "recipe": dict(self.recipe),
            "totals": dict(self.totals),
            "tensors": [row.to_json() for row in self.tensors],
            "gates": [vars(gate) for gate in self.gates],
            "warnings": [*self.warnings],
            "timing": {"seconds": round(self.seconds, 3), "peak_rss_bytes": self.peak_rss_bytes},
            **self.extra,
            **self._evaluation(),
        }

    def _evaluation(self) -> dict[str, Any]:
        if not self.stages:
            return {}
        found = [{"stage": label, **evaluation.to_json()} for label, evaluation in self.stages]
        return {"evaluation": {"before": found[0], "after": found[-1], "stages": found}}
