"""Integers against the arithmetic of torch, written out in float64, and against what the literature promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip_cli.schemes import parse_scheme
from modelzip_cli.tensors import BF16
from tests.strategies import WEIGHTS, any_weight, fit, restored, sqnr_db, squared_error

ORDINARY = {
    name: WEIGHTS[name] for name in ("normal", "several groups", "skewed", "heavy tails", "half zeros", "constant")
}


def gaussian(sigma: float, shape: tuple[int, int] = (256, 1024)) -> np.ndarray:
    return np.random.default_rng(7).normal(0, sigma, shape).astype(np.float32)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("weight", ORDINARY.values(), ids=ORDINARY)
def test_symmetric_channels_are_those_of_the_definition_in_float64(bits, weight):
    half = 2 ** (bits - 1)
    scheme = parse_scheme(f"int{bits}-channel")
    params = fit(scheme, weight)
    extreme = np.take_along_axis(weight, np.abs(weight).argmax(axis=1, keepdims=True), axis=1).astype(np.float64)
    scale = (extreme / -half).astype(np.float32)
    assert (np.abs(params["scale"]) == np.abs(scale)).all()

    codes = scheme.encode(weight, params)
    exact = weight.astype(np.float64) / params["scale"].astype(np.float64)
    expected = np.clip(np.rint(exact), -half, half - 1) + half
    near_tie = np.abs(np.abs(exact - np.floor(exact)) - 0.5) < 1e-5  # float32 may fall to the other side
    assert (codes == expected)[~near_tie].all()
    assert (np.abs(codes.astype(int) - expected) <= 1).all()


@pytest.mark.parametrize("weight", ORDINARY.values(), ids=ORDINARY)
def test_asymmetric_channels_decode_as_torch_quantizes_with_the_same_scale_and_zero_point(weight):
    scheme = parse_scheme("int8-asym")
    params = fit(scheme, weight)
    scale, zero_point = params["scale"][:, 0], params["zero_point"][:, 0]
    theirs = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(weight), torch.from_numpy(scale), torch.from_numpy(zero_point.astype(np.int32)), 0, 0, 255
    ).numpy()
    ours = restored(scheme, weight)
    step = scale[:, None]
    assert (np.abs(ours - theirs) <= 1.0001 * step).all()  # torch multiplies by 1 / scale: a tie may fall elsewhere
    assert (np.abs(ours - theirs) > step * 1e-4).mean() < 0.01


@pytest.mark.parametrize("weight", ORDINARY.values(), ids=ORDINARY)
def test_an_asymmetric_range_holds_zero_and_both_ends(weight):
    params = fit(parse_scheme("int8-asym"), weight)
    scale, zero_point = params["scale"].astype(np.float64), params["zero_point"].astype(np.float64)
    low, high = np.minimum(weight.min(axis=1), 0)[:, None], np.maximum(weight.max(axis=1), 0)[:, None]
    assert (-zero_point * scale <= low + 0.51 * scale).all()
    assert ((255 - zero_point) * scale >= high - 0.51 * scale).all()


@pytest.mark.parametrize("options", ["", "-g32", "-channel", "-tensor", "-asym", "-g64-asym"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_search_for_a_scale_never_makes_a_tensor_worse(bits, options):
    plain, searched = parse_scheme(f"int{bits}{options}"), parse_scheme(f"int{bits}{options}-mse")
    for name, weight in WEIGHTS.items():
        if "ends" not in name and weight.size:  # squares of the ends of float32 are compared by the next test
            assert squared_error(searched, weight) <= squared_error(plain, weight) * (1 + 1e-6), name


@given(weight=any_weight(min_side=1), bits=st.integers(2, 8), options=st.sampled_from(["-g32", "-channel", "-tensor"]))
def test_the_search_for_a_scale_never_makes_any_tensor_worse(weight, bits, options):
    weight = weight.clip(-1e15, 1e15)
    weight[np.abs(weight) < 1e-15] = 0
    plain, searched = parse_scheme(f"int{bits}{options}"), parse_scheme(f"int{bits}{options}-mse")
    assert squared_error(searched, weight) <= squared_error(plain, weight) * (1 + 1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_an_asymmetric_range_is_better_on_skewed_weights(bits):
    skewed = np.random.default_rng(1).exponential(1, (16, 256)).astype(np.float32)
    assert (
        sqnr_db(parse_scheme(f"int{bits}-channel-asym"), skewed)
        > sqnr_db(parse_scheme(f"int{bits}-channel"), skewed) + 2
    )


@pytest.mark.parametrize("bits", range(2, 9))
def test_smaller_groups_are_better(bits):
    weight = gaussian(0.02, (64, 1024))
    figures = [sqnr_db(parse_scheme(f"int{bits}-{part}"), weight) for part in ("tensor", "channel", "g128", "g32")]
    assert figures == sorted(figures)


def test_the_weight_of_largest_magnitude_of_a_group_is_restored_up_to_the_rounding_of_its_scale():
    weight = gaussian(1, (32, 256))
    for name, tolerance in (("int4-channel", 1e-6), ("int4-g64", 2**-8)):
        groups = weight.reshape(-1, 64) if "g64" in name else weight
        found = restored(parse_scheme(name), weight).reshape(groups.shape)
        place = np.abs(groups).argmax(axis=1, keepdims=True)
        largest = np.take_along_axis(groups, place, axis=1)
        assert (np.abs(np.take_along_axis(found, place, axis=1) - largest) <= np.abs(largest) * tolerance).all()


def test_group_scales_are_stored_in_bf16_and_those_of_rows_in_float32():
    assert parse_scheme("int4-g64").param_specs(130)["scale"].dtype == BF16
    assert parse_scheme("int4-g64").param_specs(130)["scale"].columns == 3
    assert parse_scheme("int8").param_specs(130)["scale"].dtype.id == "f32"


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("int", "int8"),
        ("int8", "int8"),
        ("int8-channel", "int8"),
        ("int4", "int4-g128"),
        ("int4-mse-asym-g32", "int4-g32-asym-mse"),
        ("int4-channel", "int4-channel"),
        ("int8-g128", "int8-g128"),
    ],
)
def test_names_have_one_canonical_form(name, canonical):
    assert str(parse_scheme(name)) == canonical


@pytest.mark.parametrize("sigma", [0.02, 1.0])
@pytest.mark.parametrize(
    ("name", "least"),
    [("int8", 40), ("int4-g128", 19.6), ("int4-g128-mse", 20.1), ("int4-g32", 21), ("int2-g64", 7.8)],
)
def test_gaussian_weights_keep_the_quality_on_record(name, least, sigma):
    assert sqnr_db(parse_scheme(name), gaussian(sigma)) >= least
