"""One checkpoint from file to file: open, plan, run, gate, commit, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelzip_cli.compress import run
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.depth import open_for
from modelzip_cli.errors import CannotWrite, GateFailed, inert
from modelzip_cli.estimate import with_lossless_sizes
from modelzip_cli.output import check_output, container_of, file_container, open_output, planned_size
from modelzip_cli.plan import Plan, masks_of, plan_compression, plan_restore, sampled
from modelzip_cli.pruning import Masks
from modelzip_cli.recipe import Goal, Recipe
from modelzip_cli.report import Gate, Report
from modelzip_cli.reporting import report_on
from modelzip_cli.search import Search
from modelzip_cli.source import Checkpoint, check_new, open_source, overlaid
from modelzip_cli.tensors import Statistics

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits

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


@dataclass(frozen=True)
class Aid:
    """What running the model on data gave a run.

    `statistics`: what its weights do; `masks`: what becomes of weights, where that is decided; `replaced`: other bits
    for tensors that are kept, such as the running statistics of BatchNorm.
    """

    statistics: Statistics | None = None
    masks: Masks | None = None
    replaced: Mapping[str, Bits] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any] | None:
        """As the manifest holds it, None where it gave nothing: SHA-256 of the header of the statistics, and the names
        of the tensors that were replaced or trained."""
        found: dict[str, Any] = {}
        if self.statistics is not None:
            found["statistics"] = self.statistics.sha256
        if self.replaced or self.masks:
            found["changed"] = [*self.replaced, *(self.masks or ())]
        return found or None


def compress_file(
    path: Path, output: Path, recipe: Recipe, settings: Settings, *, command: str, aid: Aid | None = None
) -> Report:
    """Compress the checkpoint at `path` into `output` as `recipe` says, and report on it.

    `aid`: what running the model gave. Raises what opening, planning and writing raise, and GateFailed when a limit is
    not met; nothing is left then.
    """
    started = time.monotonic()
    aid = aid or Aid()
    container = container_of(path, output)
    source = overlaid(open_for(path, recipe), aid.replaced)
    try:
        settings.check_output(path, output)
        check_new(source, requantize=settings.requantize)
        recipe.check_patterns(list(source.specs), source.file.label)
        target = Target(output, container)
        with _threads(settings.jobs) as executor:
            of_files = file_container(source, container, recipe.layout)
            if recipe.goal is not None:
                return _meet(recipe.goal, source, recipe, target, of_files, settings, executor, started, command, aid)
            plan = plan_compression(
                source,
                recipe,
                command=command,
                container=of_files,
                executor=executor,
                masks=aid.masks,
                statistics=aid.statistics,
            )
            plan = replace(plan, aid=aid.to_json())
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
        return report_on(
            plan, source, target.path, target.container, planned_size(plan, source, target.container), None, started
        )
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
    aid: Aid,
) -> Report:
    """Find the step that meets the goal, and write the output.

    The step comes from a sample. Where the output misses the goal, what it was is the measure for the next attempt.
    Raises Unreachable when no step on offer meets the goal.
    """
    masks = masks_of(source, recipe, executor, aid.statistics) if aid.masks is None else aid.masks
    allocator = sampled(source, recipe, executor, masks, aid.statistics)

    def planned(step: float | None) -> Plan:
        plan = plan_compression(
            source,
            recipe,
            command=command,
            container=container,
            executor=executor,
            masks=masks,
            allocator=allocator,
            step=step,
            statistics=aid.statistics,
        )
        return replace(plan, aid=aid.to_json())

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
        report = report_on(settled, source, target.path, target.container, size, outcome, started)
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
