"""One checkpoint from file to file: open, plan, run, gate, commit, report."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelzip_cli import __version__
from modelzip_cli.allocate import table_bytes
from modelzip_cli.compare import Errors
from modelzip_cli.compress import Outcome, run
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.depth import dropped_from, open_for
from modelzip_cli.errors import CannotWrite, GateFailed, inert
from modelzip_cli.estimate import with_lossless_sizes
from modelzip_cli.layouts.native import CODES
from modelzip_cli.layouts.native_source import NativeSource
from modelzip_cli.output import check_output, container_of, file_container, open_output, planned_size
from modelzip_cli.plan import Plan, TensorPlan, masks_of, plan_compression, plan_restore, sampled
from modelzip_cli.recipe import Goal, Recipe
from modelzip_cli.report import OF_A_LAYER, Gate, Report, Side, TensorRow, finite, significant
from modelzip_cli.search import Search
from modelzip_cli.source import Checkpoint, check_new, files_of, open_source

METRICS = ("sqnr", "sqnr-min", "cosine")

Begin = Callable[[str, int], Callable[[int], None]]  # told a label and the bytes to come; returns the progress callback


Ready = Callable[[Report, Path], None]  # told of an output before it appears, and where it lies until then


def no_progress(label: str, total: int) -> Callable[[int], None]:
    """Show nothing."""
    return lambda _: None


@dataclass(frozen=True)
class Limits:
    """The gates of a run: (metric, least value) pairs, and the most bytes of the output."""

    fail_under: tuple[tuple[str, float], ...] = ()
    max_size: int | None = None


@dataclass(frozen=True)
class Settings:
    """How to run, whatever the recipe."""

    jobs: int = 1
    force: bool = False
    dry_run: bool = False
    make_folders: bool = False  # the folders of outputs are made by whoever asked; a missing one is no mistake
    limits: Limits = Limits()
    begin: Begin = no_progress
    ready: Ready = lambda report, pending: None
    requantize: bool = True  # whether a source that was compressed may be compressed again

    def check_output(self, source: Path, output: Path) -> None:
        """Refuse, before any work, an output that would harm something or cannot be made."""
        check_output(source, output, force=self.force, dry_run=self.dry_run, make_folders=self.make_folders)


@dataclass(frozen=True)
class Target:
    """The output of a run: its path, and what is made there: safetensors, torch or hf-directory."""

    path: Path
    container: str


def default_jobs() -> int:
    """All cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compress_file(path: Path, output: Path, recipe: Recipe, settings: Settings, *, command: str) -> Report:
    """Compress the checkpoint at `path` into `output` as `recipe` says, and report on it.

    Raises what opening, planning and writing raise, and GateFailed when a limit is not met; nothing is left then.
    """
    started = time.monotonic()
    container = container_of(path, output)
    source = open_for(path, recipe)
    try:
        settings.check_output(path, output)
        check_new(source, requantize=settings.requantize)
        recipe.check_patterns(list(source.specs), source.file.label)
        target = Target(output, container)
        with _threads(settings.jobs) as executor:
            of_files = file_container(source, container, recipe.layout)
            if recipe.goal is not None:
                return _meet(recipe.goal, source, recipe, target, of_files, settings, executor, started, command)
            plan = plan_compression(source, recipe, command=command, container=of_files, executor=executor)
            return _carry_out(plan, source, target, settings, executor, started)
    finally:
        source.close()


def restore_file(path: Path, output: Path, settings: Settings, *, dtype: str | None, most_bytes: int | None) -> Report:
    """Write the checkpoint at `path` as plain tensors into `output`, in the container that its suffix asks for."""
    started = time.monotonic()
    container = container_of(path, output)
    source = open_source(path, keep_extras=True)
    try:
        settings.check_output(path, output)
        of_files = file_container(source, container, "dense")
        plan = plan_restore(source, container=of_files, dtype=dtype, most_bytes=most_bytes)
        with _threads(settings.jobs) as executor:
            return _carry_out(plan, source, Target(output, container), settings, executor, started)
    finally:
        source.close()


def _threads(jobs: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(jobs, thread_name_prefix="modelzip")


def _carry_out(
    plan: Plan, source: Checkpoint, target: Target, settings: Settings, executor: Executor, started: float
) -> Report:
    if settings.dry_run:
        plan = with_lossless_sizes(plan, source, executor)
        return _report(plan, source, target, planned_size(plan, source, target.container), None, started)
    if target.path != STANDARD:
        _check_space(plan, target.path)
    report = _write(plan, source, target, settings, executor, started)
    assert report is not None
    return report


def _meet(
    goal: Goal,
    source: Checkpoint,
    recipe: Recipe,
    target: Target,
    container: str,
    settings: Settings,
    executor: Executor,
    started: float,
    command: str,
) -> Report:
    """Find the step that meets the goal, and write the output.

    The step comes from a sample. Where the output misses the goal, what it was is the measure for the next attempt.
    Raises Unreachable when no step on offer meets the goal.
    """
    masks = masks_of(source, recipe, executor)
    allocator = sampled(source, recipe, executor, masks)

    def planned(step: float | None) -> Plan:
        return plan_compression(
            source,
            recipe,
            command=command,
            container=container,
            executor=executor,
            masks=masks,
            allocator=allocator,
            step=step,
        )

    search = Search(goal, source, allocator)
    if search.counts_bytes:
        plan = planned(search.begin())
        search.measure(plan, planned_size(plan, source, target.container))
    plan = planned(search.step())
    if settings.dry_run:
        return _carry_out(plan, source, target, settings, executor, started)
    while True:
        report = _write(plan, source, target, settings, executor, started, search)
        if report is not None:
            return report
        plan = planned(search.step())


def _write(
    plan: Plan,
    source: Checkpoint,
    target: Target,
    settings: Settings,
    executor: Executor,
    started: float,
    search: Search | None = None,
) -> Report | None:
    """Write the output and report on it; where `search` does not accept it, nothing is left, and the answer is None."""
    output = open_output(plan, source, target.path, target.container, replace=settings.force)
    try:
        total = sum(tensor.spec.bytes for tensor in plan.tensors if not tensor.tie)
        progress = settings.begin(source.file.label, total)
        outcome = run(plan, source, output, jobs=settings.jobs, executor=executor, progress=progress)
        source.finish()
        size = output.finish(outcome)
        settled = outcome.settled(plan)
        report = _report(settled, source, target, size, outcome, started)
        if search and not search.accepts(settled, size, outcome):
            return None
        report = replace(report, gates=check_gates(report, size, settings.limits))
        failed = [gate for gate in report.gates if not gate.passed]
        if failed:
            raise GateFailed(f"{inert(str(target.path))}: {'; '.join(map(describe_gate, failed))}; nothing was written")
        settings.ready(report, output.pending)
        output.commit()
        return report
    finally:
        output.abort()


def _check_space(plan: Plan, output: Path) -> None:
    """Refuse before any work what cannot fit: parts that will be coded count for a quarter of what is expected."""
    status = os.statvfs(output.parent)
    free = status.f_bavail * status.f_frsize
    parts = [part for tensor in plan.tensors if not tensor.tie for part in tensor.parts]
    least = sum(part.spec.bytes // 4 if part.coded else part.spec.bytes for part in parts)
    if least > free:
        raise CannotWrite(f"{inert(str(output))}: needs at least {least:,} bytes, the disk has {free:,} free")


def check_gates(report: Report, size: int, limits: Limits) -> tuple[Gate, ...]:
    """Hold the report against the limits. A figure that is None (nothing was lost) passes."""
    found = {
        "sqnr": report.totals["sqnr_db"],
        "sqnr-min": min((row.sqnr_db for row in report.tensors if row.sqnr_db is not None), default=None),
        "cosine": report.totals["cosine"],
    }
    gates = []
    for metric, least in limits.fail_under:
        value = found[metric]
        gates.append(Gate(metric, least, value, value is None or value >= least))
    if limits.max_size is not None:
        gates.append(Gate("size", limits.max_size, size, size <= limits.max_size))
    return tuple(gates)


def describe_gate(gate: Gate) -> str:
    """The sentence about a gate that was not met."""
    if gate.metric == "size":
        return f"{gate.value:,.0f} bytes, --max-size is {gate.limit:,.0f}"
    return f"{gate.metric} is {gate.value:.6g}, --fail-under asks for {gate.limit:g}"


def _report(
    plan: Plan, source: Checkpoint, target: Target, size: int, outcome: Outcome | None, started: float
) -> Report:
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
    path = inert(str(target.path))
    written = Side(path, target.container, size, len(stored), 0, layout=plan.layout)
    extra: dict[str, Any] = {} if outcome else {"planned": {"path": path, "bytes": size}}
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
