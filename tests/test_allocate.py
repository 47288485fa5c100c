"""What a step is predicted to give is what it gives; goals are met; tables are shared where that is smaller."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip_cli import sampling
from modelzip_cli.allocate import (
    FARTHEST,
    LEAST_SENSITIVITY,
    LEAST_SQNR,
    LEAST_STEP,
    Allocation,
    Allocator,
    rounded,
    table_bytes,
    weighted,
)
from modelzip_cli.coders.rans import Rans, pack_vector
from modelzip_cli.sampling import COARSE, Sampled, sample_all
from modelzip_cli.schemes.ecq import Ecq
from modelzip_cli.tensors import F16, F32, TensorSpec
from tests.checkpoints import weights
from tests.entropy import allocator

RANDOM = np.random.default_rng(0)


def gaussian(rows: int, columns: int) -> np.ndarray:
    return RANDOM.standard_normal((rows, columns)).astype(np.float32)


WEIGHTS = {
    "gaussian": gaussian(320, 130),
    "scaled rows": gaussian(400, 100) * np.exp2(RANDOM.uniform(-3, 3, (400, 1))).astype(np.float32),
    "pruned": gaussian(300, 140) * (RANDOM.random((300, 140)) < 0.3).astype(np.float32),
    "along the rows": gaussian(80, 500),
    "two slabs": gaussian(1030, 40),
}
SMALL = gaussian(260, 70)


def seen(weights: dict[str, np.ndarray], scheme: Ecq | None = None) -> Allocator:
    return allocator({name: (scheme or Ecq(), weight) for name, weight in weights.items()})


@pytest.fixture(scope="module")
def all_kinds() -> Allocator:
    return seen(WEIGHTS)


def written(found: Allocation, name: str, weight: np.ndarray) -> tuple[int, float]:
    """The bytes of a tensor and its noise over signal, as a run with this allocation has them."""
    scheme, tensor, number = found.scheme[name], found.params[name], found.set_of[name]
    size, noise = 4 + len(pack_vector(tensor["column_class"][0])), 0.0
    for first, last in TensorSpec(name, F32, weight.shape).row_slabs(tall=True):
        block = weight[first:last]
        params = tensor | scheme.fit_rows(block, tensor)
        points = scheme.encode(block, params, found.prices[number])
        size += len(Rans().pack_points(points, scheme.contexts(params, *block.shape), found.tables[number]))
        noise += float(np.square(block - scheme.decode(points, params).astype(np.float64)).sum())
    return size, noise / float(np.square(weight.astype(np.float64)).sum())


@pytest.mark.parametrize("step", [0.12, 0.4, 1.1])
def test_sizes_and_errors_of_a_checkpoint_are_those_of_the_run(all_kinds, step):
    found = all_kinds.at(step)
    runs = {name: written(found, name, weight) for name, weight in WEIGHTS.items()}
    signal = {name: np.square(weight.astype(np.float64)).sum() for name, weight in WEIGHTS.items()}
    size = sum(size for size, _ in runs.values()) + table_bytes(found.tables)
    loss = sum(loss * signal[name] for name, (_, loss) in runs.items()) / sum(signal.values())
    assert abs(found.stored - size) < 0.025 * size
    assert abs(found.total_loss - loss) < 0.08 * loss
    for name, (size, loss) in runs.items():
        assert abs(found.bytes[name] - size) < 0.05 * size, name
        assert abs(found.loss[name] - loss) < 0.25 * loss, name
        assert found.signal[name] == pytest.approx(signal[name])


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_size_and_error_of_a_single_tensor_are_those_of_the_run(name):
    one = seen({name: WEIGHTS[name]})
    for step in (0.2, 0.6):
        found = one.at(step)
        size, loss = written(found, name, WEIGHTS[name])
        assert abs(found.stored - table_bytes(found.tables) - size) < 0.025 * size
        assert abs(found.total_loss - loss) < 0.08 * loss


def test_a_part_of_the_weights_tells_the_size_of_all(monkeypatch):
    monkeypatch.setattr(sampling, "SAMPLED", 60_000)
    sampled = seen(WEIGHTS)
    assert sum(tile.bits.size for each in sampled.sampled for tile in each.tiles) < 110_000
    found = sampled.at(0.25)
    for name, weight in WEIGHTS.items():
        size, loss = written(found, name, weight)
        assert abs(found.bytes[name] - size) < 0.03 * size, name
        assert abs(found.loss[name] - loss) < 0.12 * loss, name


def test_every_tensor_keeps_the_same_sqnr(all_kinds):
    losses = [all_kinds.at(0.12).loss[name] for name in ("gaussian", "along the rows", "two slabs", "scaled rows")]
    assert max(losses) < 1.25 * min(losses)


@pytest.mark.parametrize("bits", [1.8, 3.0, 4.7, 6.0])
def test_the_finest_step_of_a_size_is_found(bits):
    one = seen({"w": SMALL})
    most = bits * SMALL.size / 8
    found = one.of_size(most)
    assert most * 0.999 <= found.stored <= most
    assert found.step == rounded(found.step)


@pytest.mark.parametrize("db", [5, 12.5, 25, 40])
def test_the_coarsest_step_of_a_loss_is_found(db):
    found = seen({"w": SMALL}).of_loss(10 ** (-db / 10))
    assert db <= found.sqnr_db < db + 0.05


def test_goals_that_no_step_meets_have_no_answer():
    one = seen({"w": SMALL})
    assert one.of_size(SMALL.size * 0.3 / 8) is None
    assert one.of_size(0.1) is None
    assert one.of_loss(1e-9) is None
    assert one.of_size(4.0 * SMALL.size).step == LEAST_STEP


def test_the_coarsest_step_leaves_three_decibels_to_every_tensor():
    one = seen({"w": SMALL, "pruned": WEIGHTS["pruned"][:, :60]})
    coarsest = one.coarsest()
    assert coarsest.worst <= 1 / LEAST_SQNR
    assert one.at(rounded(coarsest.step * 1.02)).worst > 1 / LEAST_SQNR


def test_a_finer_step_stores_more_and_loses_less(all_kinds):
    found = [all_kinds.at(step) for step in (0.12, 0.4, 1.1)]
    assert [one.stored for one in found] == sorted((one.stored for one in found), reverse=True)
    assert [one.total_loss for one in found] == sorted(one.total_loss for one in found)


def test_tensors_alike_share_tables_and_one_that_differs_has_its_own():
    dense = {f"dense {number}": gaussian(300, 100) for number in range(3)}
    lone = (RANDOM.standard_normal((600, 100)) * (RANDOM.random((600, 100)) < 0.15)).astype(np.float32)
    found = seen(dense | {"pruned": lone}).at(0.2)
    assert len({found.set_of[name] for name in dense}) == 1
    assert found.set_of["pruned"] != found.set_of["dense 0"]
    assert len(found.tables) == len(found.prices) == 2
    alike = seen(dense).at(0.2)
    assert len(alike.tables) == 1
    assert found.bytes["dense 0"] < 1.01 * alike.bytes["dense 0"]


def test_the_grid_and_the_trellis_have_tables_of_their_own():
    found = allocator({"grid": (Ecq(states=1), SMALL), "trellis": (Ecq(), SMALL)}).at(0.3)
    grid, trellis = (found.tables[found.set_of[name]] for name in ("grid", "trellis"))
    assert 2 * len(grid.frequencies) == len(trellis.frequencies)


def test_a_step_of_its_own_is_not_searched_for():
    weights = {"fixed": (Ecq(0.5), SMALL), "free": (Ecq(), SMALL)}
    one = allocator(weights)
    for step in (0.1, 1.0):
        found = one.at(step)
        assert found.scheme["fixed"].step == 0.5
        assert found.scheme["free"].step == step


def test_only_tables_of_classes_that_weights_have_are_stored():
    found = seen({"w": SMALL}).at(0.2)
    scheme, params = found.scheme["w"], found.params["w"]
    classes = scheme.fit_rows(SMALL, params)["row_class"] + params["column_class"]
    assert found.tables[0].used == (2 * int(classes.min()), 2 * int(classes.max()) + 2)


def test_nothing_depends_on_the_order_of_tensors_or_on_earlier_steps():
    names = ["gaussian", "pruned", "along the rows"]
    one, other = (seen({name: WEIGHTS[name][:, :90] for name in order}) for order in (names, names[::-1]))
    one.at(0.9)
    for name in names:
        assert one.at(0.3).bytes[name] == other.at(0.3).bytes[name]
    assert one.at(0.3).tables[0].to_bytes() == other.at(0.3).tables[0].to_bytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_seen(bad):
    weight = SMALL.copy()
    weight[200, 3] = bad
    one = seen({"bad": weight, "good": SMALL})
    assert [each.finite for each in one.sampled] == [False, True]


def test_weights_at_the_end_of_their_dtype_do_not_fit():
    """A point above the largest number of f16 would be infinity: masks are filled with it."""
    mask = np.triu(np.full((64, 64), -65504, np.float32), 1)
    treated = [(TensorSpec(dtype.id, dtype, (64, 64)), Ecq(), None) for dtype in (F16, F32)]
    executor = ThreadPoolExecutor(1)
    one = Allocator(sample_all(treated, lambda spec, first, last: mask[first:last], executor), executor)
    assert one.at(0.1).fits == {"f16": False, "f32": True}


def test_zeros_and_a_single_weight_are_predicted_too():
    weights = {"zeros": np.zeros((300, 40), np.float32), "one": np.full((1, 1), 3.0, np.float32), "w": SMALL}
    found = seen(weights).at(0.2)
    assert found.loss["zeros"] == 0
    assert found.bytes["zeros"] < 400
    for name, weight in weights.items():
        if name != "zeros":
            size, _ = written(found, name, weight)
            assert abs(found.bytes[name] - size) < 0.005 * size + 16


class Sensitivities(dict[str, float]):
    """Statistics that know this of weights, and nothing else."""

    def has(self, spec: TensorSpec, kind: str) -> bool:
        return kind == "sensitivity" and spec.name in self

    def read(self, spec: TensorSpec, kind: str) -> np.ndarray:
        return np.float32([[self[spec.name]]])


def of_rms(name: str, rms: float, weights: int, step: float | None = None) -> Sampled:
    """A tensor of which only that is known."""
    return Sampled(
        TensorSpec(name, F32, (weights,)), Ecq(step), rms * rms * weights, np.zeros(1), np.zeros(weights), ()
    )


def factors(tensors: list[Sampled], known: dict[str, float], held: tuple[str, ...] = ()) -> dict[str, float]:
    found = weighted(tensors, Sensitivities(known), lambda name: name in held)
    assert [each.spec for each in found] == [each.spec for each in tensors]
    return {each.spec.name: each.factor for each in found}


@given(values=st.lists(st.tuples(st.floats(0.5, 2), st.floats(0.1, 3), st.integers(1, 5000)), min_size=1, max_size=6))
def test_steps_for_outputs_go_with_the_root_of_the_sensitivity_and_keep_their_mean(values):
    tensors = [of_rms(str(n), rms, weights) for n, (rms, _, weights) in enumerate(values)]
    found = factors(tensors, {str(n): sensitivity for n, (_, sensitivity, _) in enumerate(values)})
    steps = [found[str(n)] * rms * np.sqrt(sensitivity) for n, (rms, sensitivity, _) in enumerate(values)]
    np.testing.assert_allclose(steps, steps[0], rtol=1e-5)  # d^2 s is the same in all
    weights = [weights for *_, weights in values]
    assert np.average(np.log([found[str(n)] for n in range(len(values))]), weights=weights) == pytest.approx(
        0, abs=1e-6
    )


def test_steps_for_outputs_stay_near_the_common_one_and_never_grow_with_the_sensitivity():
    sensitivities = [0, 1e-12, 1e-3, 1, 1e3, 1e9]
    tensors = [of_rms(str(n), 1.0, 100) for n in range(6)]
    found = factors(tensors, {str(n): each for n, each in enumerate(sensitivities)})
    ordered = [found[str(n)] for n in range(6)]
    assert ordered == sorted(ordered, reverse=True)
    assert ordered[0] == ordered[1] == pytest.approx(found["2"])  # below a millionth of the largest: that
    assert max(ordered) <= np.exp(FARTHEST) * 1.0001
    assert min(ordered) == pytest.approx(np.exp(-FARTHEST))
    assert LEAST_SENSITIVITY == 1e-6


def test_tensors_that_are_held_unknown_empty_or_have_a_step_take_no_part():
    free = [of_rms("a", 1.0, 100), of_rms("b", 1.0, 100)]
    others = [
        of_rms("embed", 1.0, 5000),
        of_rms("unknown", 1.0, 500),
        of_rms("zeros", 0.0, 50),
        of_rms("fixed", 1.0, 700, step=0.1),
    ]
    known = {"a": 4.0, "b": 0.25, "embed": 1e-9, "zeros": 1.0, "fixed": 1e9}
    found = factors([*free, *others], known, held=("embed",))
    assert found == pytest.approx({"a": 0.5, "b": 2.0} | {each.spec.name: 1.0 for each in others})


@pytest.mark.parametrize("known", [{}, {"a": 0.0, "b": 0.0}])
def test_where_no_sensitivity_is_known_or_all_are_0_steps_are_common(known):
    assert set(factors([of_rms("a", 1.0, 10), of_rms("b", 2.0, 10)], known).values()) == {1.0}


def test_a_step_of_its_own_stays_within_reach():
    fine, coarse = (replace(of_rms("a", 1.0, 10), factor=factor) for factor in (1 / 8, 8.0))
    assert fine.own_step(0.4) == pytest.approx(0.05)
    assert fine.own_step(LEAST_STEP) == LEAST_STEP
    assert coarse.own_step(0.05) == pytest.approx(0.4)
    assert coarse.own_step(0.5) == COARSE
    assert coarse.own_step(2.0) == 2.0


def test_feedback_may_spend_more_of_the_sqnr_of_weights():
    plain = allocator({"w": (Ecq(), weights(300, 40).numpy())})
    fed = Allocator([replace(each, fed=True) for each in plain.sampled], plain.executor)
    assert plain.coarsest().total_loss <= 10**-0.3 < fed.coarsest().total_loss <= 10**-0.1
    assert fed.coarsest().step > plain.coarsest().step
