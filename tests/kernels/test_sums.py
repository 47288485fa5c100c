"""Sums in an order that no cut into pieces changes."""

import numpy as np
import pytest

from modelzip_cli.kernels.sums import SLAB_LANES, ErrorSums, error_sums


@pytest.mark.parametrize("cuts", [[], [SLAB_LANES], [64, 640, 3200, 3264]])
def test_the_sums_of_a_slab_in_pieces_are_those_of_the_whole(cuts):
    random = np.random.default_rng(0)
    weights = random.normal(0, 1, 3300).astype(np.float32)
    weights[1000] = 100
    restored = np.where(random.random(3300) < 0.3, np.float32(0), np.rint(weights * 8) / 8)
    found = ErrorSums()
    for weight, value in zip(np.split(weights, cuts), np.split(restored, cuts), strict=True):
        found.add(weight, value)
    assert found.sums.tobytes() == error_sums(weights, restored).tobytes()
