"""Criteria that look at what the model does: their scores on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from modelzip_cli.amounts import Pruning
from modelzip_cli.criteria import criterion
from modelzip_cli.criteria.base import Place
from modelzip_cli.errors import UsageError
from modelzip_cli.pruning import find_masks
from modelzip_cli.tensors import F32, TensorSpec
from tests.checkpoints import weights
from tests.criteria.memory import Memory
from tests.measured import statistics_file

WEIGHT = np.float32([[1, -2, 0], [-0.5, 4, 3]])
LEAST = 2.0**-149  # of a weight that does not matter but is none of those that are 0
SPEC = TensorSpec("w", F32, (2, 3))


@pytest.mark.parametrize(
    ("name", "kind", "values", "expected"),
    [
        ("taylor", "taylor", [[5, 0, 7], [1, 2, 3]], [[5, LEAST, 0], [1, 2, 3]]),
        ("fisher", "fisher", [[4, 9, 1], [16, 0, 0.25]], [[2, 6, 0], [2, LEAST, 1.5]]),
        ("wanda", "second_moment", [[4, 0.25, 9]], [[2, 1, 0], [1, 2, 9]]),
    ],
)
def test_scores_are_those_of_the_paper(tmp_path, name, kind, values, expected):
    statistics = statistics_file(tmp_path / "s.safetensors", {f"w:{kind}": np.float32(values)})
    by = criterion(name, statistics=statistics)
    assert np.abs(by.scores(WEIGHT, Place(SPEC, 0))).tolist() == expected
    assert np.abs(by.scores(WEIGHT[1:], Place(SPEC, 1))).tolist() == expected[1:]


@pytest.mark.parametrize("name", ["taylor", "fisher", "wanda", "sparsegpt"])
def test_without_statistics_what_is_needed_is_said(name):
    source = Memory({"w": weights(8, 16)})
    with pytest.raises(
        UsageError, match=rf"^--criterion {name} needs to know what the model does: --data.*statistics$"
    ):
        find_masks(source, [(source.specs["w"], None)], Pruning(0.5, criterion=name), None, allow_nonfinite=False)


@pytest.mark.parametrize(("name", "kind"), [("taylor", "taylor"), ("fisher", "fisher"), ("wanda", "second_moment")])
def test_a_tensor_without_its_statistic_is_named(tmp_path, name, kind):
    shape = (1, 16) if kind == "second_moment" else (8, 16)
    statistics = statistics_file(tmp_path / "s.safetensors", {f"w:{kind}": np.ones(shape, np.float32)})
    source = Memory({"w": weights(8, 16), "v": weights(8, 16)})
    chosen, asked = [(spec, None) for spec in source.specs.values()], Pruning(0.5, criterion=name)
    with pytest.raises(UsageError, match=rf"holds no {kind} of v: leave it as it is with --set 'v=keep'"):
        find_masks(source, chosen, asked, None, allow_nonfinite=False, statistics=statistics)
