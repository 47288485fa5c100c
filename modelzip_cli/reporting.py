"""What a run did, from its plan and its outcome."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelzip_cli import __version__
from modelzip_cli.allocate import table_bytes
from modelzip_cli.compare import Errors
from modelzip_cli.compress import Outcome
from modelzip_cli.depth import dropped_from
from modelzip_cli.errors import inert
from modelzip_cli.layouts.native import CODES
from modelzip_cli.layouts.native_source import NativeSource
from modelzip_cli.plan import Plan, TensorPlan
from modelzip_cli.report import OF_A_LAYER, Report, Side, TensorRow, finite, significant
from modelzip_cli.source import Checkpoint, files_of


def report_on(
    plan: Plan, source: Checkpoint, path: Path, container: str, size: int, outcome: Outcome | None, started: float
) -> Report:
    """What a run did, or without `outcome` would do: an output of `size` bytes at `path`. `started`: by the monotonic
    clock."""
    rows = [_row(tensor, outcome.errors(tensor) if outcome else None) for tensor in plan.tensors]
    rows += [
        TensorRow(
            spec.name, spec.shape, spec.dtype.id, "dropped", "beside the weights; --keep-extras keeps it", spec.bytes, 0
        )
        for spec in plan.dropped
    ]
    stored = [tensor for tensor in plan.tensors if not tensor.tie]
    treated = [tensor for tensor in stored if tensor.treated]
    everything = Errors.of(
        sum(tensor.spec.size for tensor in treated if tensor.lossy),
        [slab for tensor in treated for slab in outcome.sums.get(tensor.spec.name, [])] if outcome else [],
    )
    before, after = sum(t.spec.bytes for t in stored), sum(t.bytes_after for t in stored)
    measured = outcome is not None and bool(everything.weights)
    totals: dict[str, float | int | None] = {
        "ratio": round(source.file.size / size, 4),
        "weight_ratio": round(before / after, 4) if after else None,
        "coverage": round(sum(t.spec.bytes for t in treated) / before, 6) if before else 0.0,
        "bits_per_weight": _bits(treated, table_bytes(plan.tables)),
        "sparsity": finite(everything.sparsity, 6) if measured else None,
        "sparsity_before": finite(everything.sparsity_before, 6) if measured else None,
        "sqnr_db": finite(everything.sqnr_db, 4) if measured else None,
        "cosine": finite(everything.cosine, 8) if measured else None,
        "parameters": sum(t.spec.size for t in stored),
        "treated_parameters": sum(tensor.spec.size for tensor in treated),
    }
    warnings = plan.warnings
    if treated and _lost_before(source):
        warnings += ("the source was compressed before: its errors and the new ones add up",)
    if size > source.file.size and plan.command != "restore":
        warnings += (f"the output is larger than the source by {size - source.file.size:,} bytes",)
    shown = inert(str(path))
    written = Side(shown, container, size, len(stored), 0, layout=plan.layout)
    extra: dict[str, Any] = {} if outcome else {"planned": {"path": shown, "bytes": size}}
    dropped, gone = dropped_from(source)
    if dropped is not None:
        extra["depth"] = dropped.to_json()
        rows += [TensorRow(spec.name, spec.shape, spec.dtype.id, "dropped", OF_A_LAYER, spec.bytes, 0) for spec in gone]
    if plan.recipe.pruning is not None:
        extra["pruning"], more = _pruning(plan, outcome)
        warnings += more
    return Report(
        command=plan.command,
        modelzip=__version__,
        source=describe_source(source),
        output=written if outcome else None,
        recipe=plan.recipe.to_json(),
        totals=totals,
        tensors=tuple(rows),
        warnings=warnings,
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss(),
        extra=extra,
    )


def _pruning(plan: Plan, outcome: Outcome | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What was asked and reached over the pruned tensors, and what to warn of."""
    asked = plan.recipe.pruning
    assert asked is not None
    pruned = [tensor for tensor in plan.tensors if tensor.pruned and not tensor.tie]
    weights = sum(tensor.spec.size for tensor in pruned)
    found: dict[str, Any] = {
        "asked": asked.sparsity if asked.mask is None else asked.mask.sparsity,
        "tensors": len(pruned),
        "parameters": weights,
    }
    warnings: tuple[str, ...] = ()
    if outcome is not None:
        errors = Errors.of(weights, [slab for tensor in pruned for slab in outcome.sums.get(tensor.spec.name, [])])
        found |= {
            "zeros": int(errors.sums[5]),
            "sparsity": finite(errors.sparsity, 6),
            "sparsity_before": finite(errors.sparsity_before, 6),
            "energy_kept": finite(errors.energy_kept, 6),
        }
        if pruned and errors.exact and errors.sparsity_before:
            warnings = (f"nothing was left to prune: {errors.sparsity_before:.2%} of the weights were zeros before",)
    else:
        known = [tensor.pruned.zeros for tensor in pruned if tensor.pruned and tensor.pruned.zeros is not None]
        found["zeros"] = sum(known) if len(known) == len(pruned) else None
        found["sparsity"] = finite(found["zeros"] / weights, 6) if weights and found["zeros"] is not None else None
    floored = [tensor.spec.name for tensor in pruned if tensor.pruned and tensor.pruned.floored]
    found["floored"] = [inert(name) for name in floored]
    if floored:
        names = ", ".join(inert(name, longest=60) for name in floored[:3]) + (", ..." if len(floored) > 3 else "")
        warnings += (f"--min-keep {asked.floor:g} spared {len(floored)} tensors, whose share the others took: {names}",)
    if any(tensor.scheme is None or tensor.scheme.plain for tensor in pruned):
        less = "--layout native stores them in less" if plan.layout == "dense" else "leave --scheme away"
        warnings += (f"zeros do not make this file smaller: in plain tensors a zero is still a number; {less}",)
    return found, warnings


def _lost_before(source: Checkpoint) -> bool:
    """Whether the source is a compressed file that has lost something already."""
    native = [file for file in files_of(source) if isinstance(file, NativeSource)]
    return any(record.figures for file in native for record in file.records.values())


def describe_source(source: Checkpoint) -> Side:
    """The source as reports show it."""
    ties = source.outer.ties if source.outer else {}
    parameters = sum(spec.size for name, spec in source.specs.items() if name not in ties)
    return Side(
        inert(str(source.file.path)),
        source.container,
        source.file.size,
        len(source.specs),
        parameters,
        compressed=source.compressed,
    )


def peak_rss() -> int:
    """The most memory that this process had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _bits(treated: Sequence[TensorPlan], shared: int = 0) -> float | None:
    """Stored bits a weight; `shared`: bytes that belong to all of them."""
    weights = sum(tensor.spec.size for tensor in treated)
    return round(8 * (sum(tensor.bytes_after for tensor in treated) + shared) / weights, 4) if weights else None


def _row(tensor: TensorPlan, errors: Errors | None) -> TensorRow:
    spec = tensor.spec
    kept = not tensor.treated
    reason = f"tied to {tensor.tie}" if tensor.tie else tensor.reason or None
    status = "kept" if kept or tensor.tie else "compressed"
    row = TensorRow(
        spec.name,
        spec.shape,
        spec.dtype.id,
        status,
        reason,
        0 if tensor.tie else spec.bytes,
        tensor.bytes_after,
        exact=not tensor.lossy,
        pruned=tensor.pruned is not None and not tensor.tie,
        feedback=tensor.feedback is not None,
    )
    if tensor.tie:
        return row
    if tensor.scheme is not None:
        coder = tensor.coder if any(part.local == CODES for part in tensor.parts) else None
        row = replace(row, scheme=str(tensor.scheme), coder=coder, bits_per_weight=_bits([tensor]))
    if errors is None:
        return row
    return replace(
        row,
        sparsity=finite(errors.sparsity, 6),
        sparsity_before=finite(errors.sparsity_before, 6),
        energy_kept=finite(errors.energy_kept, 6),
        sqnr_db=finite(errors.sqnr_db, 4),
        cosine=finite(errors.cosine, 8),
        max_abs_error=significant(errors.max_abs_error),
        exact=errors.exact,
    )
