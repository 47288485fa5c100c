"""The front of size against error: what `ecq` would make of a checkpoint at a dozen steps, and which to take.

The knee is where the curve of error over bytes, both from 0 to 1, lies farthest below its chord: Satopaa, Albrecht,
Irwin and Raghavan, Finding a "kneedle" in a haystack, ICDCS workshops 2011.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelzip_cli import __version__
from modelzip_cli.allocate import LEAST_SQNR, Allocation, table_bytes
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.errors import inert
from modelzip_cli.estimate import Estimate
from modelzip_cli.figures import size as size_text
from modelzip_cli.kernels import jit
from modelzip_cli.plan import Plan
from modelzip_cli.predict import ENOUGH_DB
from modelzip_cli.recipe import Goal, Recipe
from modelzip_cli.report import SCHEMA_VERSION, Side, finite
from modelzip_cli.reporting import describe_source
from modelzip_cli.source import Checkpoint, check_new, open_source

ANY_GOAL = Goal("bpw", 3.5)  # a recipe of `ecq` has a goal; no point of the front depends on which
STEPS = (1.2, 0.82, 0.57, 0.4, 0.28, 0.195, 0.14, 0.095, 0.055, 0.028, 0.0125)  # about 1 to 8 bits; 0.195: 20 dB


@dataclass(frozen=True)
class Point:
    """One way to store a checkpoint. `sqnr_db` over the weights that lose something, `bits_per_weight` of those that
    are treated; both None for the lossless one."""

    bits_per_weight: float | None
    bytes: int
    ratio: float
    sqnr_db: float | None

    @property
    def error(self) -> float:
        """Root of noise over signal."""
        return 0.0 if self.sqnr_db is None else 10 ** (-self.sqnr_db / 20)

    def to_json(self) -> dict[str, Any]:
        """The point as JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Front:
    """All points, the smallest first; `knee` and `choice` are places among them, `choice` None: take the lossless one.

    `reason` says why it is the choice, `command` is what to run; None where the source has gone.
    """

    source: Side
    points: tuple[Point, ...]
    lossless: Point
    knee: int | None
    choice: int | None
    reason: str
    command: str | None
    warnings: tuple[str, ...] = ()

    @property
    def recommended(self) -> Point:
        """The point to take."""
        return self.lossless if self.choice is None else self.points[self.choice]

    def to_json(self) -> dict[str, Any]:
        """The front as JSON values; keys as in CLI.md."""
        return {
            "schema_version": SCHEMA_VERSION,
            "modelzip": __version__,
            "command": "compress",
            "source": self.source.to_json(source=True),
            "output": None,
            "front": [point.to_json() for point in self.points],
            "lossless": {"bytes": self.lossless.bytes, "ratio": self.lossless.ratio},
            "knee": self.knee,
            "recommended": {**self.recommended.to_json(), "reason": self.reason, "command": self.command},
            "warnings": [*self.warnings],
        }


def front_of(path: Path, recipe: Recipe, executor: Executor, *, requantize: bool) -> Front:
    """Predict the front of the checkpoint at `path`. Nothing is written. Raises what opening and planning raise."""
    with closing(open_source(path, key=recipe.key, keep_extras=recipe.keep_extras)) as source:
        check_new(source, requantize=requantize)
        recipe.check_patterns(list(source.specs), source.file.label)
        points, warnings = _points(source, recipe, executor)
        lossless = _lossless(source, path, recipe, executor)
        source.finish()
        knee = knee_of(points)
        choice, reason = choose(points, knee, lossless)
        grows = choice is None and lossless.bytes >= source.file.size
        if grows:
            reason = f"nothing: even lossless takes {size_text(lossless.bytes)}"
        chosen = None if choice is None else points[choice]
        command = None if path == STANDARD or grows else command_for(path, recipe, chosen)
        if command and source.compressed:
            command += " --requantize"
        return Front(describe_source(source), tuple(points), lossless, knee, choice, reason, command, warnings)


def _points(source: Checkpoint, recipe: Recipe, executor: Executor) -> tuple[list[Point], tuple[str, ...]]:
    """The points at which every tensor keeps 3 dB, the smallest first, and what a run would warn of."""
    jit.expect(sum(spec.size for spec in source.specs.values()), jit.SEARCHING * len(STEPS))
    estimate = Estimate(source, recipe, executor)
    if not estimate.allocator.sampled:
        return [], estimate.plan().warnings
    found: list[Point] = []
    for step in STEPS:
        allocation = estimate.allocator.at(step)
        if allocation.worst > 1 / LEAST_SQNR:
            continue
        plan = estimate.plan(step)
        point = _point(source, plan, allocation, estimate.size(plan))
        if not found or (point.bytes > found[-1].bytes and point.error < found[-1].error):
            found.append(point)
    return found, plan.warnings if found else ()


def _point(source: Checkpoint, plan: Plan, allocation: Allocation, bytes_after: int) -> Point:
    treated = [tensor for tensor in plan.tensors if tensor.treated and not tensor.tie]
    stored = sum(tensor.bytes_after for tensor in treated) + table_bytes(plan.tables)
    weights = sum(tensor.spec.size for tensor in treated)
    lossy = [tensor.spec.name for tensor in treated if tensor.spec.name in allocation.loss]
    signal = math.fsum(allocation.signal[name] for name in lossy)
    noise = math.fsum(allocation.signal[name] * allocation.loss[name] for name in lossy)
    return Point(
        round(8 * stored / weights, 4) if weights else None,
        bytes_after,
        round(source.file.size / bytes_after, 4),
        finite(10 * math.log10(signal / noise), 2) if signal > 0 and noise > 0 else None,
    )


def _lossless(source: Checkpoint, path: Path, recipe: Recipe, executor: Executor) -> Point:
    """What `compress --lossless` would write; it keeps what is beside the weights."""
    everything = replace(recipe, scheme="lossless", goal=None, only=(), skip=(), rules=(), keep_extras=True)
    if path == STANDARD or recipe.keep_extras:
        return _lossless_point(source, everything, executor)
    with closing(open_source(path, key=recipe.key, keep_extras=True)) as whole:
        return _lossless_point(whole, everything, executor)


def _lossless_point(source: Checkpoint, recipe: Recipe, executor: Executor) -> Point:
    estimate = Estimate(source, recipe, executor)
    bytes_after = estimate.size(estimate.plan())
    return Point(None, bytes_after, round(source.file.size / bytes_after, 4), None)


def knee_of(points: Sequence[Point]) -> int | None:
    """The point farthest below the chord from the first to the last; None where none is below it."""
    if len(points) < 3:
        return None
    least, most = points[0].bytes, points[-1].bytes
    low, high = points[-1].error, points[0].error
    below = [1 - (point.bytes - least) / (most - least) - (point.error - low) / (high - low) for point in points]
    place = max(range(len(points)), key=below.__getitem__)
    return place if below[place] > 0 else None


def choose(points: Sequence[Point], knee: int | None, lossless: Point) -> tuple[int | None, str]:
    """The place of the point to take, None for the lossless one, and a sentence that says why."""
    if not points:
        return None, "lossless: ecq treats no tensor here, or none at 3 dB and more"
    enough = [place for place, point in enumerate(points) if point.error <= 10 ** (-ENOUGH_DB / 20)]
    if knee is not None and knee in enough:
        choice = knee
        reason = "the knee: below it error grows faster than size falls, above it size faster than error falls"
    elif enough:
        choice = enough[0]
        reason = f"the smallest of these that keeps {ENOUGH_DB:g} dB, a tenth of the weights' size as error"
        if knee is not None:
            reason += f"; the knee, at {_bits(points[knee])}, keeps {points[knee].sqnr_db:.1f} dB only"
    else:
        choice = len(points) - 1
        reason = f"the finest: none of these keeps {ENOUGH_DB:g} dB"
    if lossless.bytes <= points[choice].bytes:
        return (
            None,
            f"lossless: it takes {size_text(lossless.bytes)}, no more than {_bits(points[choice])} a weight would",
        )
    return choice, reason


def _bits(point: Point) -> str:
    return f"{point.bits_per_weight or 0:.2f} bits"


def command_for(path: Path, recipe: Recipe, point: Point | None) -> str:
    """The command that makes a point; None is the lossless one, which takes no rules."""
    words = ["modelzip", "compress", str(path) if not str(path).startswith("-") else f"./{path}"]
    if point is None or point.bits_per_weight is None:
        words.append("--lossless")
    else:
        words += ["--bpw", f"{math.ceil(100 * point.bits_per_weight) / 100:g}"]
        words += [word for pattern in recipe.only for word in ("--only", pattern)]
        words += [word for pattern in recipe.skip for word in ("--skip", pattern)]
        words += [word for rule in recipe.rules for word in ("--set", f"{rule.match}={rule.scheme}")]
        words += ["--keep-extras"] * recipe.keep_extras + ["--allow-nonfinite"] * recipe.allow_nonfinite
    words += ["--key", recipe.key] if recipe.key else []
    return inert(shlex.join(words))
