"""`inspect --stats`: what people see of their weights, and a command to copy that works."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modelzip_cli import predict
from modelzip_cli.kernels import jit
from modelzip_cli.predict import PREDICTED, SPARSITIES, TARGETS
from tests.checkpoints import (
    every_dtype_pth,
    odd_names_pth,
    odd_names_safetensors,
    plain_safetensors,
    state_dict,
    strided_pth,
    tied_pth,
    trainer_pth,
    weights,
)
from tests.conftest import SAMPLES, Run
from tests.test_layers import loaded
from tests.test_report_schema import assert_is, edge_cases, no_tensors, nothing_to_treat

NAMES = sorted(path.name for path in SAMPLES.iterdir() if path.suffix in (".pth", ".safetensors"))


def with_nan(path: Path) -> Path:
    """Two tensors to treat, one of them with NaN and infinity."""
    tensors = {"good.weight": weights(64, 64), "bad.weight": weights(96, 64), "good.bias": weights(64)}
    tensors["bad.weight"][2, 3], tensors["bad.weight"][4, 5] = float("nan"), float("-inf")
    save_file(tensors, path)
    return path


def only_integers(path: Path) -> Path:
    """A file without a float in it."""
    save_file({"ids": torch.arange(4096).reshape(64, 64), "mask": torch.zeros(64, dtype=torch.uint8)}, path)
    return path


def directory(path: Path) -> Path:
    """A Hugging Face model of one file."""
    path.mkdir()
    plain_safetensors(path / "model.safetensors")
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def weak_names(path: Path) -> Path:
    """Layers that the scheme for the others does badly on, with names that mean something to shells and to globs."""
    spikes = torch.nn.functional.one_hot(torch.arange(256), 256).float() * 1e3
    weak = {name: weights(256, 256, seed=place) for place, name in enumerate(("it's.weight", "b[0-9]*", "a=b $x"))}
    save_file({"spikes.weight": spikes, **weak}, path)
    return path


ODD = {
    "nan.safetensors": with_nan,
    "integers.safetensors": only_integers,
    "edges.safetensors": edge_cases,
    "nothing.safetensors": nothing_to_treat,
    "none.safetensors": no_tensors,
    "trainer.pth": trainer_pth,
    "tied.pth": tied_pth,
    "dtypes.pth": every_dtype_pth,
    "strided.pth": strided_pth,
    "odd.pth": odd_names_pth,
    "odd names.safetensors": odd_names_safetensors,
    "weak; names.safetensors": weak_names,
    "directory": directory,
}


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """With compiled kernels, which the session compiles once: numpy gives the same and takes its time."""
    return environment | {jit.CHOICE: "numba"}


@pytest.fixture(autouse=True)
def _predictions_are_made_of_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """How good they are is asked in test_predict.py."""
    monkeypatch.setattr(predict, "MOST_SAMPLE", 16 << 10)


@pytest.fixture
def paste(modelzip: Callable[..., Run]) -> Callable[..., Run]:
    """Run a line as a person would: what a shell takes its words for is given to the program."""

    def run(line: str, **more: Any) -> Run:
        shell = ["sh", "-c", f"modelzip() {{ printf '%s\\0' \"$@\"; }}\n{line}"]
        *words, end = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split("\0")
        assert end == ""  # nothing beside the one command
        return modelzip(*words, **more)

    return run


def pairs(stdout: str, label: str) -> list[str]:
    """The texts that stand beside a label."""
    return [line[len(label) :].strip() for line in stdout.splitlines() if line.startswith(f"{label} ")]


def commands(stdout: str) -> list[str]:
    """Every command that the page offers."""
    advised = [text.split("`")[1] for text in pairs(stdout, "advice") if "`" in text]
    return advised + [text for text in pairs(stdout, "next") if text.startswith("modelzip ")]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_sample_ends_in_a_command_that_works(modelzip, sample, paste, name):
    sample(name)
    run = modelzip("inspect", "--stats", name)
    assert (run.exit_code, run.stderr) == (0, "")
    last = run.stdout.splitlines()[-1]
    assert last.startswith("next         modelzip ")
    assert name == "digits_mlp.pth" or last.endswith(f" compress {name} --min-sqnr 20")
    pasted = paste(last.removeprefix("next"))
    assert (pasted.exit_code, pasted.stderr) == (0, "")


@pytest.mark.parametrize("name", ODD)
def test_every_command_on_the_page_of_an_odd_file_works_when_pasted(modelzip, paste, tmp_path, name):
    ODD[name](tmp_path / name)
    run = modelzip("inspect", "--stats", name)
    assert (run.exit_code, run.stderr) == (0, "")
    for number, command in enumerate(commands(run.stdout)):
        suffix = "" if name == "directory" else ".safetensors" if "dense" not in command else Path(name).suffix
        pasted = paste(f"{command} -o out{number}{suffix}")
        assert pasted.exit_code == 0, f"{command}\n{pasted.stderr}"


@pytest.mark.parametrize("name", ODD)
def test_json_is_what_the_schema_says(modelzip, tmp_path, name):
    ODD[name](tmp_path / name)
    found = modelzip("inspect", "--stats", name, "--json").json
    assert_is("inspection", found)
    schemes = [one["scheme"] for one in found["predictions"] if one["sparsity"] is None]
    assert schemes[: 1 + len(PREDICTED)] == ["lossless", *PREDICTED]
    assert set(schemes[1 + len(PREDICTED) :]) <= {"ecq"}
    pruned = [(one["scheme"], one["sparsity"]) for one in found["predictions"] if one["sparsity"] is not None]
    assert pruned in ([], [("lossless", sparsity) for sparsity in SPARSITIES])
    for row in found["tensors"]:
        surveyed = row["dtype"] in ("f64", "f32", "f16", "bf16") and row["weights"] and not row["tied_to"]
        assert (row["statistics"] is not None) == surveyed


def test_the_schema_of_statistics_is_strict(modelzip, tmp_path):
    edge_cases(tmp_path / "edges.safetensors")
    found = modelzip("inspect", "--stats", "edges.safetensors", "--json").json
    text = json.dumps(found)
    for inside in ('"statistics": {', '"histogram": {', '"not_weights": {', '"predictions": [{'):
        with pytest.raises(AssertionError):
            assert_is("inspection", json.loads(text.replace(inside, f'{inside}"new_key": 1, ', 1)))
    for key in ("rms", "log2_from", "share", "sqnr_db", "not_weights"):
        with pytest.raises(AssertionError):
            assert_is("inspection", json.loads(text.replace(f'"{key}": ', f'"no_{key}": ', 1)))


def test_without_the_option_nothing_is_said_of_values(modelzip, sample):
    found = modelzip("inspect", sample("digits_mlp.pth"), "--json").json
    assert not {"predictions", "not_weights"} & set(found)
    assert not any("statistics" in row for row in found["tensors"])


def test_figures_are_those_of_the_weights(modelzip, tmp_path):
    values = weights(64, 64)
    values[:, :32] = 0
    values[7] = 0
    values[0, 63] = 100
    save_file({"w": values, "gain": torch.ones(8)}, tmp_path / "w.safetensors")
    found = modelzip("inspect", "--stats", "w.safetensors", "--json").json
    row = next(row for row in found["tensors"] if row["name"] == "w")["statistics"]
    zeros = int((values == 0).sum())
    assert row["sparsity"] == pytest.approx(zeros / 4096, abs=1e-6)
    assert (row["maximum"], row["rows"], row["dead_rows"], row["came_from"]) == (100, 64, 1, None)
    assert row["rms"] == pytest.approx(float(values.double().square().mean().sqrt()), rel=1e-5)
    assert row["outliers"] == pytest.approx(1 / 4096, abs=1e-8)
    assert sum(row["histogram"]["counts"]) == 4096 - zeros
    text = modelzip("inspect", "--stats", "w.safetensors").stdout
    line = next(line for line in text.splitlines() if line.startswith("w ") and "▁" in line)
    assert "beyond 6 rms" in line
    assert "1 of 64 rows" in line
    assert f"{zeros / 4096:.1%}" in line


def test_every_scheme_has_a_row_and_one_is_recommended(modelzip, sample):
    lines = modelzip("inspect", "--stats", sample("docs_lm.safetensors")).stdout.splitlines()
    table = lines[next(place for place, line in enumerate(lines) if line.startswith("scheme ")) + 1 :]
    names = ["lossless", *PREDICTED, *(f"ecq {target:g} dB" for target in TARGETS)]
    assert [line[:10].strip() for line in table[: len(names)]] == names
    assert sum("recommended" in line for line in table) == 1


def test_bits_of_a_tensor_are_predicted_as_they_then_are(modelzip, sample):
    path = sample("digits_cnn.pth")
    found = modelzip("inspect", "--stats", path, "--json").json
    for scheme, options in (("lossless", ["--lossless"]), ("ecq", ["--min-sqnr", "20"])):
        report = modelzip("compress", path, *options, "-o", f"{scheme}.safetensors", "--json").json
        real = {row["name"]: row["bits_per_weight"] for row in report["tensors"] if row["status"] == "compressed"}
        for row in found["tensors"]:
            if row["name"] in real and row["statistics"]:
                assert row["statistics"][f"{scheme}_bits"] == pytest.approx(real[row["name"]], rel=0.03)


def test_verbose_has_a_row_for_every_float_tensor(modelzip, tmp_path):
    path = trainer_pth(tmp_path / "trainer.pth")
    lines = modelzip("inspect", "--stats", "-v", path).stdout.splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith("weights ") and "log2" in line)
    table = lines[begin + 1 : lines.index("", begin)]
    floats = [name for name, tensor in state_dict().items() if tensor.is_floating_point()]
    assert [line.split()[0] for line in table] == floats


def test_markdown_has_the_same_tables(modelzip, sample):
    text = modelzip("inspect", "--stats", sample("digits_mlp.pth"), "--format", "md").stdout
    assert "| weights |" in text
    assert "| scheme |" in text
    assert f"| {PREDICTED[0]} |" in text
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| layers")}
    assert len(widths) <= 2  # those of two tables


def test_reports_can_be_written_as_well(modelzip, sample, tmp_path):
    run = modelzip("inspect", "--stats", sample("digits_mlp.pth"), "--report", "all.json", "--report", "all.md")
    assert run.exit_code == 0
    assert_is("inspection", json.loads((tmp_path / "all.json").read_text()))
    assert "| scheme |" in (tmp_path / "all.md").read_text()


def test_several_files_are_shown_one_after_the_other(modelzip, sample):
    paths = [sample(name) for name in ("digits_mlp.pth", "digits_cnn.pth")]
    text = modelzip("inspect", "--stats", *paths).stdout
    assert text.count("\nnext ") == 2
    found = modelzip("inspect", "--stats", *paths, "--json").json
    assert_is("inspections", found)
    assert all(run["predictions"] for run in found["runs"])


def test_a_compressed_file_is_surveyed_but_not_compressed_in_thought_again(modelzip, sample):
    assert modelzip("quantize", sample("digits_mlp.pth"), "--scheme", "int4", "-o", "small.safetensors").exit_code == 0
    found = modelzip("inspect", "--stats", "small.safetensors", "--json").json
    assert_is("inspection", found)
    assert found["predictions"] == []
    assert all(row["statistics"] for row in found["tensors"])
    text = modelzip("inspect", "--stats", "small.safetensors").stdout
    assert "\nscheme " not in text
    assert commands(text) == ["modelzip verify small.safetensors"]


def test_optimizer_state_is_counted_among_what_is_not_weights(modelzip, sample):
    path = sample("digits_mlp.pth")
    found = modelzip("inspect", "--stats", path, "--json").json
    beside = sum(row["bytes"] for row in found["tensors"] if not row["weights"])
    inside = sum(row["bytes"] for row in found["tensors"] if row["weights"])
    assert found["not_weights"]["bytes"] == path.stat().st_size - inside > beside > 0
    assert found["not_weights"]["share"] == pytest.approx(1 - inside / path.stat().st_size, abs=1e-6)
    assert pairs(modelzip("inspect", "--stats", path).stdout, "not weights") == ["105 kB of the file (68.5%)"]


def test_views_of_one_storage_leave_nothing_below_zero(modelzip, tmp_path):
    found = modelzip("inspect", "--stats", strided_pth(tmp_path / "strided.pth"), "--json").json
    assert found["not_weights"] == {"bytes": 0, "share": 0}


def test_a_file_with_nan_is_told_of_and_its_command_allows_it(modelzip, tmp_path):
    run = modelzip("inspect", "--stats", with_nan(tmp_path / "nan.safetensors"))
    assert "2 NaN or infinite" in run.stdout
    assert any("bad.weight" in text and "--allow-nonfinite" in text for text in pairs(run.stdout, "advice"))
    assert "--allow-nonfinite" in run.stdout.splitlines()[-1]


def test_integers_can_only_be_kept_losslessly(modelzip, tmp_path):
    run = modelzip("inspect", "--stats", only_integers(tmp_path / "file.safetensors"))
    assert [line.split()[0] for line in run.stdout.splitlines() if "recommended" in line] == ["lossless"]
    assert commands(run.stdout) == [f"modelzip compress {tmp_path / 'file.safetensors'} --lossless"]


@pytest.mark.parametrize("make", [nothing_to_treat, no_tensors], ids=lambda make: make.__name__)
def test_a_file_without_anything_to_treat_gets_no_table_of_schemes(modelzip, tmp_path, make):
    run = modelzip("inspect", "--stats", make(tmp_path / "file.safetensors"))
    assert run.exit_code == 0
    assert "\nscheme " not in run.stdout
    assert not commands(run.stdout)


def test_the_key_is_kept_in_the_command(modelzip, paste, tmp_path):
    torch.save({"model": state_dict(), "ema": {"w.weight": weights(64, 64)}}, tmp_path / "two.pth")
    run = modelzip("inspect", "--stats", "two.pth", "--key", "ema")
    (command,) = commands(run.stdout)
    assert paste(f"{command} -o ema.safetensors").exit_code == 0
    rows = modelzip("inspect", "ema.safetensors", "--json").json["tensors"]
    assert [row["name"] for row in rows] == ["w.weight"]


@pytest.mark.parametrize(
    ("dtype", "scheme"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")], ids=["float16", "bfloat16"]
)
def test_a_file_of_wide_numbers_that_were_narrow_is_told_how_to_lose_nothing(modelzip, paste, tmp_path, dtype, scheme):
    tensors = {"a.weight": weights(256, 256).to(dtype).float(), "gain": torch.ones(256), "bias": torch.zeros(256)}
    save_file(tensors, tmp_path / "wide.safetensors")
    run = modelzip("inspect", "--stats", "wide.safetensors")
    command = commands(run.stdout)[0]
    assert f"--scheme {scheme} --layout dense" in command
    assert paste(f"{command} -o narrow.safetensors").exit_code == 0
    difference = modelzip("diff", "wide.safetensors", "narrow.safetensors", "--json").json
    assert difference["totals"]["sqnr_db"] is None
    assert (tmp_path / "narrow.safetensors").stat().st_size < 0.51 * (tmp_path / "wide.safetensors").stat().st_size


def test_standard_input_gets_no_command_for_what_has_gone(modelzip, tmp_path):
    data = trainer_pth(tmp_path / "trainer.pth").read_bytes()
    run = modelzip("inspect", "--stats", "-", stdin=data)
    assert run.exit_code == 0
    assert "recommended" in run.stdout
    assert not commands(run.stdout)


def thousand(path: Path) -> Path:
    """A thousand tensors with names that have nothing in common, of a hundred shapes."""
    tensors = {f"{place * 7919 % 9973:x}-block": weights(16 + place % 100, 8, seed=place) for place in range(1000)}
    save_file(tensors, path)
    return path


def test_a_thousand_tensors_stay_readable(modelzip, tmp_path):
    run = modelzip("inspect", "--stats", thousand(tmp_path / "thousand.safetensors"))
    lines = run.stdout.splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith("weights ") and "log2" in line)
    statistics = lines[begin : lines.index("", begin)]
    assert len(statistics) <= 26
    assert max(map(len, statistics)) <= 140
    assert "smaller groups" in statistics[-1]


def test_a_name_cannot_steer_the_terminal(modelzip, tmp_path):
    odd_names_pth(tmp_path / "odd.pth")
    for options in ([], ["-v"], ["--format", "md"]):
        text = modelzip("inspect", "--stats", "odd.pth", *options).stdout
        assert not {c for c in text if not c.isprintable()} - {"\n"}
        assert "\u202e" not in text


def test_a_narrow_terminal_cuts_no_figure(modelzip, sample):
    sample("docs_lm.safetensors")
    run = modelzip("inspect", "--stats", "--format", "rich", "docs_lm.safetensors", env={"COLUMNS": "80"})
    assert run.exit_code == 0, run.stderr
    lines = run.stdout.splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith("weights"))
    assert not any("…" in line for line in lines[begin:])
    assert max(map(len, lines[begin:])) <= 80


def test_the_number_of_threads_changes_nothing(modelzip, sample):
    path = sample("digits_cnn.pth")
    assert (
        modelzip("inspect", "--stats", path, "-j", "1").stdout == modelzip("inspect", "--stats", path, "-j", "3").stdout
    )


def test_a_damaged_file_is_an_error(modelzip, sample):
    path: Any = sample("digits_mlp.pth")
    data = bytearray(path.read_bytes())
    place = data.index(b"data/0") + 200  # inside the first storage
    data[place] ^= 1
    path.write_bytes(data)
    run = modelzip("inspect", "--stats", path)
    assert run.exit_code == 1
    assert shlex.quote(path.name) in run.stderr


@pytest.mark.parametrize("name", ["docs_lm.safetensors", "digits_mlp.pth"])
def test_without_the_option_nothing_is_loaded_that_reads_weights(tmp_path, sample, name):
    found = loaded(tmp_path, "inspect", str(sample(name)))
    assert not found & {"numpy", "numba", "modelzip_cli.survey", "modelzip_cli.predict", "modelzip_cli.plan"}


def test_sizes_once_pruned_are_those_that_prune_writes(modelzip, sample):
    source = sample("docs_lm.safetensors")
    found = modelzip("inspect", "--stats", source, "--json").json["predictions"]
    for one in found:
        if one["sparsity"] is not None:
            report = modelzip("prune", source, "--sparsity", one["sparsity"], "-f", "--json").json
            assert one["bytes"] == pytest.approx(report["output"]["bytes"], rel=0.01)
            assert one["sqnr_db"] == pytest.approx(report["totals"]["sqnr_db"], abs=0.1)


def test_weights_that_obey_2_4_are_counted(modelzip, sample, tmp_path):
    modelzip("prune", sample("docs_lm.safetensors"), "--pattern", "2:4", "--layout", "dense", "-o", "p.safetensors")
    rows = modelzip("inspect", "--stats", "p.safetensors", "--json").json["tensors"]
    ready = {row["name"]: row["statistics"]["two_of_four"] for row in rows}
    assert ready["blocks.0.fc1.weight"] == 1
    assert ready["tok.weight"] < 0.1
    assert ready["blocks.0.fc1.bias"] is None
    assert "are 2:4" in modelzip("inspect", "--stats", "p.safetensors", "--format", "plain").stdout
