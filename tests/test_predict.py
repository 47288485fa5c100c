"""What is predicted of a scheme is what `quantize` then does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modelzip_cli import predict as module
from modelzip_cli.inspection import inspect_file
from modelzip_cli.predict import ENOUGH_DB, MOST_SAMPLE, PREDICTED, Prediction, recommended
from modelzip_cli.recipe import Recipe
from modelzip_cli.report import Report
from modelzip_cli.schemes import SCHEMES, parse_scheme
from modelzip_cli.single import Settings, compress_file
from modelzip_cli.source import open_source
from tests.checkpoints import (
    lstm_pth,
    odd_names_pth,
    plain_safetensors,
    small_and_empty_pth,
    state_dict,
    strided_pth,
    tied_pth,
    trainer_pth,
    weights,
)
from tests.conftest import SAMPLES

MODELS = ("digits_cnn.pth", "digits_mlp.pth", "docs_lm.safetensors", "docstring_classifier.safetensors")
WHOLE = MODELS[:3]  # each tensor is smaller than its sample
HEADER = 512, 64  # bytes that a prediction may be wrong by: for a file, and for each tensor


def predictions_of(path: Path, key: str | None = None) -> dict[str, Prediction]:
    """What is predicted for a checkpoint, by scheme."""
    with ThreadPoolExecutor(2) as executor:
        return {one.scheme: one for one in inspect_file(path, key=key, executor=executor).predictions}


def quantized(path: Path, folder: Path, scheme: str) -> Report:
    """The report of a real run."""
    recipe = Recipe(scheme=scheme, allow_nonfinite=True)
    output = folder / f"{path.stem}.{scheme}{'' if path.is_dir() else '.safetensors'}"
    return compress_file(path, output, recipe, Settings(jobs=2), command="quantize")


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict, dict]]:
    """A sample model: its name, the predictions, and the reports of real runs."""
    path = SAMPLES / request.param
    folder = tmp_path_factory.mktemp("quantized")
    found = predictions_of(path)
    yield request.param, found, {scheme: quantized(path, folder, scheme) for scheme in PREDICTED}
    shutil.rmtree(folder)


def test_the_predicted_size_is_that_of_the_file(model):
    _, predicted, real = model
    for scheme, report in real.items():
        assert predicted[scheme].bytes == pytest.approx(report.output.bytes, rel=0.01), scheme
        assert predicted[scheme].ratio == pytest.approx(report.totals["ratio"], rel=0.01), scheme


def test_the_predicted_error_is_that_of_the_run(model):
    name, predicted, real = model
    for scheme, report in real.items():
        expected = report.totals["sqnr_db"]
        if expected is None:
            assert predicted[scheme].sqnr_db is None, scheme
        else:
            assert predicted[scheme].sqnr_db == pytest.approx(expected, abs=0.02 if name in WHOLE else 0.5), scheme


def test_what_is_treated_is_what_the_run_treats(model):
    _, predicted, real = model
    for scheme, report in real.items():
        assert predicted[scheme].treated == report.totals["treated_parameters"], scheme
        treated = {row.name for row in report.tensors if row.status == "compressed"}
        assert set(predicted[scheme].by_tensor) == treated, scheme


def test_every_family_of_schemes_is_predicted_under_its_own_name():
    assert {parse_scheme(name).id for name in PREDICTED} == set(SCHEMES) - {"fp32", "ecq", "lossless"}
    assert len(set(PREDICTED)) == len(PREDICTED)


def many_small(path: Path) -> Path:
    """Many small tensors: the manifest is a good part of the file."""
    save_file({f"layers.{place}.weight": weights(64, 64, seed=place) for place in range(40)}, path)
    return path


def with_nan(path: Path) -> Path:
    """One tensor can be treated; one holds NaN, one infinity."""
    tensors = {name: weights(64, 64, seed=place) for place, name in enumerate("abc")}
    tensors["b"][1, 2], tensors["c"][3, 4] = float("nan"), float("inf")
    save_file(tensors, path)
    return path


def too_large_for_f16(path: Path) -> Path:
    """A tensor that fp16 and fp8 cannot hold, beside one that they can."""
    save_file({"large": weights(64, 64) * 1e9, "small": weights(64, 64)}, path)
    return path


def only_kept(path: Path) -> Path:
    """A file in which every tensor is kept."""
    save_file({"bias": weights(16), "count": torch.tensor(7)}, path)
    return path


def empty(path: Path) -> Path:
    """A file without tensors."""
    save_file({}, path)
    return path


def directory(path: Path) -> Path:
    """A Hugging Face model of one file."""
    path.mkdir()
    plain_safetensors(path / "model.safetensors")
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


ODD = {
    "many.safetensors": many_small,
    "nan.safetensors": with_nan,
    "large.safetensors": too_large_for_f16,
    "kept.safetensors": only_kept,
    "empty.safetensors": empty,
    "trainer.pth": trainer_pth,
    "tied.pth": tied_pth,
    "lstm.pth": lstm_pth,
    "strided.pth": strided_pth,
    "small.pth": small_and_empty_pth,
    "names.pth": odd_names_pth,
    "directory": directory,
}


@pytest.mark.parametrize("name", ODD)
def test_sizes_of_small_and_odd_files_are_right_but_for_some_bytes_of_their_header(name, tmp_path):
    path = ODD[name](tmp_path / name)
    tensors = len(open_source(path).specs)
    for scheme, predicted in predictions_of(path).items():
        if scheme in ("bf16", "int8", "binary-m2", "fixed8"):
            report = quantized(path, tmp_path, scheme)
            assert abs(predicted.bytes - report.output.bytes) <= HEADER[0] + HEADER[1] * tensors, scheme
            assert predicted.treated == report.totals["treated_parameters"], scheme


def test_only_a_sample_of_a_large_tensor_is_quantized(tmp_path, monkeypatch):
    rows = 4 * MOST_SAMPLE // 256
    save_file({"large.weight": weights(rows, 256)}, tmp_path / "large.safetensors")
    seen = []
    encode = module.error_sums
    monkeypatch.setattr(module, "error_sums", lambda one, other: seen.append(one.size) or encode(one, other))
    found = predictions_of(tmp_path / "large.safetensors")
    assert max(seen) <= MOST_SAMPLE
    for scheme in ("int4", "nf4", "fp8"):
        real = quantized(tmp_path / "large.safetensors", tmp_path, scheme)
        assert found[scheme].sqnr_db == pytest.approx(real.totals["sqnr_db"], abs=0.1)


def test_rows_of_zeros_in_the_middle_do_not_make_a_scheme_exact(tmp_path):
    values = weights(4096, 256)
    values[1024:3072] = 0  # rows of an embedding that no token uses
    save_file({"w": values}, tmp_path / "w.safetensors")
    found = predictions_of(tmp_path / "w.safetensors")
    real = quantized(tmp_path / "w.safetensors", tmp_path, "int4").totals["sqnr_db"]
    assert found["int4"].sqnr_db == pytest.approx(real, abs=0.5)


def test_an_outlier_outside_the_sample_is_known_from_the_survey(tmp_path):
    values = weights(4096, 256)
    values[5, 5] = 2.0
    save_file({"w": values}, tmp_path / "w.safetensors")
    found = predictions_of(tmp_path / "w.safetensors")
    real = quantized(tmp_path / "w.safetensors", tmp_path, "fixed8").totals["sqnr_db"]
    assert found["fixed8"].sqnr_db == pytest.approx(real, abs=0.5)


def test_the_state_dict_that_was_chosen_is_the_one_predicted(tmp_path):
    ema = {name: value * 2 if value.is_floating_point() else value for name, value in state_dict().items()}
    torch.save({"model": state_dict(), "ema": {"w": weights(64, 64)}, "other": ema}, tmp_path / "ema.pth")
    assert predictions_of(tmp_path / "ema.pth", key="ema")["int8"].treated == 64 * 64


def prediction(scheme: str, size: int, sqnr_db: float | None, treated: int = 1) -> Prediction:
    fields = {"recipe": Recipe(scheme=scheme)} if "recipe" in Prediction.__dataclass_fields__ else {}
    return Prediction(scheme, size, 1.0, sqnr_db, treated, {}, **fields)


BF16, INT8, NF4, INT4, BINARY = (
    prediction("bf16", 900, None),
    prediction("int8", 500, 43.0),
    prediction("nf4", 270, ENOUGH_DB),
    prediction("int4", 260, ENOUGH_DB - 0.1),
    prediction("binary", 80, 4.4),
)


def test_the_smallest_that_is_good_enough_is_recommended():
    assert recommended([BF16, INT8, NF4, INT4, BINARY]) is NF4
    assert recommended([BINARY, INT4, INT8]) is INT8


def test_a_scheme_that_loses_nothing_is_good_enough():
    assert recommended([BF16, INT4, BINARY]) is BF16


def test_the_most_exact_is_recommended_where_none_is_good_enough():
    assert recommended([BINARY, INT4]) is INT4


def test_nothing_is_recommended_where_nothing_can_be_treated():
    assert recommended([prediction("bf16", 900, None, treated=0), prediction("int8", 900, None, treated=0)]) is None
    assert recommended([]) is None
