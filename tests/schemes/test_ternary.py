"""Ternary against Ternary Weight Networks as the paper has it, and against the best of all thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given

from modelzip_cli.schemes import parse_scheme
from tests.strategies import WEIGHTS, any_weight, fit, restored, sqnr_db

DRAW = {
    "Gaussian": lambda rng, shape: rng.normal(0, 0.02, shape),
    "Laplace": lambda rng, shape: rng.laplace(0, 0.02, shape),
    "t(3)": lambda rng, shape: rng.standard_t(3, shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "half zeros": lambda rng, shape: rng.normal(0, 1, shape) * (rng.random(shape) < 0.5),
    "log-normal": lambda rng, shape: rng.lognormal(0, 1, shape) * rng.choice([-1, 1], shape),
}
NAMES = ["ternary", "ternary-tensor", "ternary-g64"]


def draw(name: str, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return DRAW[name](np.random.default_rng(seed), shape).astype(np.float32)


def error_of(weights: list[float], scale: float, threshold: float) -> float:
    """Squared error of `scale` times the sign of each weight whose magnitude is above `threshold`, 0 for the others."""
    return math.fsum((abs(w) - scale) ** 2 if abs(w) > threshold else w * w for w in weights)


def error_of_the_paper(weights: list[float]) -> float:
    """Equations 4 to 6: the threshold is 0.7 mean |w|, the scale the mean of the magnitudes above it."""
    threshold = 0.7 * math.fsum(map(abs, weights)) / len(weights)
    above = [abs(w) for w in weights if abs(w) > threshold]
    return error_of(weights, math.fsum(above) / len(above) if above else 0.0, threshold)


def least_error(weights: list[float]) -> float:
    """The best of all thresholds: the k largest magnitudes get their mean, for the best k."""
    magnitudes = sorted(map(abs, weights), reverse=True)
    energy = math.fsum(w * w for w in weights)
    saved, total = 0.0, 0.0
    for k, magnitude in enumerate(magnitudes, 1):
        total += magnitude
        saved = max(saved, total * total / k)
    return energy - saved


def errors(name: str, weight: np.ndarray) -> list[float]:
    """Squared error of each row."""
    difference = restored(parse_scheme(name), weight).astype(np.float64) - weight.astype(np.float64)
    return np.square(difference).sum(axis=1).tolist()


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("columns", [16, 64, 500])
def test_no_row_is_worse_than_with_the_formula_of_the_paper(name, columns):
    weight = draw(name, (60, columns))
    for found, row in zip(errors("ternary", weight), weight.tolist(), strict=True):
        assert found <= error_of_the_paper(row) * (1 + 1e-6)


@given(weight=any_weight(min_side=1, max_side=12).map(lambda w: w.clip(-1e30, 1e30)))
@example(weight=WEIGHTS["tiny beside huge"].clip(-1e30, 1e30))
def test_no_row_of_any_weights_is_worse_than_with_the_formula_of_the_paper(weight):
    for found, row in zip(errors("ternary", weight), weight.tolist(), strict=True):
        energy = math.fsum(w * w for w in row)  # what a scale, rounded to float32, can miss
        assert found <= error_of_the_paper(row) + 1e-6 * energy + 1e-44


@pytest.mark.parametrize("name", ["Gaussian", "Laplace", "t(3)"])
@pytest.mark.parametrize(
    ("group", "shape"), [("-g32", (200, 32)), ("-g64", (100, 64)), ("", (100, 128)), ("", (8, 2000))]
)
def test_all_groups_together_are_within_0_05_db_of_the_best_thresholds(name, group, shape):
    weight = draw(name, shape)
    best = math.fsum(least_error(row) for row in weight.tolist())
    assert 10 * math.log10(sum(errors(f"ternary{group}", weight)) / best) < 0.05


@pytest.mark.parametrize("name", ["Gaussian", "Laplace", "t(3)", "uniform"])
@pytest.mark.parametrize("shape", [(100, 64), (100, 128), (8, 2000)])
def test_no_group_is_more_than_0_3_db_off_the_best_threshold(name, shape):
    weight = draw(name, shape)
    for found, row in zip(errors("ternary", weight), weight.tolist(), strict=True):
        assert 10 * math.log10(found / least_error(row)) < 0.3


@pytest.mark.parametrize("group", ["", "-tensor", "-g16"])
@pytest.mark.parametrize("name", DRAW)
def test_the_scale_is_close_to_the_mean_of_the_magnitudes_that_it_stands_for(name, group):
    """Equal once the alternation has come to rest; after a few steps a weight or two may still be about to move."""
    weight = draw(name, (40, 160))
    scheme = parse_scheme(f"ternary{group}")
    params = fit(scheme, weight)
    codes = scheme.encode(weight, params)
    span = {"": 160, "-tensor": 160, "-g16": 16}[group]
    pieces = (-1,) if group == "-tensor" else (40, 160 // span, span)
    kept = (codes != 1).reshape(pieces)
    means = np.abs(weight).reshape(pieces).sum(axis=-1, where=kept) / kept.sum(axis=-1)
    np.testing.assert_allclose(params["scale"].reshape(-1), means.reshape(-1), rtol=0.1)
    assert np.median(np.abs(params["scale"].reshape(-1) / means.reshape(-1) - 1)) < 0.02


@given(weight=any_weight(min_side=1))
def test_weights_become_the_nearest_of_the_three_levels(weight):
    scheme = parse_scheme("ternary")
    params = fit(scheme, weight)
    scale = params["scale"].astype(np.float64)
    found = scheme.decode(scheme.encode(weight, params), params).astype(np.float64)
    assert np.isin(found, np.concatenate([scale, -scale, [[0]]]).reshape(-1)).all()
    nearest = np.minimum(np.abs(weight), np.abs(np.abs(weight.astype(np.float64)) - scale))
    assert (np.abs(found - weight) <= nearest * (1 + 1e-6) + 2e-45).all()


def test_weights_of_one_magnitude_and_zeros_are_exact():
    weight = np.array([[0.37, -0.37, 0, 0.37], [0, 0, -5, 0], [0, 0, 0, 0], [1e-40, 0, -1e-40, 0]], np.float32)
    assert restored(parse_scheme("ternary"), weight).tobytes() == (weight + np.float32(0)).tobytes()


@pytest.mark.parametrize("sigma", [0.02, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_gaussian_weights_keep_7_db(name, sigma):
    weight = np.random.default_rng(7).normal(0, sigma, (256, 1024)).astype(np.float32)
    assert sqnr_db(parse_scheme(name), weight) >= 7.15
