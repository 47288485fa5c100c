"""`compress`: goals are met by the file on disk, lossless is the source again, and what cannot be is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelzip_cli.kernels import jit
from tests.checkpoints import every_dtype_safetensors, same, trainer_pth, weights
from tests.test_report_schema import assert_is

NEAR = 0.002


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """With compiled kernels, which the session compiles once: numpy gives the same and takes its time."""
    return environment | {jit.CHOICE: "numba"}


@pytest.fixture
def compress(modelzip: Callable[..., Any]) -> Callable[..., Any]:
    """Run `modelzip compress`."""
    return partial(modelzip, "compress")


def scaled(path: Path) -> Path:
    """Layers with rows of several scales, an outlier, a bias."""
    scales = torch.exp(torch.linspace(-1.5, 1.5, 256))[:, None]
    tensors = {f"layers.{n}.weight": (weights(256, 256, seed=n) * scales).bfloat16() for n in range(2)}
    tensors["layers.0.weight"][3, 4] = 60 * 0.02
    save_file({**tensors, "layers.0.bias": weights(256)}, path)
    return path


def many(path: Path) -> Path:
    """Many small tensors: header and manifest are a good part of the file."""
    save_file({f"blocks.{n}.weight": weights(64, 80, seed=n).half() for n in range(40)}, path)
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {"scaled.safetensors": scaled, "many.safetensors": many}


@pytest.fixture
def source(sample: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A sample model, or one that is made here."""
    return lambda name: SOURCES[name](tmp_path / name) if name in SOURCES else sample(name)


each_source = pytest.mark.parametrize("name", ["digits_cnn.pth", "docs_lm.safetensors", *SOURCES])


@each_source
@pytest.mark.parametrize("ratio", ["6x", "4"])
def test_a_ratio_is_met_and_hardly_passed(compress, source, tmp_path, name, ratio):
    path, out = source(name), tmp_path / "out.safetensors"
    run = compress(path, "--ratio", ratio, "-o", out, "--json")
    assert (run.exit_code, run.stderr) == (0, "")
    assert_is("report", run.json)
    most = path.stat().st_size / float(ratio.removesuffix("x"))
    assert most * (1 - NEAR) <= out.stat().st_size <= most
    assert run.json["output"]["bytes"] == out.stat().st_size


@each_source
def test_a_size_is_met_and_hardly_passed(compress, source, tmp_path, name):
    path, out = source(name), tmp_path / "out.safetensors"
    most = path.stat().st_size // 5 // 1000 * 1000
    assert compress(path, "--target-size", f"{most // 1000}kB", "-o", out).exit_code == 0
    assert most * (1 - NEAR) <= out.stat().st_size <= most


@each_source
def test_bits_a_weight_are_met_and_hardly_passed(compress, source, name):
    totals = compress(source(name), "--bpw", "3.5", "--json").json["totals"]
    assert 3.5 * (1 - NEAR) <= totals["bits_per_weight"] <= 3.5


def test_bits_a_weight_are_those_of_all_treated_weights(compress, source):
    run = compress(source("scaled.safetensors"), "--bpw", "5", "--set", "layers.1.*=int4", "--json")
    assert 5 * (1 - NEAR) <= run.json["totals"]["bits_per_weight"] <= 5


@each_source
def test_a_quality_is_met_and_hardly_passed(compress, source, name):
    totals = compress(source(name), "--min-sqnr", "24", "--json").json["totals"]
    assert 24 <= totals["sqnr_db"] <= 24.1


@pytest.mark.parametrize(
    ("options", "tag"),
    [
        (["--bpw", "3.5"], "ecq-3.5bpw"),
        (["--min-sqnr", "20"], "ecq-20dB"),
        (["--ratio", "4x"], "4x"),
        (["--target-size", "60kB"], "60kB"),
        (["--lossless"], "lossless"),
    ],
)
def test_an_output_is_named_after_its_goal(compress, source, tmp_path, options, tag):
    source("scaled.safetensors")
    run = compress("scaled.safetensors", *options, "-q")
    assert run.stdout == f"scaled.{tag}.safetensors\n"
    assert (tmp_path / f"scaled.{tag}.safetensors").is_file()


@pytest.mark.parametrize("options", [["--bpw", "3.5"], ["--min-sqnr", "22"]])
def test_quantize_gives_the_same_bytes(compress, modelzip, source, tmp_path, options):
    path = source("scaled.safetensors")
    assert compress(path, *options, "-o", "a.safetensors").exit_code == 0
    other = modelzip("quantize", path, "--scheme", "ecq", *options, "-o", "b.safetensors")
    assert other.exit_code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_number_of_threads_changes_no_byte(compress, source, tmp_path):
    path = source("scaled.safetensors")
    for jobs in ("1", "3"):
        assert compress(path, "--ratio", "5x", "-j", jobs, "-o", f"{jobs}.safetensors").exit_code == 0
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "3.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["docs_lm.safetensors", "scaled.safetensors", "dtypes.safetensors"])
def test_a_safetensors_file_comes_back_byte_for_byte(compress, modelzip, source, tmp_path, name):
    path = every_dtype_safetensors(tmp_path / name) if name.startswith("dtypes") else source(name)
    assert compress(path, "--lossless", "-o", "small.safetensors").exit_code == 0
    assert modelzip("restore", "small.safetensors", "-o", "back.safetensors").exit_code == 0
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
    assert modelzip("verify", "small.safetensors", "--against", path).exit_code == 0


def assert_same(one: Any, other: Any) -> None:
    """Both hold the same values of the same types."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert same(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert repr(one) == repr(other)


def test_a_torch_file_comes_back_with_all_that_is_beside_its_weights(compress, modelzip, tmp_path):
    path = trainer_pth(tmp_path / "trainer.pth")
    assert compress(path, "--lossless", "-o", "small.safetensors").exit_code == 0
    assert modelzip("restore", "small.safetensors", "-o", "back.pth").exit_code == 0
    before, after = (torch.load(file, weights_only=False) for file in (path, tmp_path / "back.pth"))
    assert_same(before, after)


def test_what_was_compressed_can_be_restored_and_verified(compress, modelzip, source, tmp_path):
    path = source("scaled.safetensors")
    run = compress(path, "--ratio", "5x", "-o", "small.safetensors", "--json")
    assert modelzip("verify", "small.safetensors", "--against", path).exit_code == 0
    assert modelzip("restore", "small.safetensors", "-o", "back.safetensors").exit_code == 0
    before, after = load_file(path), load_file(tmp_path / "back.safetensors")
    name = "layers.1.weight"
    noise = (before[name].double() - after[name].double()).square().sum()
    found = 10 * torch.log10(before[name].double().square().sum() / noise)
    row = next(row for row in run.json["tensors"] if row["name"] == name)
    assert float(found) == pytest.approx(row["sqnr_db"], abs=0.01)
    assert same(before["layers.0.bias"], after["layers.0.bias"])


def test_a_dry_run_is_close_and_writes_nothing(compress, source, tmp_path):
    path = source("scaled.safetensors")
    run = compress(path, "--ratio", "5x", "-n", "--json")
    assert run.json["planned"]["bytes"] == pytest.approx(path.stat().st_size / 5, rel=0.01)
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    "options",
    [
        ["--ratio", "4x", "--bpw", "3"],
        ["--target-size", "1MB", "--min-sqnr", "20"],
        ["--lossless", "--bpw", "3"],
        ["--lossless", "--ratio", "2x"],
    ],
)
def test_two_goals_are_a_mistake(compress, source, tmp_path, options):
    path = source("scaled.safetensors")
    run = compress(path, *options)
    assert run.exit_code == 2
    assert "two goals" in run.stderr
    assert [*tmp_path.iterdir()] == [path]


SENSELESS = {"--ratio": ("1x", "many"), "--target-size": ("-1",), "--bpw": ("0", "nan"), "--min-sqnr": ("nan", "inf")}


@pytest.mark.parametrize("option", [f"{goal}={value}" for goal, values in SENSELESS.items() for value in values])
def test_a_goal_that_makes_no_sense_is_a_mistake(compress, source, option):
    run = compress(source("scaled.safetensors"), option)
    assert run.exit_code == 2
    assert option.partition("=")[0] in run.stderr


@pytest.mark.parametrize("option", ["--target-size=300", "--ratio=5000x", "--bpw=0.01", "--bpw=14", "--min-sqnr=90"])
def test_a_goal_out_of_reach_names_the_nearest_that_can_be_had(compress, source, tmp_path, option):
    path = source("scaled.safetensors")
    run = compress(path, option, "--json")
    assert run.exit_code == 3
    assert_is("error", run.json)
    assert "nearest" in run.stderr or "the most is" in run.stderr
    assert [*tmp_path.iterdir()] == [path]


def test_the_nearest_that_it_names_can_be_had(compress, source, tmp_path):
    path = source("scaled.safetensors")
    text = compress(path, "--target-size", "300").stderr
    nearest = int(text.partition("the nearest is ")[2].partition(" bytes")[0].replace(",", ""))
    run = compress(path, "--target-size", str(round(nearest * 1.03)), "-o", "small.safetensors")
    assert (run.exit_code, run.stderr) == (0, "")
    assert (tmp_path / "small.safetensors").stat().st_size <= nearest * 1.03


def test_what_was_compressed_before_is_refused_but_for_requantize(compress, modelzip, source):
    assert modelzip("quantize", source("scaled.safetensors"), "--scheme", "int8", "-o", "a.safetensors").exit_code == 0
    for options in (["--bpw", "3"], ["--lossless"], []):
        run = compress("a.safetensors", *options)
        assert run.exit_code == 2
        assert "--requantize" in run.stderr
    run = compress("a.safetensors", "--bpw", "3", "--requantize", "-o", "b.safetensors", "--json")
    assert run.exit_code == 0
    assert any("compressed before" in warning for warning in run.json["warnings"])


def test_without_a_goal_the_front_is_shown_and_nothing_written(compress, source, tmp_path):
    path = source("scaled.safetensors")
    run = compress("scaled.safetensors")
    assert (run.exit_code, run.stderr) == (0, "")
    assert "knee" in run.stdout
    assert run.stdout.splitlines()[-1].startswith("next       modelzip compress scaled.safetensors --bpw ")
    assert [*tmp_path.iterdir()] == [path]


def test_the_recommended_command_gives_what_was_predicted(compress, source):
    source("scaled.safetensors")
    found = compress("scaled.safetensors", "--json").json
    assert_is("front", found)
    best = found["recommended"]
    _, _, *words = best["command"].split()
    report = compress(*words, "--json").json
    assert report["output"]["bytes"] == pytest.approx(best["bytes"], rel=0.01)
    assert report["totals"]["sqnr_db"] == pytest.approx(best["sqnr_db"], abs=0.2)


def test_fronts_of_several_files_and_their_reports(compress, source, tmp_path):
    for name in SOURCES:
        source(name)
    files = [word for kind in ("json", "md", "html") for word in ("--report", f"front.{kind}")]
    run = compress(*SOURCES, "--json", *files)
    assert_is("fronts", run.json)
    assert json.loads((tmp_path / "front.json").read_text()) == run.json
    assert (tmp_path / "front.md").read_text().count("| lossless |") == 2
    page = (tmp_path / "front.html").read_text()
    assert page.count('<svg class="chart front"') == 2
    assert "://" not in page


def test_options_about_outputs_need_a_goal(compress, source):
    for options in (["-o", "x.safetensors"], ["--output-dir", "out"], ["--save-recipe", "r.toml"], ["-r"]):
        run = compress(source("scaled.safetensors"), *options)
        assert run.exit_code == 2
        assert "without a goal nothing is written" in run.stderr


def test_standard_input_has_a_front_but_no_command(compress, source):
    run = compress("-", "--json", stdin=source("scaled.safetensors").read_bytes())
    assert run.exit_code == 0
    assert run.json["recommended"]["command"] is None


def test_a_recipe_with_a_goal_is_replayed(compress, source, tmp_path):
    path = source("scaled.safetensors")
    assert compress(path, "--bpw", "3", "--save-recipe", "r.toml", "-o", "a.safetensors").exit_code == 0
    assert compress(path, "--recipe", "r.toml", "-o", "b.safetensors").exit_code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
