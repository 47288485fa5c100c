"""What each scheme would make of a checkpoint: exact sizes of the tensors, and the error on a sample of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from modelzip_cli.compare import Errors
from modelzip_cli.errors import DoesNotFit
from modelzip_cli.kernels.sums import error_sums
from modelzip_cli.kernels.widen import rounded
from modelzip_cli.plan import read_block
from modelzip_cli.recipe import Recipe
from modelzip_cli.report import finite
from modelzip_cli.schemes.base import Scheme
from modelzip_cli.source import Checkpoint
from modelzip_cli.survey import TensorSurvey
from modelzip_cli.tensors import TensorSpec

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
HEADER_BYTES = 2000, 300  # about what header and manifest need: for a file, and for each tensor
ENOUGH_DB = 20.0  # the smallest scheme above it is recommended


@dataclass(frozen=True)
class Prediction:
    """The outcome of one scheme: bytes of the native file, ratio, and SQNR over the treated weights in dB.

    `sqnr_db` is None where nothing would be lost or treated; `by_tensor` has the noise over the signal of each.
    """

    scheme: str
    bytes: int
    ratio: float
    sqnr_db: float | None
    treated: int
    by_tensor: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The prediction as JSON values."""
        return {"scheme": self.scheme, "bytes": self.bytes, "ratio": self.ratio, "sqnr_db": finite(self.sqnr_db, 2)}


def predict(source: Checkpoint, surveyed: Mapping[str, TensorSurvey], executor: Executor) -> list[Prediction]:
    """Predict every scheme of `PREDICTED` with the default rules, one tensor a task on `executor`."""
    ties = source.outer.ties if source.outer else {}
    specs = {name: spec for name, spec in source.specs.items() if name not in ties}
    recipes = {name: Recipe(scheme=name).decide(source.specs, ties) for name in PREDICTED}
    wanted = {
        name: list(dict.fromkeys(decided[name].scheme for decided in recipes.values() if decided[name].scheme))
        for name in specs
    }
    wanted = {name: schemes for name, schemes in wanted.items() if schemes and not surveyed[name].nonfinite}
    sample = max(LEAST_SAMPLE, min(MOST_SAMPLE, SAMPLED // max(len(wanted), 1)))
    measured = executor.map(lambda name: _noise(source, specs[name], wanted[name], sample), wanted)
    noise = dict(zip(wanted, measured, strict=True))
    return [_prediction(name, recipes[name], specs, surveyed, noise, source.file.size) for name in PREDICTED]


def _noise(source: Checkpoint, spec: TensorSpec, schemes: list[Any], sample: int) -> dict[Scheme, float | None]:
    """Squared error over signal of each scheme on rows from the middle of a tensor; None where it does not fit."""
    rows, columns = spec.matrix
    count = min(rows, max(1, sample // columns))
    first = (rows - count) // 2
    block = read_block(source, spec, first, first + count)
    found: dict[Scheme, float | None] = {}
    for scheme in schemes:
        try:
            tensor = scheme.fit_tensor([block])
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
    name: str,
    decided: Mapping[str, Any],
    specs: Mapping[str, TensorSpec],
    surveyed: Mapping[str, TensorSurvey],
    noise: Mapping[str, Mapping[Scheme, float | None]],
    size: int,
) -> Prediction:
    base, each = HEADER_BYTES
    stored, signal, lost, treated = base + each * len(specs), 0.0, 0.0, 0
    by_tensor = {}
    for tensor, spec in specs.items():
        scheme = decided[tensor].scheme
        ratio = noise.get(tensor, {}).get(scheme) if scheme else None
        if scheme is None or ratio is None:
            stored += spec.bytes
            continue
        stored += scheme.stored_bytes(*spec.matrix)
        treated += spec.size
        by_tensor[tensor] = ratio
        signal += surveyed[tensor].signal
        lost += ratio * surveyed[tensor].signal
    sqnr = 10 * math.log10(signal / lost) if signal > 0 and lost > 0 else None
    return Prediction(name, stored, round(size / stored, 4), sqnr, treated, by_tensor)


def recommended(predictions: list[Prediction]) -> Prediction | None:
    """The smallest that keeps at least 20 dB; the most exact one where none does; None where nothing can be treated."""
    possible = [one for one in predictions if one.treated]
    enough = [one for one in possible if one.sqnr_db is None or one.sqnr_db >= ENOUGH_DB]
    if enough:
        return min(enough, key=lambda one: one.bytes)
    return max(possible, key=lambda one: one.sqnr_db or 0.0, default=None)
