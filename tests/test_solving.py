"""sparsegpt prunes as SparseGPT does, computed here in the plainest way; how many zeros there are is exact."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip_cli import solving
from modelzip_cli.amounts import Pruning
from modelzip_cli.criteria.base import Place
from modelzip_cli.criteria.masks import Below, LargestOf
from modelzip_cli.errors import BrokenCheckpoint, NonFinite, UsageError
from modelzip_cli.feedback import Feedback
from modelzip_cli.kernels.widen import widen
from modelzip_cli.pruning import Masks, find_masks
from modelzip_cli.solving import Solved
from modelzip_cli.statistics import StatisticsFile
from modelzip_cli.tensors import BF16, F16, F32, TensorSpec
from tests.checkpoints import weights
from tests.criteria.memory import Memory
from tests.measured import damped, hessian_of, inputs_of, output_error, statistics_file

HALF, TWO_OF_FOUR = Pruning(sparsity=0.5, criterion="sparsegpt"), Pruning(pattern="2:4", criterion="sparsegpt")


def drawn(rows: int, columns: int, seed: int = 0, zeros: float = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((rows, columns)).astype(np.float32)
    weight[random.random(weight.shape) < zeros] = 0
    return weight


def masks(
    tensors: Mapping[str, torch.Tensor],
    asked: Pruning,
    statistics: StatisticsFile,
    amounts: Mapping[str, float] | None = None,
) -> Masks:
    source = Memory(tensors)
    chosen = [(spec, (amounts or {}).get(name)) for name, spec in source.specs.items()]
    with ThreadPoolExecutor(1) as executor:
        return find_masks(source, chosen, asked, executor, allow_nonfinite=False, statistics=statistics)


def pruned(path: Path, weight: np.ndarray, hessian: np.ndarray, asked: Pruning) -> np.ndarray:
    """What becomes of one weight."""
    statistics = statistics_file(path / "s.safetensors", {"w:hessian": hessian})
    mask = masks({"w": torch.from_numpy(weight)}, asked, statistics)["w"].mask
    assert isinstance(mask, Solved)
    return widen(mask.apply(weight.view(np.uint32), Place(TensorSpec("w", F32, weight.shape), 0)), F32)


def plain_sparsegpt(weight: np.ndarray, hessian: np.ndarray, panel: int, keep: int | None, share: float) -> np.ndarray:
    """Algorithm 1 of arXiv:2301.00774, with the inverse of the Hessian computed anew after every column, in double
    precision: what algorithm 1 takes from its Cholesky factor are the diagonal and the first row of these."""
    inverse, left = np.linalg.inv(damped(hessian)), weight.astype(np.float64)
    columns = weight.shape[1]
    rest, scales = np.zeros((columns, columns)), np.zeros(columns)
    for at in range(columns):
        scales[at], rest[at] = inverse[at, at], inverse[at] / inverse[at, at]
        inverse = inverse - np.outer(inverse[:, at], rest[at])
    gone, done, count = np.zeros(weight.shape, bool), 0, 0
    for at in range(columns):
        if at % panel == 0:
            last = min(at + panel, columns)
            costs = left[:, at:last] ** 2 / scales[at:last]
            if keep is None:
                done += costs.size
                wanted, count = round(share * done) - count, round(share * done)
                gone[:, at:last].flat = np.argsort(np.argsort(costs, axis=None)) < wanted
            else:
                gone[:, at:last] = np.argsort(np.argsort(costs, axis=1), axis=1) < panel - keep
        error = np.where(gone[:, at], left[:, at], 0.0)
        left -= error[:, None] * rest[at]
    return np.where(gone, 0, left)


@pytest.mark.parametrize(("asked", "panel", "keep"), [(HALF, 128, None), (TWO_OF_FOUR, 4, 2)], ids=["share", "2:4"])
def test_weights_are_those_of_sparsegpt(tmp_path, asked, panel, keep):
    weight, hessian = drawn(12, 156), hessian_of(inputs_of(156, examples=500))
    found = pruned(tmp_path, weight, hessian, asked)
    expected = plain_sparsegpt(weight, hessian, panel, keep, 0.5)
    assert ((found == 0) != (expected == 0)).mean() < 0.01
    same_rows = ((found == 0) == (expected == 0)).all(axis=1)
    assert same_rows.sum() > 6
    np.testing.assert_allclose(found[same_rows], expected[same_rows], atol=1e-3)
    assert keep is None or ((found.reshape(-1, 4) == 0).sum(axis=1) == 2).all()


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 40),
    share=st.floats(0, 0.95),
    zeros=st.sampled_from([0, 0.3, 0.8]),
    panel=st.sampled_from([7, 128]),
)
def test_zeros_are_as_many_as_asked_those_of_the_source_among_them(rows, columns, share, zeros, panel):
    weight, fed = drawn(rows, columns, 1, zeros), Feedback.of(hessian_of(inputs_of(columns)), sort=False)
    before = int((weight == 0).sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solving, "PANEL", panel)
        found = solving.thinned(fed, weight, share)
    assert (found[weight == 0] == 0).all()
    zeros_now, wanted = int((found == 0).sum()), round(share * weight.size)
    assert zeros_now == max(wanted, before) if panel > columns else wanted <= zeros_now <= max(wanted, before) + before


def test_zeros_of_the_source_count_among_those_of_a_pattern(tmp_path):
    weight, hessian = drawn(30, 40, zeros=0.3), hessian_of(inputs_of(40))
    found = pruned(tmp_path, weight, hessian, TWO_OF_FOUR)
    before = (weight.reshape(-1, 4) == 0).sum(axis=1)
    assert (found[weight == 0] == 0).all()
    assert ((found.reshape(-1, 4) == 0).sum(axis=1) == np.maximum(before, 2)).all()


@pytest.mark.parametrize("asked", [HALF, TWO_OF_FOUR], ids=["share", "2:4"])
def test_outputs_change_less_than_with_magnitude(tmp_path, asked):
    weight, inputs = drawn(30, 60), inputs_of(60)
    found = pruned(tmp_path, weight, hessian_of(inputs), asked)
    magnitude = np.abs(weight)
    kept = magnitude >= np.median(magnitude)
    if asked.pattern:
        ranks = np.argsort(np.argsort(magnitude.reshape(-1, 4), axis=1), axis=1)
        kept = (ranks > 1).reshape(weight.shape)
    assert (found == 0).sum() == (~kept).sum()
    assert output_error(inputs, weight, found) < 0.6 * output_error(inputs, weight, weight * kept)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_any_cut_into_slabs_gives_the_same_bits(tmp_path, dtype):
    tensor = torch.from_numpy(drawn(20, 24)).to(getattr(torch, str(dtype.torch)))
    bits = tensor.view({2: torch.uint16, 4: torch.uint32}[tensor.element_size()]).numpy()
    statistics = statistics_file(tmp_path / "s.safetensors", {"w:hessian": hessian_of(inputs_of(24))})
    mask, spec = masks({"w": tensor}, HALF, statistics)["w"].mask, TensorSpec("w", dtype, (20, 24))
    whole = mask.apply(bits, Place(spec, 0))
    assert (whole.dtype, int((whole << 1 == 0).sum())) == (bits.dtype, 240)
    parts = [mask.apply(bits[a:b], Place(spec, a)) for a, b in ((0, 3), (3, 4), (4, 20))]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_a_tensor_is_solved_once_though_slabs_of_two_are_asked_for_in_turn(tmp_path, monkeypatch):
    hessian = hessian_of(inputs_of(24))
    statistics = statistics_file(tmp_path / "s.safetensors", {f"{name}:hessian": hessian for name in "abc"})
    found = masks({name: torch.from_numpy(drawn(8, 24)) for name in "abc"}, HALF, statistics)
    solved = []
    monkeypatch.setattr(solving, "thinned", lambda fed, block, share: solved.append(share) or block)
    for name in "aabaabcbcc":
        found[name].mask.apply(drawn(8, 24).view(np.uint32), Place(TensorSpec(name, F32, (8, 24)), 0))
    assert len(solved) == 3


def test_weights_without_a_hessian_go_by_magnitude(tmp_path):
    tensors = {"known": weights(8, 24), "unknown": weights(8, 24, seed=1), "conv": weights(8, 4, 3, 3, seed=2)}
    statistics = statistics_file(tmp_path / "s.safetensors", {"known:hessian": hessian_of(inputs_of(24))})
    for asked, kind in ((HALF, Below), (TWO_OF_FOUR, LargestOf)):
        found = masks(tensors, asked, statistics)
        assert isinstance(found["known"].mask, Solved)
        assert isinstance(found["unknown"].mask, kind)
        assert isinstance(found["conv"].mask, kind)
        other = masks(
            tensors, Pruning(asked.sparsity, None, asked.pattern, scope="layer" if asked.sparsity else None), statistics
        )
        bits = tensors["unknown"].numpy().view(np.uint32)
        place = Place(TensorSpec("unknown", F32, (8, 24)), 0)
        assert found["unknown"].mask.apply(bits, place).tobytes() == other["unknown"].mask.apply(bits, place).tobytes()


def test_a_share_of_its_own_holds_for_a_tensor_under_a_pattern_too(tmp_path):
    statistics = statistics_file(tmp_path / "s.safetensors", {"w:hessian": hessian_of(inputs_of(36))})
    tensor = weights(8, 4, 3, 3)
    mask = masks({"w": tensor}, TWO_OF_FOUR, statistics, {"w": 0.25})["w"].mask
    found = mask.apply(tensor.reshape(8, 36).numpy().view(np.uint32), Place(TensorSpec("w", F32, (8, 4, 3, 3)), 0))
    assert (found << 1 == 0).sum() == 72


def test_a_pattern_is_refused_for_a_convolution_before_anything_is_solved(tmp_path):
    statistics = statistics_file(tmp_path / "s.safetensors", {"conv:hessian": hessian_of(inputs_of(36))})
    with pytest.raises(UsageError) as refused:
        masks({"conv": weights(8, 4, 3, 3)}, TWO_OF_FOUR, statistics)
    assert str(refused.value) == (
        "memory.safetensors: --pattern with sparsegpt is for linear layers, and conv is [8, 4, 3, 3]: --set 'conv=keep'"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name(tmp_path, value):
    statistics = statistics_file(tmp_path / "s.safetensors", {"w:hessian": hessian_of(inputs_of(24))})
    tensor = weights(8, 24)
    tensor[3, 4] = value
    with pytest.raises(NonFinite, match=r"memory\.safetensors: tensor w .*(NaN|inf)"):
        masks({"w": tensor}, HALF, statistics)


def test_a_hessian_that_cannot_be_one_is_refused_by_name(tmp_path):
    hessian = hessian_of(inputs_of(24))
    hessian[2, 9] = hessian[9, 2] = 10 * hessian.max()
    statistics = statistics_file(tmp_path / "s.safetensors", {"w:hessian": hessian})
    mask = masks({"w": weights(8, 24)}, HALF, statistics)["w"].mask
    with pytest.raises(BrokenCheckpoint, match=r"s\.safetensors: w:hessian is no mean of products x x\^T"):
        mask.apply(weights(8, 24).numpy().view(np.uint32), Place(TensorSpec("w", F32, (8, 24)), 0))


def test_without_any_hessian_there_is_nothing_to_solve_with(tmp_path):
    statistics = statistics_file(tmp_path / "s.safetensors", {"w:fisher": np.ones((8, 24), np.float32)})
    with pytest.raises(UsageError, match=r"s\.safetensors: holds no hessian of these weights; quantize, or prune"):
        masks({"w": weights(8, 24)}, HALF, statistics)
