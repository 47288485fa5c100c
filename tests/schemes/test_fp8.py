"""FP8 against torch.float8_e4m3fn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from modelzip_cli.errors import BadOption
from modelzip_cli.schemes import parse_scheme
from tests.strategies import WEIGHTS, any_weight, fit, restored, sqnr_db

NAMES = ["fp8", "fp8-tensor"]
CODES = np.array([code for code in range(256) if code & 127 != 127], np.uint8)  # 127 and 255 are NaN
ONE = {"scale": np.ones((1, 1), np.float32)}


def values_by_torch(codes: np.ndarray) -> np.ndarray:
    return torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()


def codes_by_torch(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Of `w / scale`, cut to the ends of the type where the rounding of the scale has put it beyond."""
    ratio = (torch.from_numpy(weight) / torch.from_numpy(np.where(scale == 0, np.float32(1), scale))).clamp(-448, 448)
    return ratio.to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def check(name: str, weight: np.ndarray) -> None:
    params = fit(parse_scheme(name), weight)
    assert (parse_scheme(name).encode(weight, params) == codes_by_torch(weight, params["scale"])).all()


@pytest.mark.parametrize("name", NAMES)
@given(weight=any_weight(min_side=1))
@example(weight=WEIGHTS["subnormal"])
@example(weight=WEIGHTS["tiny beside huge"])
@example(weight=WEIGHTS["ends of float32"])
@example(weight=WEIGHTS["negative zeros"])
def test_codes_are_the_bits_that_torch_rounds_to(name, weight):
    check(name, weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", WEIGHTS)
def test_codes_of_the_named_weights_are_the_bits_that_torch_rounds_to(name, case):
    check(name, WEIGHTS[case])


def test_every_float32_around_a_value_or_a_tie_is_rounded_as_torch_does():
    finite = np.sort(values_by_torch(CODES))
    ties = [(np.float64(a) + b) / 2 for a, b in pairwise(finite)]
    middle = np.concatenate([finite, np.array(ties, np.float32)])
    around = [middle]
    for direction in (-np.inf, np.inf):
        around.append(np.nextafter(middle, np.float32(direction)))
        around.append(np.nextafter(around[-1], np.float32(direction)))
    weight = np.concatenate(around).reshape(1, -1)
    expected = torch.from_numpy(weight.clip(-448, 448)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert (parse_scheme("fp8").encode(weight, ONE) == expected).all()


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=200))
def test_any_finite_float32_is_rounded_as_torch_does_and_never_to_nan(bits):
    weight = np.array([bits], np.uint32).view(np.float32)
    weight = np.where(np.isfinite(weight), weight, np.float32(0))
    expected = torch.from_numpy(weight.clip(-448, 448)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert (parse_scheme("fp8").encode(weight, ONE) == expected).all()


@pytest.mark.parametrize("weight", [448.01, 464, 464.1, 479.9, 480, 1e30, 3.4e38])
def test_what_is_beyond_the_largest_number_becomes_it(weight):
    block = np.array([[weight, -weight]], np.float32)
    assert parse_scheme("fp8").encode(block, ONE).tolist() == [[0x7E, 0xFE]]


def test_all_254_codes_decode_to_what_torch_says():
    decoded = parse_scheme("fp8").decode(CODES.reshape(1, -1), ONE)
    expected = values_by_torch(CODES) + np.float32(0)  # a zero is +0
    assert decoded.tobytes() == expected.reshape(1, -1).tobytes()
    assert len(CODES) == 254
    assert np.isfinite(decoded).all()


@given(weight=any_weight(min_side=1))
def test_decoding_multiplies_what_torch_widens_to_by_the_scale(weight):
    scheme = parse_scheme("fp8")
    params = fit(scheme, weight)
    codes = scheme.encode(weight, params)
    expected = values_by_torch(codes) * params["scale"] + np.float32(0)
    assert scheme.decode(codes, params).tobytes() == expected.tobytes()


@pytest.mark.parametrize(("name", "axis"), [("fp8", 1), ("fp8-tensor", (0, 1))])
@pytest.mark.parametrize("case", ["normal", "skewed", "heavy tails", "one sign", "negative constant"])
def test_the_scale_puts_the_largest_magnitude_at_448(case, name, axis):
    weight = WEIGHTS[case]
    scale = fit(parse_scheme(name), weight)["scale"]
    largest = np.abs(weight.astype(np.float64)).max(axis=axis, keepdims=True)
    np.testing.assert_allclose(scale, largest / 448, rtol=2**-23)
    np.testing.assert_allclose(
        np.abs(restored(parse_scheme(name), weight)).max(axis=axis, keepdims=True), largest, 1e-6
    )


def test_the_relative_error_is_at_most_a_16th_down_to_a_28672nd_of_the_largest_weight():
    weight = np.geomspace(1, 1 / 28_672, 5000).astype(np.float32).reshape(1, -1)
    assert (np.abs(restored(parse_scheme("fp8"), weight) - weight) <= weight / 16 * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["fp8-g64", "fp8-mse", "fp88", "fp8-channel-tensor"])
def test_what_fp8_does_not_have_is_refused(name):
    with pytest.raises(BadOption):
        parse_scheme(name)


@pytest.mark.parametrize("sigma", [0.02, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_gaussian_weights_keep_31_db(name, sigma):
    weight = np.random.default_rng(7).normal(0, sigma, (256, 1024)).astype(np.float32)
    assert sqnr_db(parse_scheme(name), weight) >= 31
