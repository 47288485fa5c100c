"""N of every M: which neighbours they are, and which of them stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modelzip_cli.amounts import Pruning
from modelzip_cli.criteria.patterns import Pattern, inputs_of, parse_pattern
from modelzip_cli.errors import UsageError
from modelzip_cli.tensors import F32, TensorSpec
from tests.checkpoints import weights
from tests.criteria.memory import prune, zeros_of

PATTERNS = ["2:4", "1:4", "3:4", "1:2", "4:8", "2:16", "3:6", "10:40"]
SHAPES = {  # and the axis of the inputs
    (5, 240): 1,
    (2, 240, 3, 3): 1,
    (3, 240, 5): 1,
    (1, 240, 2, 2, 2): 1,
    (2, 3, 240): 2,  # fused experts: [experts, out, in]
    (1, 240): 1,
    (3, 1, 240): 2,
}


def largest_of(tensor: torch.Tensor, keep: int, group: int, axis: int) -> torch.Tensor:
    """The oracle: in each group, from the last to the first of equal ones, the largest stay."""
    moved = tensor.movedim(axis, -1)
    found = torch.zeros_like(moved)
    for place in np.ndindex(*moved.shape[:-1], moved.shape[-1] // group):
        index = *place[:-1], slice(place[-1] * group, (place[-1] + 1) * group)
        values = moved[index]
        kept = sorted(range(group), key=lambda at: (abs(float(values[at])), at))[-keep:]
        found[index][kept] = values[kept]
    return found.movedim(-1, axis)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_largest_of_each_group_along_the_inputs_stay(shape, pattern):
    keep, group = map(int, pattern.split(":"))
    tensor = weights(*shape, seed=3)
    found = prune({"w": tensor}, Pruning(pattern=pattern)).tensors["w"]
    assert torch.equal(found, largest_of(tensor, keep, group, SHAPES[shape]))
    assert zeros_of(found) == tensor.numel() * (group - keep) // group


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("pattern", ["2:4", "3:8"])
def test_of_equal_ones_the_first_go(kind, pattern):
    keep, group = map(int, pattern.split(":"))
    steps = torch.randint(-2, 3, (10, 32), generator=torch.Generator().manual_seed(0)) / 8
    found = prune({"w": steps.to(kind)}, Pruning(pattern=pattern)).tensors["w"]
    assert torch.equal(found, largest_of(steps.to(kind), keep, group, 1))


def test_groups_too_large_to_compare_are_sorted():
    tensor = weights(2, 1024, seed=4)
    found = prune({"w": tensor}, Pruning(pattern="7:64")).tensors["w"]
    assert torch.equal(found, largest_of(tensor, 7, 64, 1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inputs_are_those_of_the_layer(shape):
    assert inputs_of(TensorSpec("w", F32, shape))[0] == 240


def test_a_pattern_that_does_not_fit_names_the_tensor_and_what_to_type():
    tensors = {"a.weight": weights(8, 32), "b.weight": weights(8, 30), "c.weight": weights(8, 3, 3, 3)}
    with pytest.raises(
        UsageError, match=r"4 does not divide the 30 inputs of b\.weight and 1 more; .*'b\.weight=keep'"
    ):
        prune(tensors, Pruning(pattern="2:4"))
    assert prune(tensors, Pruning(pattern="2:4"), amounts={"b.weight": 0.5, "c.weight": 0.1}).masks


@pytest.mark.parametrize("text", ["2:4", " 2:4 ", "02:04"])
def test_a_pattern_is_read(text):
    assert parse_pattern(text) == Pattern(2, 4)
    assert (str(Pattern(2, 4)), Pattern(1, 4).sparsity) == ("2:4", 0.75)


@pytest.mark.parametrize(
    "text", ["4:4", "5:4", "0:4", "0:0", "", ":", "2", "2:", "2/4", "-1:4", "2:4:8", "2.0:4", "²:4"]
)
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(UsageError, match="--pattern"):
        parse_pattern(text)
