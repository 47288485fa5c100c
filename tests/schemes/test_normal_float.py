"""NF4 against its construction from quantiles, and against the table of bitsandbytes."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import example, given

from modelzip_cli.errors import BadOption
from modelzip_cli.kernels.widen import rounded
from modelzip_cli.schemes import parse_scheme
from modelzip_cli.schemes.normal_float import BORDERS, LEVELS
from modelzip_cli.tensors import BF16
from tests.strategies import WEIGHTS, any_weight, fit, restored, sqnr_db

# bitsandbytes, csrc/kernels.cu, dQuantizeNF4: the borders of its decision tree, lowest first
BITSANDBYTES_BORDERS = [
    *(-0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984),
    *(-0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668),
    *(0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784181118011),
]


def levels_by_quantiles() -> list[float]:
    """`create_normal_map` of bitsandbytes, after QLoRA's appendix E: 7 levels below 0, 8 above, all over the largest.

    The outermost quantile halfway between the outermost of 15 and of 16 equal steps, so that it is not infinite.
    """
    offset = (1 - 1 / (2 * 15) + 1 - 1 / (2 * 16)) / 2
    quantile = NormalDist().inv_cdf
    above = [quantile(offset + (0.5 - offset) * step / 8) for step in range(8)]
    below = [-quantile(offset + (0.5 - offset) * step / 7) for step in range(7)]
    largest = max(above)
    return sorted(level / largest for level in [*below, 0.0, *above])


def test_the_levels_are_quantiles_of_the_normal_distribution():
    np.testing.assert_allclose(LEVELS, levels_by_quantiles(), rtol=0, atol=1e-6)


def test_the_levels_are_16_and_hold_both_ends_and_zero_exactly():
    assert (len(LEVELS), LEVELS.dtype) == (16, np.float32)
    assert {-1.0, 0.0, 1.0} <= set(LEVELS.tolist())
    assert (np.diff(LEVELS) > 0).all()


def test_the_borders_are_those_of_bitsandbytes():
    np.testing.assert_allclose(BORDERS, BITSANDBYTES_BORDERS, rtol=0, atol=1e-6)


def test_codes_are_the_nearest_levels_by_trying_all():
    rng = np.random.default_rng(0)
    weight = np.concatenate([rng.uniform(-1, 1, (20, 640)), rng.normal(0, 0.3, (20, 640))]).astype(np.float32)
    scheme = parse_scheme("nf4")
    params = fit(scheme, weight)
    ratio = (weight / np.repeat(params["scale"], 64, axis=1)).astype(np.float64)
    distance = np.abs(ratio[..., None] - LEVELS.astype(np.float64))
    chosen = np.take_along_axis(distance, scheme.encode(weight, params)[..., None].astype(int), axis=-1)[..., 0]
    assert (chosen <= distance.min(axis=-1) + 1e-7).all()
    assert (scheme.encode(weight, params) == distance.argmin(axis=-1)).mean() > 0.9999


@given(weight=any_weight(min_side=1))
@example(weight=WEIGHTS["tiny beside huge"])
def test_a_weight_becomes_the_nearest_level_times_the_scale(weight):
    scheme = parse_scheme("nf4-g16")
    scale = np.repeat(fit(scheme, weight)["scale"], 16, axis=1)[:, : weight.shape[1]].astype(np.float64)
    wide = weight.astype(np.float64)
    nearest = np.abs(wide[..., None] - LEVELS.astype(np.float64) * scale[..., None]).min(axis=-1)
    error = np.abs(restored(scheme, weight).astype(np.float64) - wide)
    assert (error <= nearest + scale * 1e-6 + 2e-45).all()


@pytest.mark.parametrize("size", [1, 7, 64, 300])
@pytest.mark.parametrize("name", ["normal", "several groups", "heavy tails", "a row of zeros", "subnormal"])
def test_the_scale_is_the_largest_magnitude_of_the_group_as_bfloat16(name, size):
    weight = WEIGHTS[name]
    starts = range(0, weight.shape[1], size)
    largest = np.stack([np.abs(weight[:, start : start + size]).max(axis=1) for start in starts], axis=1)
    assert (fit(parse_scheme(f"nf4-g{size}"), weight)["scale"] == rounded(largest, BF16)).all()


def test_groups_of_64_are_the_default_and_not_part_of_the_name():
    assert parse_scheme("nf4-g64") == parse_scheme("nf4")
    assert str(parse_scheme("nf4-g64")) == "nf4"


@pytest.mark.parametrize("name", ["nf4-tensor", "nf4-channel", "nf4-mse", "nf4-g64-g32"])
def test_what_nf4_does_not_have_is_refused(name):
    with pytest.raises(BadOption):
        parse_scheme(name)


@pytest.mark.parametrize("sigma", [0.02, 1.0])
@pytest.mark.parametrize(("name", "least"), [("nf4-g32", 20.9), ("nf4", 20.5), ("nf4-g128", 20.2)])
def test_gaussian_weights_keep_the_quality_on_record(name, least, sigma):
    weight = np.random.default_rng(7).normal(0, sigma, (256, 1024)).astype(np.float32)
    assert sqnr_db(parse_scheme(name), weight) >= least
