"""quantize, prune and compress with the help of the model: statistics before, repair after, and what the model does.

A run is one of the engine, or two: where the model that it gave is repaired or trained, the engine runs again over the
source with what that changed. Memory is that of the model twice beside the statistics of a few layers (calibrate.py);
`recover` takes that of a training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from modelzip_cli import load_file
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.criteria import AUTO
from modelzip_cli.criteria.masks import Given
from modelzip_cli.depth import open_for
from modelzip_cli.errors import GateFailed, UsageError, inert
from modelzip_cli.kernels.widen import narrow
from modelzip_cli.pruning import Pruned
from modelzip_cli.recipe import Decision, Recipe
from modelzip_cli.report import Report
from modelzip_cli.running.bench import Bench, open_bench
from modelzip_cli.running.calibrate import calibrate
from modelzip_cli.running.data import DataOptions
from modelzip_cli.running.evaluate import check_gates, use_threads
from modelzip_cli.running.ladder import Network
from modelzip_cli.running.lesson import Lesson
from modelzip_cli.running.model import Model
from modelzip_cli.running.recover import recover
from modelzip_cli.running.repair import distance, repair, vectors
from modelzip_cli.running.training import State
from modelzip_cli.single import Aid, Settings, compress_file
from modelzip_cli.statistics import FISHER, HESSIAN, SENSITIVITY, StatisticsFile
from modelzip_cli.tensors import TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits

REPAIRED_BELOW = 5.0  # bits a weight: above, statistics of some hundred examples are worse than those of training
CANDIDATES = ("magnitude", "fisher")
DENSE, AS_IS, REPAIRED, RECOVERED = "dense", "as is", "repaired", "recovered"
LEARNT = "learnt after pruning"


@dataclass(frozen=True)
class Study:
    """How the model is run beside a run of the engine.

    `statistics`: where they are read from; None: they are taken on `data`, and kept at `save`. `recover`: steps of
    distillation after pruning. `gates`: least values of metrics of `eval`. `say` and `step` are told how it goes.
    """

    network: Network
    data: str
    options: DataOptions
    test: str | None = None
    seed: int = 0
    statistics: Path | None = None
    save: Path | None = None
    recover: int = 0
    gates: tuple[tuple[str, float], ...] = ()
    say: Callable[[str], None] = lambda _: None
    step: Callable[[State, Lesson], None] = lambda state, lesson: None


def compress_with_model(
    path: Path, output: Path, recipe: Recipe, settings: Settings, *, command: str, study: Study
) -> Report:
    """Compress the checkpoint at `path` as `recipe` says, helped and judged by what the model does on data.

    Raises what `compress_file` raises, GateFailed where the compressed model does too little, and what opening models
    and data raises. Nothing is left then.
    """
    settings.check_output(path, output)
    if output == STANDARD:
        raise UsageError("with --data, the output is judged before it appears: name a file with -o")
    if recipe.depth is not None:
        raise UsageError("--depth and --drop-layers make another network, which --data cannot run: prune in two steps")
    use_threads(settings.jobs)
    specs, decisions = _decided(path, recipe)
    study.say("opening the model")
    bench = open_bench(path, study.network, study.data, study.test, study.options, study.seed, specs)
    if study.recover and bench.dense.features:
        raise UsageError(f"{bench.dense.label}: gives features, and --recover learns scores: prune it without")
    with (
        tempfile.TemporaryDirectory(prefix="modelzip-") as scratch,
        _statistics(bench, study, settings, recipe, specs, decisions, Path(scratch)) as statistics,
    ):
        run = _Run(path, recipe, settings, command, study, bench, specs, decisions, Aid(statistics), Path(scratch))
        return run.planned(output) if settings.dry_run else run.written(output)


def _decided(path: Path, recipe: Recipe) -> tuple[dict[str, TensorSpec], dict[str, Decision]]:
    """The tensors of a checkpoint, and what the recipe says of each."""
    with closing(open_for(path, recipe)) as source:
        return dict(source.specs), recipe.decide(source.specs, source.outer.ties if source.outer else {})


def kinds_for(recipe: Recipe, decisions: Mapping[str, Decision]) -> list[str]:
    """The statistics that a recipe makes use of."""
    if recipe.pruning is not None:
        needed = FISHER if recipe.pruning.criterion == AUTO else recipe.pruning.by.needs
        return [needed] if needed else []
    kinds = [HESSIAN] if any(one.scheme and one.scheme.feeds_back for one in decisions.values()) else []
    return kinds + ([SENSITIVITY] if recipe.goal is not None and recipe.goal.kind != "min_sqnr" else [])


@contextmanager
def _statistics(
    bench: Bench,
    study: Study,
    settings: Settings,
    recipe: Recipe,
    specs: Mapping[str, TensorSpec],
    decisions: Mapping[str, Decision],
    scratch: Path,
) -> Iterator[StatisticsFile | None]:
    """Those in the file that was named, or else taken now, not kept by a dry run; None where none are needed."""
    kinds, target = kinds_for(recipe, decisions), study.statistics
    if target is None and kinds:
        target = scratch / "statistics.safetensors" if study.save is None or settings.dry_run else study.save
        treated = [specs[name] for name, one in decisions.items() if one.pruned or (one.scheme and not one.scheme.raw)]
        found_some = calibrate(
            bench.dense,
            treated,
            bench.batches,
            kinds,
            target,
            replace=settings.force,
            data=bench.examples.label,
            say=study.say,
        )
        if not found_some:
            if recipe.pruning is not None or study.save is not None:
                raise UsageError(f"{bench.dense.label}: has no layer that --data tells something of")
            target = None
    with nullcontext() if target is None else closing(StatisticsFile(target)) as found:
        yield found


@dataclass
class _Run:
    path: Path
    recipe: Recipe
    settings: Settings
    command: str
    study: Study
    bench: Bench
    specs: Mapping[str, TensorSpec]
    decisions: Mapping[str, Decision]  # the same whichever criterion prunes
    aid: Aid
    scratch: Path

    def planned(self, output: Path) -> Report:
        """The plan alone; of `auto` that of its first candidate."""
        recipe = self.candidate(CANDIDATES[0]) if self.is_auto else self.recipe
        aid = self.used(recipe, self.aid)
        return compress_file(self.path, output, recipe, self.settings, command=self.command, aid=aid)

    def written(self, output: Path) -> Report:
        """The output, which appears only if its model passes the gates."""
        self.study.say("evaluating the dense model")
        self.bench.judge(DENSE, self.bench.dense, latency=True)
        label, recipe, aid = AS_IS, self.recipe, self.aid
        helpless = self.aid.statistics is None and kinds_for(self.recipe, self.decisions)
        notes = ["no layer's inputs were seen: weights are rounded one by one"] if helpless else []
        reasons: Mapping[str, str] = {}
        if self.is_auto:
            recipe, note = self.chosen()
            notes.append(note)
        if self.changes_much:
            label, aid, reasons = self.improved(recipe)
        final = replace(self.settings, ready=self.judge_of(label))
        report = compress_file(self.path, output, recipe, final, command=self.command, aid=self.used(recipe, aid))
        rows = tuple(replace(row, reason=reasons.get(row.name, row.reason)) for row in report.tensors)
        found = self.bench.stages
        gates = (*report.gates, *check_gates(self.study.gates, found[-1][1]))
        extra = {**report.extra, "notes": notes, "data": self.bench.tested_on, "network": self.bench.dense.rung}
        return replace(report, tensors=rows, gates=gates, extra=extra, stages=tuple(found))

    @property
    def is_auto(self) -> bool:
        return self.recipe.pruning is not None and self.recipe.pruning.criterion == AUTO

    def used(self, recipe: Recipe, aid: Aid) -> Aid:
        """`aid`, but no statistics for the criterion among those of `auto` that asks for none."""
        asks = recipe.pruning is not None and recipe.pruning.by.needs
        return replace(aid, statistics=None) if self.is_auto and not asks else aid

    def candidate(self, criterion: str) -> Recipe:
        """The recipe with another criterion."""
        assert self.recipe.pruning is not None
        return replace(self.recipe, pruning=replace(self.recipe.pruning, criterion=criterion))

    def chosen(self) -> tuple[Recipe, str]:
        """The candidate whose model stays nearest to the dense one once it is repaired, and a sentence about it."""
        found = {}
        for criterion in CANDIDATES:
            self.study.say(f"trying {criterion}")
            model, _ = self.trial(self.candidate(criterion))
            repair(model, self.bench.dense, self.bench.batches)
            found[criterion] = distance(model, self.bench.dense, self.bench.batches)
        best, *rest = sorted(found, key=lambda criterion: found[criterion])
        others = ", ".join(f"{found[name]:.4g} with {name}" for name in rest)
        return self.candidate(best), f"auto took {best}: KL from the dense model {found[best]:.4g}, {others}"

    def trial(self, recipe: Recipe) -> tuple[Model, Report]:
        """The model that the engine makes of a recipe, and its report."""
        target = self.scratch / "trial.safetensors"
        settings = Settings(self.settings.jobs, force=True)
        aid = self.used(recipe, self.aid)
        report = compress_file(self.path, target, recipe, settings, command=self.command, aid=aid)
        return self.bench.loaded(load_file(target), size=target.stat().st_size), report

    @property
    def changes_much(self) -> bool:
        """Whether there may be something to repair: what is pruned, or stored in few bits."""
        lossy = [one.scheme for one in self.decisions.values() if one.scheme and not one.scheme.raw]
        few = any(scheme.levels is None or scheme.bits < REPAIRED_BELOW for scheme in lossy)
        return self.recipe.pruning is not None or few

    def improved(self, recipe: Recipe) -> tuple[str, Aid, dict[str, str]]:
        """Repair what the engine makes, and let it learn: the last stage, what the engine is to be given when it runs
        again, and why tensors are not what they were."""
        trained = bool(self.study.recover)
        model, report = self.trial(_without_schemes(recipe) if trained else recipe)
        bits = report.totals["bits_per_weight"]
        if recipe.pruning is None and (bits is None or bits >= REPAIRED_BELOW):
            return AS_IS, self.aid, {}
        before = vectors(self.state(model))
        self.bench.judge(AS_IS, model)
        done = repair(model, self.bench.dense, self.bench.batches)
        if not done and not trained:
            self.bench.stages.pop()  # the output is judged under that name
            return AS_IS, self.aid, {}
        if not trained:
            changed = _changed(before, self.state(model))
            replaced = {name: self.bits(name, tensor) for name, tensor in changed.items()}
            return REPAIRED, replace(self.aid, replaced=replaced), dict.fromkeys(replaced, done)
        if done:
            self.bench.judge(REPAIRED, model)
        pruned = {row.name for row in report.tensors if row.pruned}
        self.learn(model, pruned)
        return RECOVERED, *self.learnt(model, pruned)

    def learn(self, model: Model, pruned: set[str]) -> None:
        """Distil from the dense model; what was pruned stays 0."""
        parameters = dict(model.module.named_parameters(remove_duplicate=False))  # a file may have either of a tie
        kept = {name: parameters[name].detach() != 0 for name in parameters if self.bench.names.get(name) in pruned}
        bench = self.bench
        self.study.say("learning from the dense model")
        recover(
            model,
            bench.dense,
            kept,
            bench.examples,
            bench.train,
            bench.held,
            self.study.recover,
            self.study.seed,
            self.study.step,
        )

    def learnt(self, model: Model, pruned: set[str]) -> tuple[Aid, dict[str, str]]:
        """What training changed: pruned weights, which are to stay as they are, and others."""
        changed = _changed(self.state(self.bench.dense), self.state(model))
        found = {name: self.bits(name, tensor) for name, tensor in changed.items()}
        masks = {name: Pruned(Given(bits), int((bits == 0).sum())) for name, bits in found.items() if name in pruned}
        replaced = {name: bits for name, bits in found.items() if name not in pruned}
        return replace(self.aid, masks=masks, replaced=replaced), dict.fromkeys(replaced, LEARNT)

    def state(self, model: Model) -> dict[str, Tensor]:
        """The model's tensors of a float dtype, by the names of the checkpoint."""
        own = model.module.state_dict()
        return {
            theirs: own[ours]
            for ours, theirs in self.bench.names.items()
            if ours in own and own[ours].is_floating_point()
        }

    def bits(self, name: str, tensor: Tensor) -> Bits:
        """A tensor as the checkpoint stores it, raw units [units]."""
        spec = self.specs[name]
        return narrow(np.ascontiguousarray(tensor.float().numpy()).reshape(1, -1), spec.dtype).reshape(-1)

    def judge_of(self, label: str) -> Callable[[Report, Path], None]:
        """What evaluates the output before it appears. Raises GateFailed, and nothing appears."""

        def ready(report: Report, pending: Path) -> None:
            self.study.say("evaluating the output")
            assert report.output is not None
            model = self.bench.loaded(load_file(pending), size=report.output.bytes)
            found = self.bench.judge(label, model, latency=True)
            for gate in check_gates(self.study.gates, found):
                if not gate.passed:
                    reached = "unknown" if gate.value is None else f"{gate.value:.6g}"
                    raise GateFailed(
                        f"{inert(str(self.path))}: {gate.metric} is {reached}, --fail-under asks for {gate.limit:g}; "
                        "nothing was written"
                    )
            self.settings.ready(report, pending)

        return ready


def _without_schemes(recipe: Recipe) -> Recipe:
    """The recipe that prunes alone, so that what is left learns before it is quantized."""
    rules = tuple(rule for rule in recipe.rules if rule.amount is not None or rule.scheme == "keep")
    return replace(recipe, scheme="lossless", layout="native", rules=rules, goal=None, coder="auto")


def _changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: after[name] for name, tensor in before.items() if not tensor.equal(after[name])}
