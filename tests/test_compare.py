"""Error figures against numpy, and what they are where a figure has no meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given

from modelzip_cli.compare import Errors
from modelzip_cli.kernels.sums import error_sums
from tests.strategies import any_weight

RANDOM = np.random.default_rng(5)
SOURCE = RANDOM.normal(0, 0.02, 5000).astype(np.float32)
RESTORED = (SOURCE + RANDOM.normal(0, 0.001, 5000)).astype(np.float32) * (RANDOM.random(5000) < 0.9)


def errors(source: np.ndarray, restored: np.ndarray, pieces: int = 1) -> Errors:
    source, restored = (np.asarray(a, np.float32).reshape(-1) for a in (source, restored))
    slabs = zip(np.array_split(source, pieces), np.array_split(restored, pieces), strict=True)
    return Errors.of(source.size, [error_sums(a, b) for a, b in slabs])


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_figures_are_those_of_the_definitions(pieces):
    found = errors(SOURCE, RESTORED, pieces)
    w, r = SOURCE.astype(np.float64), RESTORED.astype(np.float64)
    assert found.sqnr_db == pytest.approx(10 * np.log10((w**2).sum() / ((w - r) ** 2).sum()), rel=1e-12)
    assert found.cosine == pytest.approx(w @ r / np.linalg.norm(w) / np.linalg.norm(r), rel=1e-9)
    assert found.max_abs_error == pytest.approx(np.abs(w - r).max(), rel=1e-6)
    assert found.sparsity == (RESTORED == 0).mean()
    assert found.sparsity_before == 0
    assert found.finite
    assert not found.exact


def test_exact_weights_have_no_ratio_of_signal_to_noise():
    found = errors(SOURCE, SOURCE)
    assert (found.exact, found.sqnr_db, found.max_abs_error) == (True, None, 0)
    assert found.cosine == pytest.approx(1)


@pytest.mark.parametrize(("source", "restored"), [([], []), ([0, 0], [0, 0]), ([0, 0], [1, 2]), ([1, 2], [0, 0])])
def test_zero_and_no_weights_have_no_cosine(source, restored):
    assert errors(source, restored).cosine is None


def test_what_is_not_finite_is_seen():
    for bad in (np.nan, np.inf, -np.inf):
        assert not errors([1, bad], [1, 1]).finite
        assert not errors([1, 1], [1, bad]).finite


@given(any_weight(min_side=1))
@example(np.array([[1e-10, 2e-10], [3e-10, 1]], np.float32))
def test_the_cosine_lies_between_minus_one_and_one(weight):
    for restored in (weight, -weight, weight * np.float32(1e-6), weight * np.float32(0.1), np.sign(weight)):
        cosine = errors(weight, restored).cosine
        assert cosine is None or -1 <= round(cosine, 8) <= 1


@pytest.mark.parametrize("factor", [1e-3, 1e-6, 1e-9])
def test_the_cosine_does_not_depend_on_the_length_of_either(factor):
    found = errors(SOURCE, SOURCE * np.float32(factor)).cosine
    assert found == pytest.approx(1, abs=1e-6)
