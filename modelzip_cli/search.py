"""The step of `ecq` that meets a goal: predicted from a sample, then corrected by what was written."""

from __future__ import annotations

import math

from modelzip_cli.allocate import Allocation, Allocator, rounded, table_bytes
from modelzip_cli.compare import Errors
from modelzip_cli.compress import Outcome
from modelzip_cli.errors import Unreachable
from modelzip_cli.figures import size as size_text
from modelzip_cli.plan import Plan
from modelzip_cli.recipe import Goal
from modelzip_cli.schemes.ecq import LEAST_STEP, Ecq
from modelzip_cli.source import Checkpoint

NEAR = 0.002  # how far below a goal of size an output may stay
AIM = 0.0005  # how far below it is aimed at
NEAR_LOSS = 0.01  # how much less than the most may be lost: 0.04 dB
ATTEMPTS = 12
NUDGE = 0.001


class Search:
    """Finds the step that meets `goal`.

    What an output was, over what had been predicted, corrects the next try.
    """

    def __init__(self, goal: Goal, source: Checkpoint, allocator: Allocator) -> None:
        self.goal, self.source, self.allocator = goal, source, allocator
        self._beside = 0.0  # bytes of the output that no step changes
        self._weights = 0  # that are treated
        self._factor = 1.0  # stored or lost over what is predicted
        self._last: Allocation | None = None
        self._tried: dict[float, bool] = {}  # steps that were written, and whether they met the goal
        self._is_final = False

    @property
    def counts_bytes(self) -> bool:
        """Whether the goal is about bytes: of the output, or of the treated tensors."""
        return self.goal.kind != "min_sqnr"

    @property
    def _limit(self) -> float:
        """Bytes that the output, or its treated tensors, may have."""
        if self.goal.kind == "ratio":
            return self.source.file.size / self.goal.value
        if self.goal.kind == "target_size":
            return self.goal.value
        return self.goal.value / 8 * (self._weights or self.allocator.weights)

    def begin(self) -> float:
        """A step near the goal: to learn how much of the output it does not change."""
        return self.allocator.first(self._limit)

    def measure(self, plan: Plan, size: int) -> None:
        """Learn it from a plan, and the size of its output."""
        treated = [tensor for tensor in plan.tensors if tensor.treated and not tensor.tie]
        self._weights = sum(tensor.spec.size for tensor in treated)
        if self.goal.kind == "bpw":
            size = sum(tensor.bytes_after for tensor in treated) + table_bytes(plan.tables)
        self._beside = size - _stored(plan)

    def step(self) -> float:
        """The step to try next. Raises Unreachable when none on offer meets the goal."""
        if not self.allocator.sampled:
            if self.counts_bytes and self._beside > self._limit:
                raise Unreachable(
                    f"{self.source.file.label}: has no tensor that ecq treats, so no step changes its size"
                )
            return self.begin()
        found = self._found()
        if found is None or len(self._tried) >= 2 * ATTEMPTS:
            raise Unreachable(f"{self.source.file.label}: {self._nearest()}")
        step: float | None = found.step
        if step in self._tried:
            step = self._between()
        best = self._best
        if best is not None and (step is None or len(self._tried) >= ATTEMPTS):
            step, self._is_final = best, True
        self._last = self.allocator.at(step or found.step)
        return self._last.step

    @property
    def _best(self) -> float | None:
        """Of the steps that met the goal the one that met it most closely."""
        met = [step for step, is_met in self._tried.items() if is_met]
        if not met:
            return None
        return min(met) if self.counts_bytes else max(met)

    def _between(self) -> float | None:
        """A step between those that met the goal and those that did not, where predictions are too coarse to tell."""
        sign = 1 if self.counts_bytes else -1  # coarser steps meet a size, finer ones a quality
        missed = [step for step, is_met in self._tried.items() if not is_met]
        best = self._best
        if best is None:
            return rounded((max(missed) if sign > 0 else min(missed)) * (1 + sign * NUDGE))
        beyond = [step for step in missed if (best - step) * sign > 0]
        other = (max(beyond) if sign > 0 else min(beyond)) if beyond else best * (1 - sign * NUDGE)
        step = rounded(math.sqrt(best * other))
        return None if step in self._tried else step

    def _found(self) -> Allocation | None:
        if self.goal.kind == "min_sqnr":
            return self.allocator.of_loss(10 ** (-self.goal.value / 10) / self._factor * (1 - NEAR_LOSS / 4))
        most = (self._limit - self._beside) / self._factor
        if most <= 0:
            return None
        found = self.allocator.of_size(most * (1 - AIM))
        short = found is not None and found.step == LEAST_STEP and found.stored < most * (1 - NEAR)
        return None if short else found

    def accepts(self, plan: Plan, size: int, outcome: Outcome) -> bool:
        """Whether an output meets the goal, closely enough; if not, learn from it. `plan`: with its true sizes."""
        if not self.allocator.sampled:
            return True
        assert self._last is not None
        if self.goal.kind == "min_sqnr":
            lossy = [tensor for tensor in plan.tensors if tensor.lossy and not tensor.tie]
            sums = [slab for tensor in lossy for slab in outcome.sums.get(tensor.spec.name, [])]
            errors = Errors.of(sum(tensor.spec.size for tensor in lossy), sums)
            lost = float(errors.sums[1] / errors.sums[0]) if errors.sums[0] else 0.0
            most = 10 ** (-self.goal.value / 10)
            met, near = lost <= most, lost >= most * (1 - NEAR_LOSS)
            self._factor = lost / self._last.total_loss if self._last.total_loss and lost else 1.0
        else:
            stored = _stored(plan)
            self.measure(plan, size)
            reached = stored + self._beside
            met, near = reached <= self._limit, reached >= self._limit * (1 - NEAR)
            self._factor = stored / max(self._last.stored, 1)
        self._tried[self._last.step] = met
        return met and (near or self._is_final)

    def _nearest(self) -> str:
        """Say what can be reached."""
        coarsest, finest = self.allocator.coarsest(), self.allocator.finest()
        if self.goal.kind == "min_sqnr":
            return (
                f"--min-sqnr {self.goal.value:g} is more than the finest step keeps; the most is "
                f"{finest.sqnr_db:.1f} dB, or all with --lossless"
            )
        least, most = ((each.stored * self._factor + self._beside) for each in (coarsest, finest))
        small = self._limit < (least + most) / 2
        reachable = least if small else most
        if self.goal.kind == "target_size":
            text = f"{reachable:,.0f} bytes ({size_text(reachable)})"
        elif self.goal.kind == "ratio":
            text = f"{self.source.file.size / reachable:.4g}x"
        else:
            text = f"{8 * reachable / self._weights:.3g} bits a weight"
        asked = f"--{self.goal.kind.replace('_', '-')} {self.goal.value:g}"
        if small:
            return f"{asked} cannot be reached: the nearest is {text}, where a tensor falls to 3 dB"
        return f"{asked} is more than the finest step takes; the nearest is {text}, and --lossless keeps every bit"


def _stored(plan: Plan) -> int:
    """Bytes of the tensors that the step changes, and of their tables."""
    found = sum(tensor.bytes_after for tensor in plan.tensors if isinstance(tensor.scheme, Ecq))
    return found + table_bytes(plan.tables)
