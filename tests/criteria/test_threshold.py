"""Thresholds from counts of bits: exact totals, as sorting gives them, whatever the dtypes, ties and floors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn.utils import prune as torch_prune

from modelzip_cli.amounts import Pruning
from modelzip_cli.criteria.threshold import SCORES, Profile, shares
from modelzip_cli.errors import NonFinite, Unreachable
from modelzip_cli.kernels.pruning import count_high, count_low
from modelzip_cli.pruning import Masked
from tests.checkpoints import weights
from tests.criteria.memory import Memory, prune, zeros_of

TORCH = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")}


def keys() -> st.SearchStrategy[np.ndarray]:
    """Scores as the bits of float32, many of them in the same few bins and many of them equal."""
    near = st.builds(lambda high, low: high << 16 | low, st.sampled_from([0, 1, 0x3F80, 0x3F81]), st.integers(0, 3))
    return hnp.arrays(np.uint32, st.integers(0, 30), elements=near | st.integers(0, 0x7F7FFFFF))


def coarse(found: np.ndarray) -> Profile:
    return Profile.of(count_high(found), exact=False)


def refined(found: np.ndarray, *at: int) -> Profile:
    """The profile with the bins of some keys cut into single scores."""
    profile = coarse(found)
    for key in at:
        if key >> 16 << 16 in coarse(found).keys:
            profile = profile.refined(key, count_low(found, key >> 16))
    return profile


def single(found: np.ndarray) -> Profile:
    """The profile with all bins refined."""
    return refined(found, *(int(high) << 16 for high in np.unique(found >> np.uint32(16))))


@given(found=keys())
def test_a_refined_profile_counts_single_scores(found):
    used, counts = np.unique(found, return_counts=True)
    profile = single(found)
    assert profile.keys.tolist() == used.tolist()
    assert profile.counts.tolist() == counts.tolist()
    assert profile.weights == coarse(found).weights == len(found)


@given(found=keys(), at=st.integers(0, 29))
def test_refining_a_bin_again_changes_nothing(found, at):
    key = int(found[at % len(found)]) if len(found) else 0
    once, twice = refined(found, key), refined(found, key, key)
    assert (once.keys.tolist(), once.counts.tolist()) == (twice.keys.tolist(), twice.counts.tolist())


@given(found=keys(), zeros=st.integers(0, 40))
def test_a_place_is_that_of_sorted_scores(found, zeros):
    key, below, tied = single(found).place(zeros)
    in_order = np.sort(found)
    if zeros >= len(found):
        assert (key, below, tied) == (SCORES, zeros, 0)
    else:
        assert key == in_order[zeros]
        assert below == (found < key).sum()
        assert tied == (found == key).sum()


@given(found=keys(), key=st.integers(0, 0x7F7FFFFF))
def test_scores_below_a_key_are_counted_once_its_bin_is_refined(found, key):
    assert refined(found, key).below(key) == (found < key).sum()


def shared_by_sorting(tensors: list[np.ndarray], most: list[int], zeros: int) -> list[int]:
    """The lowest scores of all, the first tensors first where they are equal, none from a tensor that has its most."""
    order = sorted((int(key), place) for place, found in enumerate(tensors) for key in found)
    taken = [0] * len(tensors)
    for _, place in order:
        if sum(taken) < zeros and taken[place] < most[place]:
            taken[place] += 1
    return taken


@given(
    tensors=st.lists(keys(), max_size=5),
    share=st.floats(0, 1),
    floors=st.lists(st.floats(0, 1), min_size=5, max_size=5),
)
def test_one_threshold_shares_zeros_as_sorting_does_with_floors(tensors, share, floors):
    most = [int(floor * len(found)) for floor, found in zip(floors, tensors, strict=False)]
    zeros = round(share * sum(most))
    _, found = shares([single(each) for each in tensors], most, zeros)
    assert found == shared_by_sorting(tensors, most, zeros)
    assert all(each <= top for each, top in zip(found, most, strict=True))
    assert sum(found) == zeros


@given(
    tensors=st.lists(keys(), min_size=1, max_size=5),
    exact=st.lists(st.booleans(), min_size=5, max_size=5),
    share=st.floats(0, 1),
)
def test_profiles_of_which_some_are_coarse_share_exactly_as_many(tensors, exact, share):
    profiles = [single(each) if fine else coarse(each) for fine, each in zip(exact, tensors, strict=False)]
    most = [len(each) for each in tensors]
    zeros = round(share * sum(most))
    key, found = shares(profiles, most, zeros)
    assert sum(found) == zeros
    assert all(0 <= each <= top for each, top in zip(found, most, strict=True))
    for each, taken in zip(tensors, found, strict=True):  # wrong by no more than the scores of one bin
        high = key >> 16
        assert (each >> np.uint32(16) < high).sum() <= taken <= (each >> np.uint32(16) <= high).sum()


def test_more_zeros_than_all_may_have_are_a_mistake_of_ours():
    with pytest.raises(ValueError, match="more zeros"):
        shares([coarse(np.arange(3, dtype=np.uint32))], [2], 3)


# Whole checkpoints


def tied(*shape: int, seed: int, levels: int) -> torch.Tensor:
    """Weights of few different magnitudes, both signs and zeros among them."""
    steps = torch.randint(-levels, levels + 1, shape, generator=torch.Generator().manual_seed(seed))
    return steps / 16


MIXES = {
    **{name: {"a": weights(40, 50).to(kind), "b": weights(30, 20, seed=1).to(kind)} for name, kind in TORCH.items()},
    **{f"{name}, ties": {"a": tied(40, 50, seed=2, levels=5).to(kind)} for name, kind in TORCH.items()},
    "every dtype": {name: weights(17, 23, seed=3).to(kind) for name, kind in TORCH.items()},
    "every dtype, ties": {name: tied(17, 23, seed=4, levels=9).to(kind) for name, kind in TORCH.items()},
    "scales": {str(n): weights(20, 20, seed=n) * 10.0 ** (n - 4) for n in range(8)},
    "many equal": {"a": torch.full((30, 30), 0.5), "b": torch.full((20, 20), -0.5), "c": weights(9, 9)},
}
SPARSITIES = [0.0, 0.1, 0.25, 0.5, 0.7, 0.875, 0.93]
each_mix = pytest.mark.parametrize("mix", MIXES)


@each_mix
def test_a_layer_has_exactly_round_of_share_times_size(mix):
    for sparsity in SPARSITIES:
        tensors = MIXES[mix]
        found = prune(tensors, Pruning(sparsity=sparsity, scope="layer")).tensors
        for name, tensor in tensors.items():
            assert zeros_of(found[name]) == max(round(sparsity * tensor.numel()), zeros_of(tensor))


@each_mix
def test_all_layers_together_have_exactly_round_of_share_times_size(mix):
    for sparsity in SPARSITIES:
        tensors = MIXES[mix]
        size = sum(tensor.numel() for tensor in tensors.values())
        for min_keep in (None, 0.05):
            found = prune(tensors, Pruning(sparsity=sparsity, min_keep=min_keep))
            zeros = {name: zeros_of(tensor) for name, tensor in found.tensors.items()}
            before = sum(zeros_of(tensor) for tensor in tensors.values())
            assert sum(zeros.values()) == max(round(sparsity * size), before)
            assert {name: mask.zeros for name, mask in found.masks.items()} == zeros
            for name, tensor in tensors.items():
                floor = math.ceil((0.02 if min_keep is None else min_keep) * tensor.numel())
                assert tensor.numel() - zeros[name] >= floor


@pytest.mark.parametrize(("size", "zeros"), [(2, 1), (10, 5), (5, 2), (7, 4), (3, 2), (1, 0), (9, 4), (11, 6)])
def test_halves_go_to_the_even_number(size, zeros):
    tensor = torch.arange(1.0, size + 1).reshape(1, size)
    assert round(0.5 * size) == zeros
    assert zeros_of(prune({"w": tensor}, Pruning(sparsity=0.5, scope="layer")).tensors["w"]) == zeros


def distinct(seed: int, *shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """float32 weights of which no two have the same magnitude."""
    size = sum(math.prod(shape) for shape in shapes)
    random = np.random.default_rng(seed)
    bits = random.choice(1 << 23, size, replace=False) * 7 + 0x3A000000
    signed = (bits | random.integers(0, 2, size) << 31).astype(np.uint32).view(np.float32)
    parts = torch.from_numpy(signed).split([math.prod(shape) for shape in shapes])
    return {str(place): part.reshape(shape) for place, (part, shape) in enumerate(zip(parts, shapes, strict=True))}


def modules(tensors: dict[str, torch.Tensor]) -> list[tuple[torch.nn.Module, str]]:
    found = []
    for tensor in tensors.values():
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(tensor.clone())
        found.append((module, "weight"))
    return found


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_layers_are_those_of_torch(sparsity):
    tensors = distinct(0, (30, 40), (16, 8, 3, 3), (7, 9))
    found = prune(tensors, Pruning(sparsity=sparsity, scope="layer")).tensors
    for name, (module, _) in zip(tensors, modules(tensors), strict=True):
        torch_prune.l1_unstructured(module, "weight", amount=sparsity)
        assert torch.equal(found[name], module.weight)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_one_threshold_for_all_is_that_of_torch(sparsity):
    tensors = distinct(1, (30, 40), (16, 8, 3, 3), (7, 9))
    found = prune(tensors, Pruning(sparsity=sparsity, min_keep=0.0)).tensors
    theirs = modules(tensors)
    torch_prune.global_unstructured(theirs, torch_prune.L1Unstructured, amount=sparsity)
    for name, (module, _) in zip(tensors, theirs, strict=True):
        assert torch.equal(found[name], module.weight)


@pytest.mark.parametrize("kind", TORCH.values(), ids=TORCH)
@pytest.mark.parametrize("zeros", [1, 17, 500, 1199])
def test_the_threshold_lies_at_the_kth_value_of_torch(kind, zeros):
    tensor = weights(30, 40, seed=8).to(kind)
    mask = prune({"w": tensor}, Pruning(sparsity=zeros / 1200, scope="layer")).masks["w"].mask
    last, first_kept = (torch.kthvalue(tensor.float().abs().reshape(-1), k).values for k in (zeros, zeros + 1))
    assert last <= np.uint32(mask.key).view(np.float32) <= first_kept


@pytest.mark.parametrize("kind", TORCH.values(), ids=TORCH)
@pytest.mark.parametrize("threshold", [1e-6, 0.01, 0.0200001, 0.03125])
def test_what_is_below_a_threshold_goes(kind, threshold):
    tensor = weights(30, 40, seed=9)
    tensor[0, :9] = torch.tensor([0.03125, -0.03125, 0.0, -0.0, 0.01, -0.01, 0.02, 0.03124, 0.0313])
    tensor = tensor.to(kind)
    found = prune({"w": tensor}, Pruning(threshold=threshold))
    expected = torch.where(tensor.float().abs() < np.float32(threshold), torch.zeros((), dtype=kind), tensor)
    assert torch.equal(found.tensors["w"], expected)
    assert found.masks["w"].zeros == zeros_of(expected)


@given(
    parts=st.lists(
        hnp.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0.5, 0.501, 0.502, 0.503, -0.5, 1, 0])),
        min_size=1,
        max_size=4,
    ),
    sparsity=st.floats(0, 0.99),
    min_keep=st.sampled_from([0.0, 0.02, 0.1, 0.3]),
)
@example(  # what the first tensor may lose ends with a bin: the largest of its weights stays, though they share a bin
    parts=[np.float32([0.5, 0.503]), np.float32([0.501, 0.501, 1, 1])], sparsity=0.5, min_keep=0.0
)
@example(parts=[np.float32([1, 0.502]), np.float32([0.501, 0.503])], sparsity=0.25, min_keep=0.3)  # nothing was spared
@example(parts=[np.float32([0, 0.503]), np.float32([0.501, 0.502, 0.502])], sparsity=0.4, min_keep=0.3)
@example(parts=[np.float32([0.5, 1]), np.float32([1.5, 2])], sparsity=0.25, min_keep=0.3)
def test_floors_leave_tensors_their_largest_weights_and_the_total_is_exact(parts, sparsity, min_keep):
    tensors = {str(place): torch.from_numpy(part).reshape(1, -1) for place, part in enumerate(parts)}
    sizes = [len(part) for part in parts]
    magnitudes = [np.abs(part).view(np.uint32) for part in parts]
    most = [
        max(size - math.ceil(min_keep * size), int((part == 0).sum())) for size, part in zip(sizes, parts, strict=True)
    ]
    zeros = round(sparsity * sum(sizes))
    asked = Pruning(sparsity=sparsity, min_keep=min_keep)
    expected = shared_by_sorting(magnitudes, most, zeros) if zeros <= sum(most) else None
    emptied = expected and any(e == s and p.any() for e, s, p in zip(expected, sizes, parts, strict=True))
    if expected is None or emptied:
        with pytest.raises(Unreachable):
            prune(tensors, asked)
        return
    masks, found = (result := prune(tensors, asked)).masks, result.tensors
    last = max((np.sort(each)[n - 1] for each, n in zip(magnitudes, expected, strict=True) if n), default=0)
    assert [mask.floored for mask in masks.values()] == [
        bool((np.sort(each)[n:] < last).any()) for each, n in zip(magnitudes, expected, strict=True)
    ]
    for (name, tensor), each, part in zip(found.items(), expected, parts, strict=True):
        assert zeros_of(tensor) == max(each, int((part == 0).sum())), name
        kept = tensor.numpy().reshape(-1)
        lost = np.abs(part[kept == 0]).max(initial=0)
        assert lost <= np.abs(kept[kept != 0]).min(initial=np.inf)


def test_a_tensor_that_a_floor_spares_is_named_and_the_others_take_its_share():
    tensors = {"small": weights(50, 20) * 1e-3, "large": weights(50, 60, seed=1)}
    found = prune(tensors, Pruning(sparsity=0.5))
    assert [name for name, mask in found.masks.items() if mask.floored] == ["small"]
    zeros = {name: zeros_of(tensor) for name, tensor in found.tensors.items()}
    assert zeros == {"small": 980, "large": 1020}


def test_a_share_of_its_own_is_met_beside_the_others():
    tensors = {"a": weights(40, 52), "b": weights(40, 52, seed=1), "c": weights(40, 52, seed=2)}
    for asked in (Pruning(sparsity=0.5), Pruning(sparsity=0.5, scope="layer"), Pruning(pattern="2:4")):
        found = prune(tensors, asked, amounts={"b": 0.123, "c": 0.0}).tensors
        assert [zeros_of(tensor) for tensor in found.values()] == [1040, 256, 0]


@pytest.mark.parametrize("kind", TORCH.values(), ids=TORCH)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_by_name_and_place_or_left_alone(kind, value):
    tensors = {"a": weights(20, 30).to(kind), "b": weights(20, 30, seed=1).to(kind)}
    tensors["b"][7, 11] = value
    with pytest.raises(NonFinite, match=r"tensor b .*row 7, column 11"):
        prune(tensors, Pruning(sparsity=0.5))
    found = prune(tensors, Pruning(sparsity=0.5), allow_nonfinite=True)
    assert found.masks.keys() == {"a"}
    assert zeros_of(found.tensors["a"]) == 300


@pytest.mark.parametrize(
    "asked", [{"sparsity": 0.9999, "scope": "layer"}, {"sparsity": 0.9999, "min_keep": 0.0}, {"threshold": 1.0}]
)
def test_a_tensor_is_never_emptied(asked):
    with pytest.raises(Unreachable, match=r"empt.*--set 'w=keep'"):
        prune({"w": weights(30, 40)}, Pruning(**asked))


def test_less_than_the_floor_is_refused_with_the_most_that_can_be_had():
    with pytest.raises(Unreachable, match=r"--min-keep 0\.1 .*the most is 0\.9\b"):
        prune({"w": weights(30, 40)}, Pruning(sparsity=0.95, min_keep=0.1))


def test_tensors_of_zeros_and_without_rows_are_no_mistake():
    tensors = {"zeros": torch.zeros(20, 30), "none": torch.empty(0, 30), "w": weights(20, 30)}
    found = prune(tensors, Pruning(sparsity=0.5)).tensors
    assert zeros_of(found["w"]) == 0
    found = prune(tensors, Pruning(sparsity=0.5, scope="layer")).tensors
    assert zeros_of(found["w"]) == 300


@pytest.mark.parametrize(
    "asked", [{"sparsity": 0.6}, {"pattern": "1:3"}, {"sparsity": 0.6, "criterion": "random"}], ids=str
)
@given(ends=st.tuples(st.integers(0, 600), st.integers(0, 600)))
def test_any_piece_of_a_masked_tensor_can_be_read(asked, ends):
    tensors = {"w": tied(5, 6, 4, 5, seed=6, levels=3)}
    masked = Masked(Memory(tensors), prune(tensors, Pruning(**asked)).masks)
    start, stop = sorted(ends)
    whole = masked.read("w", 0, 600)
    assert masked.read("w", start, stop).tobytes() == whole[start:stop].tobytes()


def test_several_slabs_are_one_tensor(monkeypatch):
    tensors = {"a": tied(50, 20, seed=5, levels=3), "b": weights(50, 20), "c": weights(50, 20, seed=1).bfloat16()}
    for asked in (Pruning(sparsity=0.6), Pruning(sparsity=0.6, scope="layer"), Pruning(threshold=0.01)):
        whole = prune(tensors, asked).masks
        with monkeypatch.context() as patch:
            patch.setattr("modelzip_cli.tensors.SLAB_WEIGHTS", 60)
            assert prune(tensors, asked, threads=2).masks == whole
