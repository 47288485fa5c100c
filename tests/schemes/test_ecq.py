"""ecq against the rates that it promises, against brute force, and its names, classes and paths."""

from __future__ import annotations

import numpy as np
import pytest

from modelzip_cli.coders.tables import TOTAL, Tables
from modelzip_cli.errors import BadOption
from modelzip_cli.schemes import parse_scheme
from modelzip_cli.schemes.ecq import CLASSES, Ecq, along_rows, low_bits, priors
from tests.entropy import first_tables, learnt, rate_and_sqnr
from tests.strategies import fit

GAUSSIAN = np.random.default_rng(0).standard_normal((512, 128)).astype(np.float32)

# Bits a weight and SQNR in dB of a million Gaussian weights, by step
PROMISED = {
    "ecq-s0.15": (3.849, 22.62),
    "ecq-s0.3": (2.902, 16.85),
    "ecq-s0.6": (1.989, 11.20),
    "ecq-s1": (1.365, 7.30),
    "ecq-s0.25-t1": (4.048, 22.82),
    "ecq-s0.5-t1": (3.040, 16.75),
    "ecq-s1-t1": (2.011, 10.55),
    "ecq-s1.6-t1": (1.291, 6.15),
}


@pytest.mark.parametrize(("name", "promised"), PROMISED.items(), ids=PROMISED)
def test_gaussian_weights_take_the_bits_that_are_promised_at_their_sqnr(name, promised):
    bits, db = rate_and_sqnr(parse_scheme(name), GAUSSIAN)
    their_bits, their_db = promised
    assert abs(db - their_db) < 0.8
    assert bits - (db - their_db) / 6.02 < their_bits + 0.02


def test_the_trellis_saves_an_eighth_of_a_bit_on_the_grid():
    trellis, grid = (rate_and_sqnr(Ecq(step, states), GAUSSIAN) for step, states in ((0.15, 8), (0.25, 1)))
    assert grid[0] - trellis[0] - (grid[1] - trellis[1]) / 6.02 > 0.125


def test_rows_and_columns_of_different_scale_are_coded_with_their_own_tables():
    random = np.random.default_rng(1)
    scales = 2.0 ** random.uniform(-3, 3, (400, 1)) * 2.0 ** random.uniform(-1, 1, 100)
    weight = (random.standard_normal((400, 100)) * scales).astype(np.float32)
    bits, db = rate_and_sqnr(Ecq(0.15), weight)
    one_scale = weight.reshape(-1)[np.random.default_rng(2).permutation(weight.size)].reshape(weight.shape)
    their_bits, their_db = rate_and_sqnr(Ecq(0.15), one_scale)
    assert bits - (db - their_db) / 6.02 < their_bits - 0.6


def test_the_grid_costs_hardly_more_than_the_best_point_for_each_weight():
    """The one threshold and the one shift of a class stand for a search over all points."""
    scheme = Ecq(0.5, 1)
    tables, points = learnt(scheme, GAUSSIAN)
    params = fit(scheme, GAUSSIAN)
    classes = params["row_class"] + params["column_class"].astype(int)
    y = GAUSSIAN.astype(np.float64) / float(params["step"][0, 0])
    k = np.arange(-12, 13)
    costs = (y[:, :, None] - k) ** 2 + 0.1 * tables.rates[classes][:, :, k + 127] / 256
    ours = np.take_along_axis(costs, (points[:, :, None] + 12).astype(int), axis=2).sum()
    assert ours < costs.min(axis=2).sum() * 1.005


def test_finer_steps_lose_less_and_take_more():
    found = [rate_and_sqnr(Ecq(step), GAUSSIAN[:300, :64], passes=2) for step in (0.1, 0.2, 0.4, 0.8)]
    assert found == sorted(found, reverse=True)


def test_fine_steps_store_low_bits_and_lose_nothing_by_it():
    bits, db = rate_and_sqnr(Ecq(0.01), GAUSSIAN, passes=2)
    assert low_bits(trellis=True)[fit(Ecq(0.01), GAUSSIAN)["row_class"].max()] > 1
    assert bits < db / 6.02 + 0.14


def test_pruned_weights_cost_less_than_a_mask_would():
    weight = GAUSSIAN * (np.random.default_rng(3).random(GAUSSIAN.shape) < 0.1)
    bits, db = rate_and_sqnr(Ecq(0.5), weight)
    entropy = -0.1 * np.log2(0.1) - 0.9 * np.log2(0.9)
    assert bits < entropy + 0.1 * (db / 6.02 + 0.1)


@pytest.mark.parametrize("states", [1, 8])
def test_every_class_begins_with_symmetric_counts_around_zero(states):
    counts = priors(states == 8)
    assert counts.shape == (CLASSES * (2 if states == 8 else 1), 256)
    whole = np.repeat(low_bits(states == 8), 2 if states == 8 else 1) == 0
    assert (counts[whole, :255] == counts[whole, 254::-1]).all()
    assert (counts[:, 255] == 0).all()
    spread = [(row * abs(np.arange(256) - 127)).sum() / row.sum() for row in counts[whole]][:: 2 if states == 8 else 1]
    assert spread == sorted(spread)


@pytest.mark.parametrize("states", [1, 8])
def test_prices_stay_within_what_16_bits_hold_whatever_the_tables(states):
    scheme = Ecq(0.1, states)
    random = np.random.default_rng(4)
    frequencies = np.zeros_like(first_tables(scheme).frequencies)
    for row in frequencies:
        used = random.permutation(255)[: random.integers(1, 200)]
        row[used], row[255] = 1, 1
        row[used[0]] += TOTAL - row.sum()
    prices = scheme.prices(Tables(frequencies).rates)
    if states == 8:
        assert prices.shape == (CLASSES, 10)
        assert ((prices[:, 4:6] >= 0) & (prices[:, 4:6] <= 249)).all()
        assert (np.abs(prices) <= 1200).all()
    else:
        assert prices.shape == (CLASSES, 2)
        assert (prices[:, 0] >= 1).all()
        assert ((prices[:, 1] >= 1) & (prices[:, 1] <= 128)).all()


@pytest.mark.parametrize(
    ("shape", "turned"),
    [((256, 9999), False), ((255, 256), True), ((255, 255), False), ((1, 2), True), ((9, 1), False)],
)
def test_short_slabs_have_their_paths_along_the_rows(shape, turned):
    assert along_rows(*shape) == turned


def test_the_step_is_a_share_of_the_root_mean_square():
    weight = np.array([[3, -4], [5, 0]], np.float32)
    assert fit(Ecq(0.5), weight)["step"][0, 0] == np.float32(0.5 * np.sqrt(50 / 4))


def test_classes_are_quarter_octaves_above_the_quietest_column_and_around_one_step():
    weight = np.ones((4, 3), np.float32) * np.array([1, 2, 4], np.float32) * np.array([[1], [1], [2], [8]])
    params = fit(Ecq(0.1), weight)
    assert (np.diff(params["column_class"][0].astype(int)) == [4, 4]).all()
    assert params["column_class"].min() == 0
    assert params["row_class"][0] == params["row_class"][1] < params["row_class"][2] < params["row_class"][3]


def test_a_row_of_zeros_among_weights_has_a_class():
    weight = GAUSSIAN[:20, :20].copy()
    weight[3] = 0
    weight[:, 5] = 0
    params = fit(Ecq(0.1), weight)
    assert params["row_class"][3, 0] == params["row_class"].min() >= 0


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("ecq", "ecq"),
        ("ecq-t8", "ecq"),
        ("ecq-t1", "ecq-t1"),
        ("ecq-s0.150", "ecq-s0.15"),
        ("ecq-t1-s2.", "ecq-s2-t1"),
        ("ecq-s.5-t8", None),
        ("ecq-s0.123456789", "ecq-s0.123457"),
        ("ecq-s4", "ecq-s4"),
        ("ecq-s0.01", "ecq-s0.01"),
    ],
)
def test_names_are_canonical(name, canonical):
    scheme = parse_scheme(name)
    assert parse_scheme(str(scheme)) == scheme
    assert str(scheme) == (canonical or "ecq-s0.5")


@pytest.mark.parametrize(
    "name",
    ["ecq-s", "ecq-s.", "ecq-s1.2.3", "ecq-s0", "ecq-s0.009", "ecq-s4.1", "ecq-s999999", "ecq-t2", "ecq-t", "ecq-t1.0"],
)
def test_what_is_no_step_or_no_number_of_states_is_refused(name):
    with pytest.raises(BadOption, match="ecq"):
        parse_scheme(name)
