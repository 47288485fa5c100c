"""What each scheme would make of a checkpoint: its exact size, and the error on a sample of each tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from modelzip_cli.coders.lossless import pack
from modelzip_cli.compare import Errors
from modelzip_cli.errors import DoesNotFit
from modelzip_cli.kernels.sums import error_sums
from modelzip_cli.kernels.widen import rounded
from modelzip_cli.output import file_container, planned_size
from modelzip_cli.plan import Plan, TensorPlan, outline, read_block
from modelzip_cli.recipe import Recipe
from modelzip_cli.report import finite
from modelzip_cli.schemes.base import Scheme
from modelzip_cli.source import Checkpoint
from modelzip_cli.survey import TensorSurvey
from modelzip_cli.tensors import TensorSpec

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
SAMPLED = 4 << 20  # weights in all; a scheme takes some 50 ns for one of them
LEAST_SAMPLE, MOST_SAMPLE = 4 << 10, 64 << 10  # of one tensor
PIECES = 4  # of the sample of a tensor, spread over its rows: the middle of an embedding may be unused
ENOUGH_DB = 20.0  # the smallest scheme above it is recommended


@dataclass(frozen=True)
class Prediction:
    """The outcome of one scheme: bytes of the native file, ratio, and SQNR over the treated weights in dB.

    `sqnr_db` is None where nothing would be lost or treated; `by_tensor` has the noise over the signal of each;
    `recipe` is what `quantize` has to be asked for.
    """

    scheme: str
    bytes: int
    ratio: float
    sqnr_db: float | None
    treated: int
    by_tensor: Mapping[str, float]
    recipe: Recipe

    def to_json(self) -> dict[str, Any]:
        """The prediction as JSON values."""
        return {"scheme": self.scheme, "bytes": self.bytes, "ratio": self.ratio, "sqnr_db": finite(self.sqnr_db, 2)}


def predict(
    source: Checkpoint, surveyed: Mapping[str, TensorSurvey], executor: Executor, *, key: str | None = None
) -> list[Prediction]:
    """Predict every scheme of `PREDICTED` with the default rules, one tensor a task on `executor`.

    Tensors with NaN or infinity are kept, as --allow-nonfinite does; `key` is what the source was opened with.
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
    measured = executor.map(lambda name: _noise(source, surveyed[name], specs[name], wanted[name], sample), wanted)
    noise = dict(zip(wanted, measured, strict=True))
    predictions = []
    for name, decided in decisions.items():
        fitting = {tensor: _that_fits(decided[tensor].scheme, noise.get(tensor, {})) for tensor in specs}
        is_damaged = any(decided[tensor].scheme for tensor in damaged)
        recipe = Recipe(scheme=name, allow_nonfinite=is_damaged, key=key)
        predictions.append(_prediction(source, recipe, name, fitting, surveyed, noise))
    return predictions


def lossless_bytes(source: Checkpoint, spec: TensorSpec) -> int:
    """About the bytes that a tensor takes losslessly: its middle slab is packed, the others are taken to be like it."""
    slabs = list(spec.unit_slabs())
    if not slabs:
        return 0
    first, last = slabs[len(slabs) // 2]
    packed = len(pack(source.read(spec.name, first, last), spec.dtype, spec.matrix[1]))
    return packed * spec.units // (last - first)


def with_lossless_sizes(plan: Plan, sizes: Mapping[str, int]) -> Plan:
    """The plan with the sizes of tensors that are stored losslessly, where they are known."""
    return replace(plan, tensors=tuple(_sized(tensor, sizes) for tensor in plan.tensors))


def _sized(tensor: TensorPlan, sizes: Mapping[str, int]) -> TensorPlan:
    if tensor.scheme is None or not tensor.scheme.raw or tensor.spec.name not in sizes:
        return tensor
    parts = (part.sized(sizes[tensor.spec.name]) if part.coded else part for part in tensor.parts)
    return replace(tensor, parts=tuple(parts))


def _that_fits(scheme: Scheme | None, noise: Mapping[Scheme, float | None]) -> Scheme | None:
    return scheme if scheme and noise.get(scheme) is not None else None


def _sample(source: Checkpoint, spec: TensorSpec, most: int) -> Block:
    """About `most` weights of a tensor in a few runs of rows, float32 [rows, columns]."""
    rows, columns = spec.matrix
    count = min(rows, max(1, most // columns))
    pieces = min(PIECES, count) if count < rows else 1
    run = count // pieces
    firsts = [(rows - run) * (2 * piece + 1) // (2 * pieces) for piece in range(pieces)]
    return np.concatenate([read_block(source, spec, first, first + run) for first in firsts])


def _noise(
    source: Checkpoint, surveyed: TensorSurvey, spec: TensorSpec, schemes: list[Any], sample: int
) -> dict[Scheme, float | None]:
    """Squared error over signal of each scheme on a sample of a tensor; None where the scheme cannot hold it."""
    block = _sample(source, spec, sample)
    blocks = [block]
    if block.size < spec.size:  # what belongs to the whole tensor depends on its range
        ends = block[:1].copy()
        ends[0, 0], ends[0, -1] = surveyed.minimum, surveyed.maximum
        blocks.append(ends)
    found: dict[Scheme, float | None] = {}
    for scheme in schemes:
        try:
            tensor = scheme.fit_tensor(blocks)
        except DoesNotFit:
            found[scheme] = None
            continue
        params = {**tensor, **scheme.fit_rows(block, tensor)}
        decoded = rounded(scheme.decode(scheme.encode(block, params), params), scheme.plain or spec.dtype)
        errors = Errors(block.size, error_sums(block.reshape(-1), decoded.reshape(-1)))
        signal, noise = float(errors.sums[0]), float(errors.sums[1])
        found[scheme] = noise / signal if signal > 0 and math.isfinite(noise) else 0.0
    return found


def _prediction(
    source: Checkpoint,
    recipe: Recipe,
    name: str,
    schemes: Mapping[str, Scheme | None],
    surveyed: Mapping[str, TensorSurvey],
    noise: Mapping[str, Mapping[Scheme, float | None]],
) -> Prediction:
    container = "hf-directory" if source.container == "hf-directory" else "safetensors"
    plan = outline(source, recipe, schemes, container=file_container(source, container, "native"))
    stored = planned_size(plan, source, container)
    by_tensor = {tensor: float(noise[tensor][scheme] or 0) for tensor, scheme in schemes.items() if scheme}
    signal = sum(surveyed[tensor].signal for tensor in by_tensor)
    lost = sum(ratio * surveyed[tensor].signal for tensor, ratio in by_tensor.items())
    treated = sum(surveyed[tensor].weights for tensor in by_tensor)
    sqnr = 10 * math.log10(signal / lost) if signal > 0 and lost > 0 else None
    ratio = round(source.file.size / stored, 4)
    return Prediction(name, stored, ratio, sqnr, treated, by_tensor, recipe)


def recommended(predictions: list[Prediction]) -> Prediction | None:
    """The smallest that keeps at least 20 dB; the most exact one where none does; None where nothing can be treated."""
    possible = [one for one in predictions if one.treated]
    enough = [one for one in possible if one.sqnr_db is None or one.sqnr_db >= ENOUGH_DB]
    if enough:
        return min(enough, key=lambda one: one.bytes)
    return max(possible, key=lambda one: one.sqnr_db or 0.0, default=None)
