"""A survey finds what a slow look at the whole tensor in float64 finds, however the tensor is cut into slabs."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

import modelzip_cli.tensors
from modelzip_cli.source import open_source
from modelzip_cli.survey import FAR, TensorSurvey, bars_of, entropy, merged, survey, survey_tensor
from modelzip_cli.tensors import BF16, DTYPES, F16, F32, F64, DType, TensorSpec
from tests.checkpoints import every_dtype_pth, lstm_pth, tied_pth, weights
from tests.strategies import WEIGHTS, any_weight

NUMPY = {F64: np.float64, F32: np.float32, F16: np.float16}
BIN = 2**-7  # the relative width of a bin of the histogram


class OneTensor:
    """A source of the raw bits of one tensor, which it gives in pieces as they are asked for."""

    def __init__(self, dtype: DType, values: np.ndarray) -> None:
        self.specs = {"w": TensorSpec("w", dtype, values.shape)}
        raw = np.ascontiguousarray(values)
        self._bits = raw.view(dtype.unit).reshape(-1) if raw.size else np.empty(0, dtype.unit)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._bits[start:stop]


def surveyed(values: np.ndarray, dtype: DType | None = None) -> TensorSurvey:
    """Survey an array; uint16 is the bits of bf16."""
    found = dtype or {np.dtype(kind): dtype for dtype, kind in NUMPY.items()}[values.dtype]
    source = OneTensor(found, values)
    return survey_tensor(source, source.specs["w"])


def slow_came_from(values: np.ndarray) -> str | None:
    """The first dtype of bf16, f16 and f32 through which the values go unchanged, by torch."""
    whole = torch.from_numpy(values)
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16), ("f32", torch.float32)):
        back = whole.to(dtype).to(whole.dtype)
        if dtype != whole.dtype and bool(((back == whole) | whole.isnan()).all()):
            return name
    return None


def assert_agrees(found: TensorSurvey, values: np.ndarray) -> None:
    """Hold a survey against figures of the finite values, computed in float64 all at once."""
    with np.errstate(over="ignore", under="ignore"):
        exact = values.astype(np.float32).astype(np.float64)
    finite = exact[np.isfinite(exact)]
    assert (found.weights, found.nonfinite) == (values.size, values.size - finite.size)
    assert found.minimum == finite.min(initial=math.inf if finite.size else 0.0)
    assert found.maximum == finite.max(initial=-math.inf if finite.size else 0.0)
    rms = math.sqrt(math.fsum(finite * finite) / finite.size) if finite.size else 0.0
    assert found.rms == pytest.approx(rms, rel=1e-12)
    mean = math.fsum(finite) / finite.size if finite.size else 0.0
    assert found.mean == pytest.approx(mean, rel=1e-9, abs=1e-12 * rms)
    assert found.zeros == np.count_nonzero(finite == 0)
    if rms:
        far, farther = FAR * rms, FAR * rms * (1 + BIN)
        assert np.count_nonzero(np.abs(finite) > farther) <= found.outliers <= np.count_nonzero(np.abs(finite) > far)
    else:
        assert found.outliers == 0
    rows, columns = TensorSpec("w", F32, values.shape).matrix
    assert found.rows == rows
    assert found.dead_rows == (np.count_nonzero((exact.reshape(rows, columns) == 0).all(axis=1)) if columns else 0)
    exponents = np.bincount((finite.astype(np.float32).view(np.uint32) >> 23) & 0xFF, minlength=256)
    assert exponents[1:].tolist() == found.histogram[1:].tolist()
    shares = exponents[exponents > 0] / max(finite.size, 1)
    assert found.exponent_entropy == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-9)


CASES = {
    **WEIGHTS,
    "one dimension": np.arange(-5, 200, dtype=np.float32),
    "no dimension": np.array(-2.5, np.float32),
    "no elements": np.empty(0, np.float32),
    "four dimensions": np.random.default_rng(1).normal(0, 1, (6, 3, 2, 2)).astype(np.float32),
    "experts": np.random.default_rng(2).normal(0, 1, (3, 4, 64)).astype(np.float32),
    "outliers": np.concatenate([np.ones((1, 999)), [[100.0]]], axis=1).astype(np.float32),
    "outliers below zero": np.concatenate([np.ones((1, 999)), [[-100.0]]], axis=1).astype(np.float32),
    "only NaN": np.full((2, 3), np.nan, np.float32),
    "only infinities": np.array([[np.inf, -np.inf]], np.float32),
    "NaN of both signs": np.array([[1.0, np.nan, -np.nan, 0.0], [0.0, 0.0, 0.0, 0.0]], np.float32),
    "infinities among others": np.array([[np.inf, 3.0, -4.0], [-np.inf, 0.0, 0.5]], np.float32),
}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_figures_are_those_of_the_whole_tensor(values):
    assert_agrees(surveyed(values), values)


@given(any_weight(min_side=1))
def test_figures_are_those_of_any_tensor(values):
    assert_agrees(surveyed(values), values)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3), elements=st.floats(width=32)))
def test_what_is_not_finite_is_counted_and_left_out_of_all_else(values):
    assert_agrees(surveyed(values), values)


@pytest.mark.parametrize("dtype", [F64, F16], ids=str)
def test_other_widths_are_surveyed_like_float32(dtype):
    values = np.random.default_rng(3).normal(0, 0.02, (70, 33)).astype(NUMPY[dtype])
    values[3] = 0
    assert_agrees(surveyed(values), values)


def test_bf16_is_surveyed_like_float32():
    values = weights(70, 33).bfloat16()
    assert_agrees(surveyed(values.view(torch.uint16).numpy(), BF16), values.float().numpy())


@pytest.mark.parametrize("weights_of_a_slab", [1, 7, 100, 1000])
@pytest.mark.parametrize("case", ["many rows", "heavy tails", "infinities among others", "NaN of both signs"])
def test_the_cut_into_slabs_changes_no_figure(case, weights_of_a_slab, monkeypatch):
    whole = surveyed(CASES[case])
    monkeypatch.setattr(modelzip_cli.tensors, "SLAB_WEIGHTS", weights_of_a_slab)
    cut = surveyed(CASES[case])
    assert cut.rms == pytest.approx(whole.rms, rel=1e-14)
    one, other = (found.to_json() for found in (whole, cut))
    assert one == other


F16_VALUES = np.arange(0x7C00, dtype=np.uint16).view(np.float16)  # all that are finite and not negative
ORIGINS = {
    "f32 that was bf16": weights(64, 64).bfloat16().float().numpy(),
    "f32 that was f16": weights(64, 64).half().float().numpy(),
    "f32 of all numbers of f16": F16_VALUES.astype(np.float32),
    "f32 that is f32": weights(64, 64).numpy(),
    "f64 that was bf16": weights(64, 64).bfloat16().double().numpy(),
    "f64 that was f16": weights(64, 64).half().double().numpy(),
    "f64 that was f32": weights(64, 64).double().numpy(),
    "f64 that is f64": np.random.default_rng(4).normal(size=(8, 8)),
    "f16 subnormals": np.array([2.0**-24, 3 * 2.0**-24, 2.0**-14, 1 + 2.0**-10], np.float32),
    "below the subnormals of f16": np.array([2.0**-25, 1 + 2.0**-10], np.float32),
    "between the subnormals of f16": np.array([2.0**-20 + 2.0**-26, 1 + 2.0**-10], np.float32),
    "the end of f16": np.array([65504, -65504], np.float32),
    "past the end of f16": np.array([65504, 65536], np.float32),
    "infinity and f16": np.array([np.inf, 1 + 2.0**-10], np.float32),
    "infinity and bf16": np.array([-np.inf, 1.5], np.float32),
    "infinity and f32, in f64": np.array([np.inf, 1 + 2.0**-23]),
    "NaN and bf16": np.array([np.nan, 1.5], np.float32),
    "one value of f32 among f16": np.array([*F16_VALUES.astype(np.float32), 1 + 2.0**-23], np.float32),
    "too small for f32": np.array([1.0, 2.0**-600]),
    "too large for f32": np.array([1.0, 2.0**600]),
    "subnormals of f32, in f64": np.array([1.0, 2.0**-149]),
    "subnormals of bf16, in f64": np.array([1.0, 2.0**-133]),
    "zeros": np.zeros((2, 2), np.float32),
}


@pytest.mark.parametrize("values", ORIGINS.values(), ids=ORIGINS)
def test_a_wide_dtype_that_a_smaller_one_could_replace_is_noticed(values):
    assert surveyed(values).came_from == slow_came_from(values)


@given(hnp.arrays(np.float16, st.integers(1, 30), elements=st.floats(width=16)))
def test_any_values_of_f16_are_recognised_in_a_wider_dtype(values):
    for wide in (np.float32, np.float64):
        assert surveyed(values.astype(wide)).came_from in ("f16", "bf16")


@given(hnp.arrays(np.float64, st.integers(1, 8), elements=st.floats()))
def test_no_value_of_f64_is_taken_for_what_it_is_not(values):
    values = np.where(np.isnan(values), np.nan, values)  # one NaN: what is in the others is in no dtype's range
    assert surveyed(values).came_from == slow_came_from(values)


def test_narrow_dtypes_came_from_nowhere():
    assert surveyed(np.ones((2, 2), np.float16)).came_from is None
    assert surveyed(np.ones((2, 2), np.uint16), BF16).came_from is None


def test_an_empty_tensor_came_from_nowhere():
    assert surveyed(np.empty((0, 3), np.float32)).came_from is None


def test_every_float_tensor_of_a_file_is_surveyed_and_no_other(tmp_path: Path):
    source = open_source(every_dtype_pth(tmp_path / "every.pth"))
    with ThreadPoolExecutor(2) as executor:
        found = survey(source, executor)
    source.close()
    assert [*found] == [name for name, dtype in DTYPES.items() if dtype.kind == "float"]
    assert all(figures.name == name for name, figures in found.items())


def test_tensors_of_a_tie_are_surveyed_once_and_views_of_one_storage_each(tmp_path: Path):
    with ThreadPoolExecutor(2) as executor:
        tied = open_source(tied_pth(tmp_path / "tied.pth"))
        assert "embed.weight" in (names := survey(tied, executor))
        assert "lm_head.weight" not in names
        parts = open_source(lstm_pth(tmp_path / "lstm.pth"))
        assert len(survey(parts, executor)) == 4
    tied.close()
    parts.close()


def test_a_large_tensor_of_several_slabs_is_added_up(tmp_path: Path):
    values = weights(3, 700, 1000, seed=3)
    values[1] = 0
    save_file({"w": values}, tmp_path / "w.safetensors")
    source = open_source(tmp_path / "w.safetensors")
    with ThreadPoolExecutor(2) as executor:
        found = survey(source, executor)["w"]
    source.close()
    assert_agrees(found, values.numpy())
    assert found.dead_rows == 700


def test_bars_hold_every_weight_that_is_not_zero():
    values = np.array([2.0**n for n in range(-40, 4)] + [0.0, 1.5], np.float32)
    low, bars = bars_of(surveyed(values).histogram)
    assert (low, len(bars), sum(bars)) == (3 - 15, 16, 45)
    assert bars[-4] == 2  # 1 and 1.5
    assert bars[0] == 29  # 2^-12 and all below


def test_there_are_no_bars_without_weights():
    assert bars_of(surveyed(np.zeros(3, np.float32)).histogram) == (None, [])
    assert bars_of(merged([])) == (None, [])


def test_the_histogram_of_several_tensors_is_their_sum():
    one, other = surveyed(CASES["normal"]), surveyed(CASES["heavy tails"])
    both = surveyed(np.concatenate([CASES["normal"].ravel(), CASES["heavy tails"].ravel()]))
    assert merged([one.histogram, other.histogram]).tolist() == both.histogram.tolist()


def test_entropy_is_that_of_the_shares():
    assert entropy(np.array([0, 5, 5, 0])) == 1
    assert entropy(np.array([7])) == 0
    assert entropy(np.zeros(4, np.int64)) == 0
    assert entropy(np.array([1, 1, 2])) == 1.5
