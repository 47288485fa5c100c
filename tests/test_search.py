"""The step of a goal: found from predictions, corrected by what was written, never past the goal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modelzip_cli.allocate import LEAST_STEP, Allocation, Allocator, table_bytes
from modelzip_cli.errors import Unreachable
from modelzip_cli.kernels.sums import ERROR_SUMS
from modelzip_cli.recipe import Goal
from modelzip_cli.schemes.ecq import Ecq
from modelzip_cli.search import NEAR, NEAR_LOSS, Search

COUNT = 100_000  # weights
SOURCE_BYTES = 4 * COUNT
HEADER = 900  # bytes of an output beside what is treated


class Smooth(Allocator):
    """Predictions by formula: as many bits and as much noise as Gaussian weights have, nearly."""

    def _try(self, step: float) -> Allocation:
        size, loss = math.ceil(COUNT / 8 * math.log2(1 + 2.1 / step)), 1 / (1 + (2 / step) ** 2)
        of_w: list[Any] = [{"w": value} for value in (0, Ecq(step), {}, size, loss, 1.0, True)]
        return Allocation(step, (), (), *of_w, weights=COUNT)


def smooth() -> Smooth:
    sampled: Any = [SimpleNamespace(spec=SimpleNamespace(name="w", size=COUNT))]
    executor: Any = None
    return Smooth(sampled, executor)


ALLOCATOR = smooth()


@dataclass
class Run:
    """Outputs of which sizes or losses are `factor(step)` times what is predicted."""

    goal: Goal
    factor: Any = field(default=lambda step: 1.0)
    writes: int = 0

    def __post_init__(self) -> None:
        source: Any = SimpleNamespace(file=SimpleNamespace(size=SOURCE_BYTES, label="m.safetensors"))
        self.search = Search(self.goal, source, ALLOCATOR)

    def plan(self, step: float, factor: float) -> Any:
        found = ALLOCATOR.at(step)
        size = round(found.stored * factor) - table_bytes(found.tables)
        spec = SimpleNamespace(name="w", size=COUNT)
        tensor = SimpleNamespace(spec=spec, scheme=Ecq(step), tie=None, treated=True, lossy=True, bytes_after=size)
        return SimpleNamespace(tensors=[tensor], tables=found.tables)

    def size(self, plan: Any) -> int:
        return plan.tensors[0].bytes_after + table_bytes(plan.tables) + HEADER

    def until_accepted(self) -> tuple[int, float]:
        """The size of the output, and its SQNR in dB."""
        begun = self.plan(self.search.begin(), 1.0)
        self.search.measure(begun, self.size(begun))
        while True:
            step = self.search.step()
            factor = self.factor(step)
            plan, lost = self.plan(step, factor), ALLOCATOR.at(step).total_loss * factor
            outcome: Any = SimpleNamespace(sums={"w": [np.array([1.0, lost] + [0.0] * (len(ERROR_SUMS) - 2))]})
            self.writes += 1
            if self.search.accepts(plan, self.size(plan), outcome):
                return self.size(plan), -10 * np.log10(lost)


FACTORS = {
    "as predicted": lambda step: 1.0,
    "larger": lambda step: 1.03,
    "smaller": lambda step: 0.96,
    "worse at coarse steps": lambda step: 1 + step / 20,
    "better at coarse steps": lambda step: 1 - step / 20,
}
each_factor = pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)


@each_factor
@pytest.mark.parametrize("size", [20_000, 45_000, 80_000])
def test_an_output_meets_its_size_closely_whatever_was_predicted(size, factor):
    run = Run(Goal("target_size", size), factor)
    found, _ = run.until_accepted()
    assert size * (1 - NEAR) <= found <= size
    assert run.writes <= 4


@each_factor
def test_an_output_meets_its_ratio(factor):
    run = Run(Goal("ratio", 8), factor)
    found, _ = run.until_accepted()
    assert 8 <= SOURCE_BYTES / found <= 8 * (1 + 2 * NEAR)


@each_factor
def test_bits_a_weight_are_those_of_the_treated_tensors_alone(factor):
    found, _ = Run(Goal("bpw", 3), factor).until_accepted()
    assert 3 * (1 - NEAR) <= 8 * (found - HEADER) / COUNT <= 3


@each_factor
@pytest.mark.parametrize("db", [6, 20, 35])
def test_an_output_keeps_its_quality_and_hardly_more(db, factor):
    run = Run(Goal("min_sqnr", db), factor)
    _, found = run.until_accepted()
    assert db <= found <= db - 10 * np.log10(1 - NEAR_LOSS)
    assert run.writes <= 4


def test_what_was_predicted_well_is_written_once():
    for goal in (Goal("target_size", 40_000), Goal("bpw", 2.5), Goal("min_sqnr", 15)):
        run = Run(goal)
        run.until_accepted()
        assert run.writes == 1


def test_predictions_that_jump_end_with_an_output_that_meets_the_goal():
    """Where a step tells the size to a part in a hundred, no more than that is promised; but it comes to an end."""
    run = Run(Goal("target_size", 50_000), lambda step: 1 + (round(step * 1e5) * 7919 % 100 - 50) / 5000)
    found, _ = run.until_accepted()
    assert 50_000 * 0.97 <= found <= 50_000
    assert run.writes < 30


@pytest.mark.parametrize(
    ("goal", "text"),
    [
        (Goal("target_size", 5_000), "--target-size 5000 cannot be reached: the nearest is .* where a tensor falls to"),
        (Goal("target_size", 390_000), "--target-size 390000 is more than the finest step takes; .* --lossless"),
        (Goal("target_size", 300), "--target-size 300 cannot be reached"),
        (Goal("ratio", 500), "--ratio 500 cannot be reached: the nearest is .*x"),
        (Goal("bpw", 0.2), "--bpw 0.2 cannot be reached: the nearest is .* bits a weight"),
        (Goal("min_sqnr", 90), "--min-sqnr 90 is more than the finest step keeps; the most is 46.0 dB"),
    ],
)
def test_what_no_step_reaches_is_said_with_what_is_nearest(goal, text):
    with pytest.raises(Unreachable, match=rf"m\.safetensors: {text}"):
        Run(goal).until_accepted()


def test_the_nearest_size_that_is_named_can_be_reached():
    with pytest.raises(Unreachable) as refused:
        Run(Goal("target_size", 5_000)).until_accepted()
    nearest = int(str(refused.value).split("nearest is ")[1].split(" bytes")[0].replace(",", ""))
    found, _ = Run(Goal("target_size", nearest + 10)).until_accepted()
    assert found <= nearest + 10


def test_the_finest_step_is_offered():
    most = ALLOCATOR.at(LEAST_STEP).stored + HEADER
    found, _ = Run(Goal("target_size", most + 5)).until_accepted()
    assert found <= most + 5
