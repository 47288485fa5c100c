"""What each scheme would make of a checkpoint: its size, and the error on a sample of each tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from modelzip_cli.amounts import Pruning
from modelzip_cli.blocks import read_block
from modelzip_cli.compare import Errors
from modelzip_cli.errors import DoesNotFit
from modelzip_cli.estimate import Estimate, with_lossless_sizes
from modelzip_cli.kernels.sums import error_sums
from modelzip_cli.kernels.widen import rounded
from modelzip_cli.output import file_container, planned_size
from modelzip_cli.plan import Plan, choose_coder, masks_of, outline, plan_compression
from modelzip_cli.pruning import Masked
from modelzip_cli.recipe import Goal, Recipe
from modelzip_cli.report import finite
from modelzip_cli.schemes.base import Scheme
from modelzip_cli.source import Checkpoint
from modelzip_cli.survey import TensorSurvey
from modelzip_cli.tensors import Source, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

PREDICTED = (  # every family, and of int the sizes that people ask for
    "bf16",
    "fp16",
    "fp8",
    "int8",
    "fixed8",
    "int6",
    "nf4",
    "int4",
    "codebook4",
    "int3",
    "int2-g32",
    "binary-m2",
    "ternary",
    "binary",
)
TARGETS = (20.0, 25.0, 30.0)  # dB that `ecq` is asked to keep
SPARSITIES = (0.5, 0.7, 0.9)
SAMPLED = 4 << 20  # weights in all; a scheme takes some 50 ns for one of them
LEAST_SAMPLE, MOST_SAMPLE = 4 << 10, 64 << 10  # of one tensor
PIECES = 4  # of the sample of a tensor, spread over its rows: the middle of an embedding may be unused
ENOUGH_DB = 20.0  # the smallest scheme above it is recommended


@dataclass(frozen=True)
class Prediction:
    """The outcome of one scheme: bytes of the native file, ratio, and SQNR over the treated weights in dB.

    `sqnr_db` is None where nothing would be lost or treated; `by_tensor` has the noise over the signal of each;
    `recipe` is what `quantize`, or `compress` for `ecq` and `lossless`, has to be asked for; `bits` are those of a
    weight, by tensor, of these two.
    """

    scheme: str
    bytes: int
    ratio: float
    sqnr_db: float | None
    treated: int
    by_tensor: Mapping[str, float]
    recipe: Recipe
    bits: Mapping[str, float] = field(default_factory=dict)

    @property
    def min_sqnr(self) -> float | None:
        """The dB that `ecq` was asked to keep."""
        return self.recipe.goal.value if self.recipe.goal else None

    @property
    def sparsity(self) -> float | None:
        """The share of zeros, where it is a pruned file."""
        return self.recipe.pruning.sparsity if self.recipe.pruning else None

    def to_json(self) -> dict[str, Any]:
        """The prediction as JSON values."""
        asked = {"scheme": self.scheme, "min_sqnr": self.min_sqnr, "sparsity": self.sparsity}
        figures = {"bytes": self.bytes, "ratio": self.ratio, "sqnr_db": finite(self.sqnr_db, 2)}
        return {**asked, **figures}


def predict(
    source: Checkpoint, surveyed: Mapping[str, TensorSurvey], executor: Executor, *, key: str | None = None
) -> list[Prediction]:
    """Predict lossless, every scheme of `PREDICTED`, `ecq` at `TARGETS` and pruning at `SPARSITIES`, with the default
    rules.

    One tensor a task on `executor`. Tensors with NaN or infinity are kept, as --allow-nonfinite does; `key` is what
    the source was opened with.
    """
    ties = source.outer.ties if source.outer else {}
    specs = {name: spec for name, spec in source.specs.items() if name not in ties}
    decisions = {name: Recipe(scheme=name).decide(source.specs, ties) for name in PREDICTED}
    wanted = {
        name: list(dict.fromkeys(decided[name].scheme for decided in decisions.values() if decided[name].scheme))
        for name in specs
    }
    wanted = {name: schemes for name, schemes in wanted.items() if schemes}
    damaged = {name for name in wanted if surveyed[name].nonfinite}
    wanted = {name: schemes for name, schemes in wanted.items() if name not in damaged}
    sample = max(LEAST_SAMPLE, min(MOST_SAMPLE, SAMPLED // max(len(wanted), 1)))
    measured = executor.map(lambda name: _try(source, surveyed[name], specs[name], wanted[name], sample), wanted)
    tried = dict(zip(wanted, measured, strict=True))
    exact = Estimate(source, Recipe(scheme="lossless", keep_extras=True, key=key), executor)
    predictions = [_lossless(exact)]
    for name, decided in decisions.items():
        fitting = {tensor: _that_fits(decided[tensor].scheme, tried.get(tensor, {})) for tensor in specs}
        is_damaged = any(decided[tensor].scheme for tensor in damaged)
        recipe = Recipe(scheme=name, allow_nonfinite=is_damaged, key=key)
        predictions.append(_prediction(source, recipe, name, fitting, surveyed, tried))
    asked = Recipe(scheme="ecq", goal=Goal("min_sqnr", TARGETS[0]), allow_nonfinite=bool(damaged), key=key)
    predictions += _entropy_constrained(Estimate(source, asked, executor, exact.lossless))
    return predictions + _pruned(source, surveyed, executor, sample, allow_nonfinite=bool(damaged), key=key)


def _pruned(
    source: Checkpoint,
    surveyed: Mapping[str, TensorSurvey],
    executor: Executor,
    sample: int,
    *,
    allow_nonfinite: bool,
    key: str | None,
) -> list[Prediction]:
    """Pruning by magnitude at each of `SPARSITIES`, values exact; what is lost is measured on samples."""
    found = []
    container = "hf-directory" if source.container == "hf-directory" else "safetensors"
    kept: dict[str, int] = {}
    for sparsity in SPARSITIES:
        asked = Pruning(sparsity=sparsity)
        recipe = Recipe("lossless", pruning=asked, allow_nonfinite=allow_nonfinite, key=key)
        masks = masks_of(source, recipe, executor)
        if not masks:
            return []
        plan = plan_compression(
            source,
            recipe,
            command="prune",
            container=file_container(source, container, "native"),
            executor=executor,
            masks=masks,
        )
        kept = {name: size for name, size in kept.items() if name not in masks}
        plan = with_lossless_sizes(plan, source, executor, kept)
        tensors = [tensor for tensor in plan.tensors if tensor.pruned and not tensor.tie]
        seen = Masked(source, masks)
        loss = executor.map(lambda tensor, seen=seen: _loss(source, seen, tensor.spec, sample), tensors)
        by_tensor = {tensor.spec.name: each for tensor, each in zip(tensors, loss, strict=True)}
        signal = sum(surveyed[name].signal for name in by_tensor)
        lost = sum(each * surveyed[name].signal for name, each in by_tensor.items())
        sqnr = 10 * math.log10(signal / lost) if signal > 0 and lost > 0 else None
        stored = planned_size(plan, source, container)
        treated = sum(tensor.spec.size for tensor in tensors)
        ratio = round(source.file.size / stored, 4)
        found.append(Prediction("lossless", stored, ratio, sqnr, treated, by_tensor, recipe))
    return found


def _loss(source: Checkpoint, seen: Source, spec: TensorSpec, sample: int) -> float:
    """Noise over signal of a sample of a tensor, as `seen` has it."""
    before, after = (_sample(each, spec, sample).reshape(-1) for each in (source, seen))
    sums = error_sums(before, after)
    return float(sums[1] / sums[0]) if sums[0] > 0 else 0.0


def _lossless(estimate: Estimate) -> Prediction:
    plan = estimate.plan()
    treated = sum(tensor.spec.size for tensor in plan.tensors if tensor.treated and not tensor.tie)
    found = _planned(estimate, plan, estimate.recipe, None, treated, {})
    return found if found.bytes < estimate.source.file.size else replace(found, treated=0)


def _entropy_constrained(estimate: Estimate) -> list[Prediction]:
    """`ecq` at each of `TARGETS` that it can keep."""
    found = []
    for target in TARGETS:
        asked = replace(estimate.recipe, goal=Goal("min_sqnr", target))
        allocation = estimate.allocator.of_loss(10 ** (-target / 10)) if estimate.allocator.sampled else None
        if allocation is None and estimate.allocator.sampled:
            continue
        plan = estimate.plan(allocation.step if allocation else None)
        lossy = [tensor.spec for tensor in plan.tensors if tensor.treated and not tensor.tie]
        by_tensor = {spec.name: allocation.loss[spec.name] for spec in lossy} if allocation else {}
        sqnr = allocation.sqnr_db if allocation else None
        found.append(_planned(estimate, plan, asked, sqnr, sum(spec.size for spec in lossy), by_tensor))
    return found


def _planned(
    estimate: Estimate, plan: Plan, recipe: Recipe, sqnr: float | None, treated: int, by_tensor: Mapping[str, float]
) -> Prediction:
    """What a plan of `ecq` or `lossless` comes to."""
    stored = estimate.size(plan)
    coded = [tensor for tensor in plan.tensors if tensor.scheme and not tensor.tie and tensor.spec.size]
    bits = {tensor.spec.name: round(8 * tensor.bytes_after / tensor.spec.size, 4) for tensor in coded}
    ratio = round(estimate.source.file.size / stored, 4)
    return Prediction(recipe.scheme, stored, ratio, sqnr, treated, by_tensor, recipe, bits)


@dataclass(frozen=True)
class _Tried:
    """A scheme on a sample of a tensor: noise over signal, and the coder with what it would take."""

    noise: float
    coder: tuple[str, int | None]


def _that_fits(scheme: Scheme | None, tried: Mapping[Scheme, _Tried]) -> Scheme | None:
    return scheme if scheme in tried else None


def _sample(source: Source, spec: TensorSpec, most: int) -> Block:
    """About `most` weights of a tensor in a few runs of rows, float32 [rows, columns]."""
    rows, columns = spec.matrix
    count = min(rows, max(1, most // columns))
    pieces = min(PIECES, count) if count < rows else 1
    run = count // pieces
    firsts = [(rows - run) * (2 * piece + 1) // (2 * pieces) for piece in range(pieces)]
    return np.concatenate([read_block(source, spec, first, first + run) for first in firsts])


def _try(
    source: Checkpoint, surveyed: TensorSurvey, spec: TensorSpec, schemes: list[Any], sample: int
) -> dict[Scheme, _Tried]:
    """Try each scheme that can hold a tensor on a sample of it."""
    block = _sample(source, spec, sample)
    blocks = [block]
    if block.size < spec.size:  # what belongs to the whole tensor depends on its range
        ends = block[:1].copy()
        ends[0, 0], ends[0, -1] = surveyed.minimum, surveyed.maximum
        blocks.append(ends)
    found: dict[Scheme, _Tried] = {}
    for scheme in schemes:
        try:
            tensor = scheme.fit_tensor(blocks)
        except DoesNotFit:
            continue
        params = {**tensor, **scheme.fit_rows(block, tensor)}
        codes = scheme.encode(block, params)
        decoded = rounded(scheme.decode(codes, params), scheme.plain or spec.dtype)
        errors = Errors(block.size, error_sums(block.reshape(-1), decoded.reshape(-1)))
        signal, noise = float(errors.sums[0]), float(errors.sums[1])
        coder = ("", None) if scheme.plain else choose_coder(Recipe(), spec, scheme, codes)
        found[scheme] = _Tried(noise / signal if signal > 0 and math.isfinite(noise) else 0.0, coder)
    return found


def _prediction(
    source: Checkpoint,
    recipe: Recipe,
    name: str,
    schemes: Mapping[str, Scheme | None],
    surveyed: Mapping[str, TensorSurvey],
    tried: Mapping[str, Mapping[Scheme, _Tried]],
) -> Prediction:
    container = "hf-directory" if source.container == "hf-directory" else "safetensors"
    used = {tensor: tried[tensor][scheme] for tensor, scheme in schemes.items() if scheme}
    coders = {tensor: one.coder for tensor, one in used.items()}
    plan = outline(source, recipe, schemes, coders, container=file_container(source, container, "native"))
    stored = planned_size(plan, source, container)
    by_tensor = {tensor: one.noise for tensor, one in used.items()}
    signal = sum(surveyed[tensor].signal for tensor in by_tensor)
    lost = sum(ratio * surveyed[tensor].signal for tensor, ratio in by_tensor.items())
    treated = sum(surveyed[tensor].weights for tensor in by_tensor)
    sqnr = 10 * math.log10(signal / lost) if signal > 0 and lost > 0 else None
    ratio = round(source.file.size / stored, 4)
    return Prediction(name, stored, ratio, sqnr, treated, by_tensor, recipe)


def recommended(predictions: list[Prediction]) -> Prediction | None:
    """The smallest that keeps at least 20 dB; the most exact one where none does; None where nothing can be treated."""
    possible = [one for one in predictions if one.treated and one.sparsity is None]
    enough = [one for one in possible if one.sqnr_db is None or one.sqnr_db >= ENOUGH_DB]
    if enough:
        return min(enough, key=lambda one: one.bytes)
    return max(possible, key=lambda one: one.sqnr_db or 0.0, default=None)
