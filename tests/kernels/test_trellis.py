"""The path through the trellis against all paths, and the points of the grid against their definition."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from modelzip_cli.kernels.trellis import PRICES, grid_points, trellis_path

NEXT = ((0, 2), (5, 7), (1, 3), (4, 6), (2, 0), (7, 5), (3, 1), (6, 4))  # by state and parity of k
STEP = np.float32(0.25)


def point_of(k: int, q: int) -> int:
    """The magnitude of the point that k stands for."""
    return 2 * k - q if k else 0


def price_of(k: int, q: int, prices: dict[str, int]) -> int:
    if k == 0:
        return prices[f"Z{q}"]
    m, r = divmod(point_of(k, q), 4)
    return prices[f"A{r}"] + min(prices[f"B{q}"] * m, 1200)


def cost_of(y: int, k: int, q: int, prices: dict[str, int]) -> int:
    """What it costs to code a magnitude of y / 32 steps as k."""
    away = min(y, 181) if k == 0 else y - 32 * point_of(k, q)
    return (away * away >> 3) + price_of(k, q, prices)


def least_cost(magnitudes: list[int], prices: list[dict[str, int]]) -> int:
    """Of all paths from state 0: every sequence of parities, the best k for each."""
    costs = []
    for parities in product((0, 1), repeat=len(magnitudes)):
        state, total = 0, 0
        for y, parity, price in zip(magnitudes, parities, prices, strict=True):
            allowed = [k for k in range(parity, max(8, y // 64 + 6), 2) if y or k == 0]
            total += min((cost_of(y, k, state & 1, price) for k in allowed), default=1 << 30)
            state = NEXT[state][parity]
        costs.append(total)
    return min(costs)


def cost_of_path(magnitudes: list[int], points: list[int], prices: list[dict[str, int]]) -> int:
    """Of one path; its points have to be those of its states."""
    state, total = 0, 0
    for y, n, price in zip(magnitudes, points, prices, strict=True):
        q = state & 1
        k = (abs(n) + q * (n != 0)) // 2
        assert point_of(k, q) == abs(n), f"{n} is no point of state {state}"
        total += cost_of(y, k, q, price)
        state = NEXT[state][k & 1]
    return total


def some_prices(random: np.random.Generator, steepest: int = 249) -> dict[str, int]:
    """Prices of a class: any, with the shift of the thresholds that follows from the slope."""
    found = {name: int(random.integers(0, 400)) for name in PRICES}
    for q in range(2):
        found[f"B{q}"] = int(random.integers(0, steepest + 1))
        found[f"D{q}"] = (found[f"B{q}"] + 16) // 32
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("spread", "steepest"), [(20, 249), (80, 249), (300, 130), (2000, 18)])
def test_no_path_costs_less_than_the_one_that_is_found(seed, spread, steepest):
    """Where no price is at its limit: beyond it the shift of the thresholds buys nothing."""
    random = np.random.default_rng(seed)
    length, lanes, classes = 7, 5, 3
    magnitudes = np.abs(np.rint(random.normal(0, spread, (length, lanes)))).astype(int)
    magnitudes[random.random(magnitudes.shape) < 0.1] = 0
    signs = random.choice([-1, 1], magnitudes.shape)
    prices = [[some_prices(random, steepest) for _ in range(lanes)] for _ in range(classes)]
    path_class = random.integers(0, classes, length).astype(np.int32)
    table = np.array([[[lane[name] for lane in row] for name in PRICES] for row in prices], np.int16)
    weights = (magnitudes * signs * (float(STEP) / 32)).astype(np.float32)
    points = trellis_path(weights, STEP, path_class, table)
    assert (points * signs >= 0).all()
    assert (points[magnitudes == 0] == 0).all()
    for lane in range(lanes):
        line, price = magnitudes[:, lane].tolist(), [prices[c][lane] for c in path_class]
        found = cost_of_path(line, points[:, lane].tolist(), price)
        assert found <= least_cost(line, price) + length  # a squared error is cut to a whole unit


def test_lanes_do_not_know_of_each_other():
    random = np.random.default_rng(9)
    weights = random.standard_normal((40, 300)).astype(np.float32)
    table = np.array([[list(some_prices(random).values())] * 300 for _ in range(2)], np.int16).transpose(0, 2, 1)
    path_class = random.integers(0, 2, 40).astype(np.int32)
    whole = trellis_path(weights, STEP, path_class, np.ascontiguousarray(table))
    for lanes in (slice(0, 1), slice(100, 230), slice(299, 300)):
        part = trellis_path(weights[:, lanes], STEP, path_class, np.ascontiguousarray(table[:, :, lanes]))
        assert np.array_equal(part, whole[:, lanes])


def test_a_long_path_keeps_to_the_points_of_its_states_and_near_the_weights():
    random = np.random.default_rng(10)
    magnitudes = np.abs(np.rint(random.standard_t(2, (1000, 3)) * 40)).astype(int)
    prices = some_prices(random)
    table = np.repeat(np.array([list(prices.values())], np.int16)[:, :, None], 3, axis=2)
    weights = (magnitudes * (float(STEP) / 32)).astype(np.float32)
    points = trellis_path(weights, STEP, np.zeros(1000, np.int32), table)
    for lane in range(3):
        cost_of_path(magnitudes[:, lane].tolist(), points[:, lane].tolist(), [prices] * 1000)
    assert np.abs(magnitudes / 32 - points).max() < 5


@pytest.mark.parametrize("run", [trellis_path, grid_points])
@pytest.mark.parametrize("steps", [511.4, 512.5, 5e3, 1e6 + 1, 3e8])
def test_a_weight_any_number_of_steps_away_has_a_point_there(run, steps):
    weights = np.random.default_rng(11).standard_normal((40, 6)).astype(np.float32)
    weights[[7, 8, 20, 39], [0, 0, 3, 5]] = np.array([1, -1, 1, -1]) * steps * float(STEP)
    names = len(PRICES) if run is trellis_path else 2
    prices = np.full((1, names, 6), 10, np.int16 if run is trellis_path else np.int32)
    points = run(weights, STEP, np.zeros(40, np.int32), prices)
    away = np.abs(points - weights.astype(np.float64) / float(STEP))
    assert (away <= 3 + np.abs(weights) / float(STEP) * 2.0**-23).all()
    assert points.dtype == (np.int32 if steps > 512 else np.int16)


def test_grid_points_are_zero_below_the_threshold_and_else_the_nearest_after_the_shift():
    random = np.random.default_rng(12)
    magnitudes = random.integers(0, 1500, (50, 8))
    signs = random.choice([-1, 1], magnitudes.shape)
    prices = np.stack([random.integers(1, 300, (3, 8)), random.integers(90, 129, (3, 8))], axis=1).astype(np.int32)
    path_class = random.integers(0, 3, 50).astype(np.int32)
    points = grid_points((magnitudes * signs * (float(STEP) / 256)).astype(np.float32), STEP, path_class, prices)
    for (i, j), y in np.ndenumerate(magnitudes):
        threshold, shift = prices[path_class[i], :, j].tolist()
        expected = 0 if y < threshold else max(1, (y + shift) // 256)
        assert points[i, j] == signs[i, j] * expected
