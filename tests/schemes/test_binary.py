"""Binary against the mean magnitude, summed exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given

from modelzip_cli.schemes import parse_scheme
from tests.strategies import any_weight, fit, restored, sqnr_db


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


@pytest.mark.parametrize("sigma", [0.02, 1.0])
@pytest.mark.parametrize("name", ["binary", "binary-tensor"])
def test_gaussian_weights_keep_4_4_db(name, sigma):
    weight = np.random.default_rng(7).normal(0, sigma, (256, 1024)).astype(np.float32)
    assert 4.3 <= sqnr_db(parse_scheme(name), weight) <= 4.5
