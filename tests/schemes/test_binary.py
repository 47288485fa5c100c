"""Binary against mean magnitudes, summed exactly, and against the alternation written with loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given

from modelzip_cli.errors import BadOption
from modelzip_cli.kernels.widen import rounded
from modelzip_cli.schemes import parse_scheme
from modelzip_cli.tensors import BF16
from tests.strategies import WEIGHTS, any_weight, fit, restored, sqnr_db


def mean_magnitude(weights: np.ndarray) -> float:
    return math.fsum(abs(w) for w in weights.reshape(-1).tolist()) / weights.size


@given(weight=any_weight(min_side=1))
def test_the_scale_of_a_row_is_its_mean_magnitude(weight):
    scale = fit(parse_scheme("binary"), weight)["scale"]
    np.testing.assert_allclose(scale[:, 0], [mean_magnitude(row) for row in weight], rtol=2**-23, atol=2**-149)


@given(weight=any_weight(min_side=1))
def test_the_scale_of_a_tensor_is_its_mean_magnitude(weight):
    scale = fit(parse_scheme("binary-tensor"), weight)["scale"]
    np.testing.assert_allclose(scale, [[mean_magnitude(weight)]], rtol=2**-23, atol=2**-149)


@given(weight=any_weight(min_side=1))
def test_a_weight_becomes_the_scale_with_its_sign(weight):
    scale = fit(parse_scheme("binary"), weight)["scale"]
    assert (restored(parse_scheme("binary"), weight) == np.where(weight >= 0, scale, -scale)).all()


def test_the_mean_magnitude_is_the_scale_of_least_squared_error():
    weight = np.random.default_rng(3).standard_t(3, (4, 500)).astype(np.float32)
    params, scheme = fit(parse_scheme("binary"), weight), parse_scheme("binary")
    codes = scheme.encode(weight, params)

    def error(factor: float) -> float:
        decoded = scheme.decode(codes, {"scale": params["scale"] * np.float32(factor)})
        return float(np.square(decoded.astype(np.float64) - weight).sum())

    assert error(1) < min(error(0.99), error(1.01))


@pytest.mark.parametrize("size", [1, 7, 64, 300])
@pytest.mark.parametrize(
    "name", ["normal", "several groups", "heavy tails", "half zeros", "a row of zeros", "one column"]
)
def test_the_scale_of_a_group_is_its_mean_magnitude_as_bfloat16(name, size):
    weight = WEIGHTS[name]
    groups = [weight[:, start : start + size] for start in range(0, weight.shape[1], size)]
    means = np.array([[mean_magnitude(row) for row in group] for group in groups], np.float32).T
    assert (fit(parse_scheme(f"binary-g{size}"), weight)["scale"] == rounded(means, BF16)).all()


def two_terms(weights: list[float]) -> tuple[float, float]:
    """Scales of `-m2`: four times, the means of the magnitudes above and below the first scale are its new two levels.

    Only for weights that are not all of one magnitude.
    """
    magnitudes = [abs(w) for w in weights]
    scale, second = math.fsum(magnitudes) / len(magnitudes), 0.0
    for _ in range(4):
        above = [m for m in magnitudes if m > scale]
        below = [m for m in magnitudes if m <= scale]
        high, low = math.fsum(above) / len(above), math.fsum(below) / len(below)
        scale, second = (high + low) / 2, (high - low) / 2
    return scale, second


@pytest.mark.parametrize("name", ["normal", "several groups", "heavy tails", "half zeros", "skewed", "one row"])
def test_the_scales_of_two_terms_are_those_of_the_alternation(name):
    weight = WEIGHTS[name]
    expected = [two_terms(row) for row in weight.tolist()]
    params = fit(parse_scheme("binary-m2"), weight)
    np.testing.assert_allclose(np.hstack([params["scale"], params["scale2"]]), expected, rtol=1e-6)
    whole = fit(parse_scheme("binary-m2-tensor"), weight)
    np.testing.assert_allclose(
        [whole["scale"][0, 0], whole["scale2"][0, 0]], two_terms(weight.reshape(-1).tolist()), 1e-6
    )
    groups = fit(parse_scheme("binary-m2-g64"), weight)
    expected = [two_terms(row) for row in weight[:, :64].tolist()]
    np.testing.assert_allclose(np.stack([groups["scale"][:, 0], groups["scale2"][:, 0]], axis=1), expected, rtol=2**-8)


@pytest.mark.parametrize("size", [16, 64, 100])
def test_a_weight_becomes_a_sum_of_two_terms_the_nearest_of_four_levels(size):
    weight = WEIGHTS["several groups"]
    scheme = parse_scheme(f"binary-m2-g{size}")
    params = fit(scheme, weight)
    codes, found = scheme.encode(weight, params), restored(scheme, weight)
    for row, column in np.ndindex(weight.shape):
        scale, second = (params[name][row, column // size] for name in ("scale", "scale2"))
        levels = [-scale - second, -scale + second, scale - second, scale + second]
        assert found[row, column] == levels[codes[row, column]]
        nearest = min(abs(float(level) - float(weight[row, column])) for level in levels)
        assert abs(float(found[row, column]) - float(weight[row, column])) <= nearest * (1 + 1e-6) + 1e-9


def errors(name: str, weight: np.ndarray) -> np.ndarray:
    difference = restored(parse_scheme(name), weight).astype(np.float64) - weight.astype(np.float64)
    return np.square(difference).sum(axis=1)


ROUNDING = {"": 1e-6, "-tensor": 1e-6, "-g16": 2**-7, "-g64": 2**-7}  # of a scale: what it can add to an error


@pytest.mark.parametrize("group", ROUNDING)
@pytest.mark.parametrize("name", [name for name, weight in WEIGHTS.items() if weight.size])
def test_two_terms_are_never_worse_than_one(name, group):
    """For weights whose double is finite: scales end there, so that no sum of two terms overflows."""
    weight = WEIGHTS[name].clip(-1.6e38, 1.6e38)
    one, two = errors(f"binary{group}", weight), errors(f"binary-m2{group}", weight)
    slack = ROUNDING[group] ** 2 * np.square(weight.astype(np.float64)).sum()
    assert two.sum() <= one.sum() * (1 + ROUNDING[group]) + slack


@given(weight=any_weight(min_side=1).map(lambda w: w.clip(-1e30, 1e30)))
@example(weight=np.array([[1, 1, 1, 1 + 2**-23]], np.float32))
def test_two_terms_are_never_worse_than_one_for_any_row(weight):
    energy = np.square(weight.astype(np.float64)).sum(axis=1)
    assert (errors("binary-m2", weight) <= errors("binary", weight) + 1e-6 * energy + 1e-44).all()


def test_weights_of_two_magnitudes_are_exact_with_two_terms():
    weight = np.array([[0.25, -0.75, 0.75, 0.25], [3, 3, -1, 1], [5, 5, -5, 5]], np.float32)
    assert (restored(parse_scheme("binary-m2"), weight) == weight).all()


@pytest.mark.parametrize("name", ["binary", "binary-m2", "binary-g64", "binary-m2-tensor"])
def test_a_restored_zero_is_positive(name):
    """Of a group of zeros, all others have levels that are not 0."""
    found = restored(parse_scheme(name), WEIGHTS["negative zeros"])
    assert found.tobytes() == bytes(found.nbytes)


def test_one_term_is_the_default_and_not_part_of_the_name():
    assert parse_scheme("binary-m1") == parse_scheme("binary")
    assert str(parse_scheme("binary-m1-g64")) == "binary-g64"


@pytest.mark.parametrize("name", ["binary-m3", "binary-m0", "binary-mse", "binary-m1-m2", "binary-g64-tensor"])
def test_what_binary_does_not_have_is_refused(name):
    with pytest.raises(BadOption):
        parse_scheme(name)


@pytest.mark.parametrize("sigma", [0.02, 1.0])
@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        *[(name, 4.3, 4.5) for name in ("binary", "binary-tensor", "binary-g64")],
        *[(name, 9.2, 9.7) for name in ("binary-m2", "binary-m2-tensor", "binary-m2-g64")],
    ],
)
def test_gaussian_weights_keep_the_quality_on_record(name, least, most, sigma):
    weight = np.random.default_rng(7).normal(0, sigma, (256, 1024)).astype(np.float32)
    assert least <= sqnr_db(parse_scheme(name), weight) <= most
