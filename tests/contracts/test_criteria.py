"""What every pruning criterion and every pattern promises. A new one is tested without a line here."""

from __future__ import annotations

import pkgutil
from dataclasses import FrozenInstanceError, is_dataclass
from importlib import import_module
from inspect import getdoc, isabstract

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip_cli import criteria
from modelzip_cli.amounts import Pruning
from modelzip_cli.criteria import CRITERIA
from modelzip_cli.criteria.base import Criterion, Place
from modelzip_cli.criteria.masks import Below, LargestOf, Mask
from modelzip_cli.criteria.patterns import Pattern
from modelzip_cli.errors import UsageError
from modelzip_cli.tensors import BF16, F16, F32, F64, DType, TensorSpec
from tests.checkpoints import same, weights
from tests.criteria.memory import Known, prune, zeros_of
from tests.strategies import WEIGHTS, any_weight

PATTERNS = [Pattern(2, 4), Pattern(1, 4), Pattern(1, 2), Pattern(4, 8), Pattern(3, 5)]
DTYPES = [F64, F32, F16, BF16]


def criterion(name: str, seed: int = 0) -> Criterion:
    """The criterion, with statistics of whatever it is asked about."""
    return criteria.criterion(name, seed, Known())


each_name = pytest.mark.parametrize("name", CRITERIA)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def spec_of(weight: np.ndarray, dtype: DType = F32, name: str = "w") -> TensorSpec:
    return TensorSpec(name, dtype, weight.shape)


def scores(by: Criterion, weight: np.ndarray, *, name: str = "w") -> np.ndarray:
    return by.scores(weight, Place(spec_of(weight, name=name), 0))


def masks_for(by: Criterion) -> list[Mask]:
    """Masks of each kind: nothing, something, ties cut in the middle, all; and every pattern."""
    half = int(np.float32(0.02).view(np.uint32))
    below = [Below(by, 0), Below(by, half), Below(by, 0, 77), Below(by, half, 301), Below(by, 1 << 31)]
    return [*below, *(LargestOf(by, pattern) for pattern in PATTERNS)]


def drawn(dtype: DType) -> torch.Tensor:
    """[24, 40] weights with ties, zeros of both signs and a constant row."""
    found = weights(24, 40, seed=5)
    found[3], found[4, ::2], found[5, ::3], found[6] = 0.02, 0.0, -0.0, found[7]
    return found.to(getattr(torch, str(dtype.torch)))


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    kinds = {2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
    return tensor.view(kinds[tensor.element_size()]).numpy()


def test_folder_and_table_hold_the_same_criteria():
    defined = set()
    for module in pkgutil.iter_modules(criteria.__path__, f"{criteria.__name__}."):
        for found in vars(import_module(module.name)).values():
            if isinstance(found, type) and issubclass(found, Criterion) and found.__module__ == module.name:
                defined |= set() if isabstract(found) else {found}
    assert defined == {type(criterion(name)) for name in CRITERIA}


@each_name
def test_a_criterion_is_a_frozen_dataclass_with_a_docstring_and_the_id_of_its_line_in_the_table(name):
    by = criterion(name, 3)
    assert (by.id, by.seed) == (name, 3)
    assert is_dataclass(by)
    assert type(by).__doc__
    assert len(getdoc(by).splitlines()[0]) < 120
    with pytest.raises(FrozenInstanceError):
        by.seed = 4


def test_an_unknown_criterion_is_answered_with_the_closest_name():
    with pytest.raises(UsageError, match="did you mean 'magnitude'"):
        criterion("magnitud")


@each_name
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_scores_have_the_shape_of_the_weights_and_are_0_where_those_are(name, weight):
    found = scores(criterion(name), weight)
    assert (found.shape, found.dtype) == (weight.shape, np.float32)
    assert np.isfinite(found).all()
    assert ((found == 0) == (weight == 0)).all()


@each_name
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_has_a_score_that_is_not(name, value):
    weight = WEIGHTS["normal"].copy()
    weight[2, 5] = value
    assert (np.isfinite(scores(criterion(name), weight)) == np.isfinite(weight)).all()


@each_name
@given(weight=any_weight(), cut=st.integers(0, 40))
def test_scores_do_not_depend_on_how_rows_are_cut(name, weight, cut):
    by, spec, cut = criterion(name, 1), spec_of(weight), min(cut, len(weight))
    parts = [by.scores(weight[:cut], Place(spec, 0)), by.scores(weight[cut:], Place(spec, cut))]
    assert np.concatenate(parts).tobytes() == by.scores(weight, Place(spec, 0)).tobytes()


@each_name
@each_dtype
def test_keys_order_weights_as_scores_do(name, dtype):
    tensor = drawn(dtype)
    spec, by = TensorSpec("w", dtype, tuple(tensor.shape)), criterion(name)
    keys = by.keys(bits_of(tensor), Place(spec, 0))
    ours = keys & keys.dtype.type(np.iinfo(keys.dtype).max >> 1)
    theirs = np.abs(by.scores(tensor.float().numpy(), Place(spec, 0)))
    assert keys.shape == tensor.shape
    order = np.argsort(ours, axis=None, kind="stable")
    assert (np.diff(theirs.reshape(-1)[order]) >= 0).all()
    assert ((ours == 0) == (theirs == 0)).all()


@each_name
@each_dtype
def test_any_cut_at_the_borders_of_rows_gives_the_same_bits(name, dtype):
    tensor = drawn(dtype)
    bits, spec = bits_of(tensor), TensorSpec("w", dtype, tuple(tensor.shape))
    for mask in masks_for(criterion(name)):
        whole = mask.apply(bits, Place(spec, 0))
        assert (whole.shape, whole.dtype) == (bits.shape, bits.dtype)
        for cuts in ([1], [5, 6, 20], list(range(1, 24))):
            rows = zip(np.split(bits, cuts), [0, *cuts], strict=True)
            parts = [mask.apply(part, Place(spec, first)) for part, first in rows]
            assert np.concatenate(parts).tobytes() == whole.tobytes(), mask


@each_name
@each_dtype
def test_a_mask_keeps_bits_or_writes_0_and_changes_no_input(name, dtype):
    tensor = drawn(dtype)
    bits, spec = bits_of(tensor), TensorSpec("w", dtype, tuple(tensor.shape))
    before = bits.tobytes()
    for mask in masks_for(criterion(name)):
        found = mask.apply(bits, Place(spec, 0))
        assert ((found == bits) | (found == 0)).all()
    assert bits.tobytes() == before


ASKED = [
    {"sparsity": 0.37},
    {"sparsity": 0.9},
    {"sparsity": 0.37, "scope": "layer"},
    {"sparsity": 0.9, "scope": "global"},
    {"pattern": "2:4"},
]
LAYERWISE = [name for name in CRITERIA if criterion(name).changes_weights]


@pytest.mark.parametrize("name", LAYERWISE)
def test_what_takes_a_layer_at_a_time_has_no_global_threshold(name):
    with pytest.raises(UsageError, match="a layer at a time"):
        Pruning(sparsity=0.9, scope="global", criterion=name)


each_amount = pytest.mark.parametrize("asked", ASKED, ids=lambda asked: " ".join(map(str, asked.values())))


def model(dtype: DType = F32) -> dict[str, torch.Tensor]:
    kind = getattr(torch, str(dtype.torch))
    return {"a": drawn(dtype), "b": weights(16, 12, seed=6).to(kind), "c": weights(8, 4, 3, 3, seed=7).to(kind)}


@each_name
@each_dtype
@each_amount
def test_zeros_are_as_many_as_asked_and_pruning_again_changes_nothing(name, dtype, asked):
    if asked.get("scope") == "global" and name in LAYERWISE:
        return
    tensors, pruning = model(dtype), Pruning(**asked, criterion=name)
    found = prune(tensors, pruning)
    zeros = {each: zeros_of(tensor) for each, tensor in found.tensors.items()}
    sizes = {each: tensor.numel() for each, tensor in tensors.items()}
    if pruning.is_global:
        assert sum(zeros.values()) == round(pruning.sparsity * sum(sizes.values()))
    elif pruning.pattern:
        assert all(zeros[each] >= size // 2 for each, size in sizes.items())
        assert zeros["b"] == sizes["b"] // 2
    else:
        assert zeros == {each: round(pruning.sparsity * size) for each, size in sizes.items()}
    again = prune(found.tensors, pruning)
    assert all(same(again.tensors[each], found.tensors[each]) for each in tensors)
    claimed = {each: mask.zeros for each, mask in found.masks.items()}
    assert pruning.pattern or claimed == zeros


@each_name
@each_amount
def test_order_and_threads_change_no_mask(name, asked):
    tensors = {f"{number}.{each}": tensor for number in range(5) for each, tensor in model().items()}
    if asked.get("scope") == "global" and name in LAYERWISE:
        return
    pruning = Pruning(**asked, criterion=name, seed=7 if name == "random" else 0)
    first = prune(tensors, pruning).masks
    assert prune(tensors, pruning, threads=3).masks == first
    if not pruning.is_global:  # equal scores of two tensors go in the order of the file
        assert prune(dict(reversed(tensors.items())), pruning).masks == first


DRAWING = [
    name for name in CRITERIA if not np.array_equal(*(scores(criterion(name, n), WEIGHTS["normal"]) for n in (0, 1)))
]


def test_random_is_the_criterion_that_draws():
    assert "random" in DRAWING


@pytest.mark.parametrize("name", DRAWING)
def test_another_seed_name_or_shape_gives_other_numbers(name):
    weight, by = WEIGHTS["normal"], criterion(name, 0)
    found = [
        scores(by, weight),
        scores(criterion(name, 1), weight),
        scores(by, weight, name="v"),
        scores(by, weight.reshape(-1, len(weight))).reshape(weight.shape),
    ]
    assert len({each.tobytes() for each in found}) == len(found)
    assert all(abs(np.corrcoef(found[0].reshape(-1), each.reshape(-1))[0, 1]) < 0.15 for each in found[1:])


@each_name
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@each_dtype
def test_a_pattern_keeps_the_largest_scores_of_each_group(pattern, name, dtype):
    tensor = drawn(dtype)[:, : 40 // pattern.group * pattern.group].contiguous()
    place = Place(TensorSpec("w", dtype, tuple(tensor.shape)), 0)
    by, bits = criterion(name), bits_of(tensor)
    kept = LargestOf(by, pattern).apply(bits, place).reshape(-1, pattern.group)
    found = np.abs(by.scores(tensor.float().numpy(), place)).reshape(-1, pattern.group)
    was_kept = (kept == bits.reshape(kept.shape)) & (found > 0)
    assert ((kept != 0).sum(axis=1) <= pattern.keep).all()
    least = np.sort(found, axis=1)[:, -pattern.keep]
    assert (found[was_kept] >= np.broadcast_to(least[:, None], found.shape)[was_kept]).all()
    assert (was_kept.sum(axis=1) == np.minimum((found > 0).sum(axis=1), pattern.keep)).all()
