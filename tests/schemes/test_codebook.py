"""Codebooks against the best of all k-means, found by dynamic programming over the single weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelzip_cli.errors import BadOption
from modelzip_cli.schemes import parse_scheme
from modelzip_cli.schemes.codebook import Codebook
from tests.strategies import WEIGHTS, any_weight, fit, restored, sqnr_db, squared_error


def clusters(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.choice([-1, -0.2, 0.3, 0.9], size) + rng.normal(0, 0.05, size)


DRAW = {
    "Gaussian": lambda rng, size: rng.normal(0, 0.02, size),
    "Laplace": lambda rng, size: rng.laplace(0, 0.02, size),
    "uniform": lambda rng, size: rng.uniform(-1, 1, size),
    "t(3)": lambda rng, size: rng.standard_t(3, size),
    "one-sided": lambda rng, size: np.abs(rng.normal(0, 1, size)),
    "log-normal": lambda rng, size: rng.lognormal(0, 1, size),
    "four clusters": clusters,
    "four clusters and outliers": lambda rng, size: np.where(rng.random(size) < 0.02, 40, 1) * clusters(rng, size),
    "Gaussian and outliers": lambda rng, size: (
        rng.normal(0, 0.02, size) + (rng.random(size) < 0.01) * rng.normal(size=size)
    ),
    "Gaussian and one outlier": lambda rng, size: np.where(np.arange(size) == 7, 50, rng.normal(0, 1, size)),
}


def draw(name: str, size: int, seed: int = 0) -> np.ndarray:
    return DRAW[name](np.random.default_rng(seed), size).astype(np.float32).reshape(1, -1)


def least_error(weight: np.ndarray, levels: int) -> float:
    """The squared error of the best `levels` levels: of all ways to cut the sorted weights into that many runs."""
    values, counts = np.unique(weight.astype(np.float64), return_counts=True)
    n = len(values)
    total, first, second = (np.concatenate([[0], np.cumsum(counts * values**power)]) for power in (0, 1, 2))
    begin, end = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    size = np.maximum(total[end] - total[begin], 1)
    cost = second[end] - second[begin] - (first[end] - first[begin]) ** 2 / size
    cost = np.where(end > begin, np.maximum(cost, 0), np.where(end == begin, 0, np.inf))
    least = cost[0]
    for _ in range(levels - 1):
        least = (least[:, None] + cost).min(axis=0)
    return float(least[n])


def test_the_oracle_finds_what_trying_every_cut_finds():
    from itertools import combinations, pairwise

    values = np.sort(np.random.default_rng(1).standard_t(2, 9))
    cuts = [(0, *inner, 9) for inner in combinations(range(1, 9), 3)]
    errors = [sum(np.square(values[a:b] - values[a:b].mean()).sum() for a, b in pairwise(cut)) for cut in cuts]
    assert math.isclose(least_error(values, 4), min(errors), rel_tol=1e-9)


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_levels_are_within_0_1_db_of_the_best_there_are(name, bits):
    for seed, size in enumerate((150, 300, 600)):
        weight = draw(name, size, seed)
        off = 10 * math.log10(squared_error(Codebook(bits), weight) / least_error(weight, 2**bits))
        assert off < 0.1, (size, off)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_no_more_different_bfloat16_weights_than_levels_are_exact(bits):
    rng = np.random.default_rng(bits)
    values = np.unique((rng.standard_t(2, 2**bits).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32))
    weight = rng.choice(values, (40, 30))
    assert restored(Codebook(bits), weight).tobytes() == weight.tobytes()


BFLOAT16 = st.integers(0, 0xFFFF).filter(lambda high: high & 0x7F80 != 0x7F80).map(lambda high: high << 16)


@given(st.lists(BFLOAT16, min_size=1, max_size=8).flatmap(
    lambda bits: hnp.arrays(np.uint32, (5, 7), elements=st.sampled_from(bits))
))  # fmt: skip
def test_any_eight_bfloat16_weights_are_exact_with_three_bits(bits):
    weight = bits.view(np.float32)
    if (weight == 0).any():
        weight = weight + np.float32(0)  # -0 and +0 are two bins, but one weight
    assert (restored(Codebook(3), weight) == weight).all()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("name", WEIGHTS)
def test_levels_ascend_and_lie_within_the_weights(name, bits):
    weight = WEIGHTS[name]
    levels = fit(Codebook(bits), weight)["codebook"]
    assert levels.shape == (1, 2**bits)
    assert (np.diff(levels[0].astype(np.float64)) >= 0).all()
    if weight.size:
        assert weight.min() <= levels.min() <= levels.max() <= weight.max()


@given(weight=any_weight(min_side=1), bits=st.integers(1, 8))
@example(weight=WEIGHTS["tiny beside huge"], bits=1)
def test_a_weight_becomes_the_nearest_level(weight, bits):
    levels = fit(Codebook(bits), weight)["codebook"][0].astype(np.float64)
    wide = weight.astype(np.float64)
    nearest = np.abs(wide[..., None] - levels).min(axis=-1)
    error = np.abs(restored(Codebook(bits), weight).astype(np.float64) - wide)
    assert (error <= nearest * (1 + 1e-6) + np.abs(wide) * 2**-22 + 2e-45).all()


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("name", DRAW)
def test_a_level_is_the_mean_of_its_weights(name, bits):
    """But for weights of the one bin in 65,536 in which the border between two levels lies."""
    weight = draw(name, 20_000)
    scheme = Codebook(bits)
    params = fit(scheme, weight)
    codes = scheme.encode(weight, params)
    spread = np.diff(params["codebook"][0]).min()
    for code, level in enumerate(params["codebook"][0]):
        mean = weight[codes == code].astype(np.float64).mean()
        assert abs(mean - level) <= 0.02 * spread + 0.002 * abs(level)


@pytest.mark.parametrize("bits", range(1, 9))
def test_zeros_stay_zero_where_they_are_most_of_their_level(bits):
    rng = np.random.default_rng(3)
    weight = (rng.normal(0.3, 1, (50, 60)) * (rng.random((50, 60)) < 0.2)).astype(np.float32)
    found = restored(Codebook(bits), weight)
    assert (found[weight == 0] == 0).all()
    assert not np.signbit(found[found == 0]).any()


def test_few_zeros_among_others_get_the_level_of_the_others():
    weight = np.random.default_rng(3).normal(0, 1, (50, 60)).astype(np.float32)
    weight[0, :5] = 0
    assert (restored(Codebook(2), weight)[0, :5] != 0).all()


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_the_order_of_the_weights_changes_no_level_by_more_than_a_rounding(bits):
    weight = WEIGHTS["several groups"]
    shuffled = np.random.default_rng(0).permutation(weight.reshape(-1)).reshape(weight.shape)
    levels, others = fit(Codebook(bits), weight)["codebook"], fit(Codebook(bits), shuffled)["codebook"]
    np.testing.assert_allclose(levels, others, rtol=1e-6)
    assert levels.tobytes() == fit(Codebook(bits), weight.copy())["codebook"].tobytes()


@pytest.mark.parametrize("name", ["codebook0", "codebook9", "codebook4-g64", "codebook4-mse"])
def test_what_a_codebook_does_not_have_is_refused(name):
    with pytest.raises(BadOption):
        parse_scheme(name)


LEAST_DB = {1: 4.35, 2: 9.2, 3: 14.5, 4: 19.9, 5: 25.5, 6: 31.3, 7: 37, 8: 42.5}


@pytest.mark.parametrize("sigma", [0.02, 1.0])
@pytest.mark.parametrize("bits", LEAST_DB)
def test_gaussian_weights_keep_the_quality_on_record(bits, sigma):
    weight = np.random.default_rng(7).normal(0, sigma, (256, 1024)).astype(np.float32)
    assert sqnr_db(Codebook(bits), weight) >= LEAST_DB[bits]
