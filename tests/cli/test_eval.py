"""`modelzip eval` through the program: what it prints, its gates, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import PROGRAM, SAMPLES
from tests.test_report_schema import assert_is

CNN, MLP, LM = SAMPLES / "digits_cnn.pt2", SAMPLES / "digits_mlp.pth", SAMPLES / "docs_lm.safetensors"
DIGITS, FLAT, DOCS = (SAMPLES / name for name in ("digits_test.npz", "digits_mlp_test.npz", "docs_test.npz"))
DOCS_LM = f"{SAMPLES / 'train.py'}:DocsLM"
FEW = ("--limit", "200", "-j", "1")


@pytest.fixture
def digits(tmp_path) -> Path:
    """Forty of the distorted digits."""
    with np.load(DIGITS) as arrays:
        np.savez(tmp_path / "digits.npz", x=arrays["x"][:40], y=arrays["y"][:40])
    return tmp_path / "digits.npz"


def test_an_exported_model_is_evaluated(modelzip):
    run = modelzip("eval", CNN, "--data", DIGITS, "-j", "1", "--json")
    assert run.exit_code == 0, run.stderr
    assert_is("evaluated", run.json)
    after = run.json["evaluation"]["after"]
    assert (after["examples"], after["parameters"], after["bytes"]) == (2000, 173_842, CNN.stat().st_size)
    assert after["accuracy"] == pytest.approx(0.935, abs=0.002)
    assert set(after["latency"]) == {"1", "32"}
    assert run.json["evaluation"]["before"] is None


def test_a_compressed_file_runs_on_the_graph_that_it_was_made_from(modelzip, sample, digits):
    source = sample("digits_cnn.pt2")
    assert modelzip("quantize", source, "--scheme", "int2", "-q").exit_code == 0
    small = source.with_name("digits_cnn.int2-g128.safetensors")
    run = modelzip("eval", small, "--data", digits, "--reference", source, "--json")
    assert_is("evaluated", run.json)
    before, after = run.json["evaluation"]["before"], run.json["evaluation"]["after"]
    assert before["agreement"] == 1
    assert before["kl"] == 0
    assert after["agreement"] < 1
    assert after["kl"] > 0
    moved = small.rename(small.parent / "elsewhere.safetensors")
    source.unlink()
    run = modelzip("eval", moved, "--data", digits)
    assert run.exit_code == 2
    assert "--arch digits_cnn.pt2" in run.stderr


def test_several_models_are_rows_of_one_table(modelzip, digits):
    paths = [CNN, SAMPLES / "digits_cnn.pth"]
    run = modelzip("eval", *paths, "--arch", CNN, "--data", digits, "-j", "1", "--json")
    assert_is("evaluated_many", run.json)
    first, second = (one["evaluation"]["after"] for one in run.json["runs"])
    assert (first["accuracy"], first["nats"]) == (second["accuracy"], second["nats"])
    table = modelzip("eval", *paths, "--arch", CNN, "--data", digits, "-j", "1").stdout
    assert all(str(path) in table for path in paths)


def test_a_language_model_has_a_perplexity(modelzip):
    run = modelzip("eval", LM, "--arch", DOCS_LM, "--data", DOCS, *FEW, "--json")
    assert_is("evaluated", run.json)
    after = run.json["evaluation"]["after"]
    assert after["labels"] == 200 * 64
    assert after["perplexity"] == pytest.approx(np.exp(after["nats"]), rel=1e-4)


def test_linear_layers_run_without_a_network(modelzip):
    run = modelzip("eval", MLP, "--data", FLAT, "-j", "1")
    assert run.exit_code == 0, run.stderr
    assert "ReLU" in run.stdout


def test_a_seed_chooses_the_examples_of_a_limit(modelzip):
    found = [
        modelzip("eval", MLP, "--data", FLAT, *FEW, "--seed", seed, "--json").json["evaluation"]["after"]["nats"]
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


def test_a_gate_that_is_not_met_is_exit_code_4(modelzip, digits):
    passed = modelzip("eval", CNN, "--data", digits, "--fail-under", "accuracy=0.5", "--json")
    assert passed.exit_code == 0
    assert passed.json["gates"] == [
        {
            "metric": "accuracy",
            "limit": 0.5,
            "value": passed.json["evaluation"]["after"]["accuracy"],
            "passed": True,
        }
    ]
    failed = modelzip("eval", CNN, "--data", digits, "--fail-under", "accuracy=1.01", "--json")
    assert failed.exit_code == 4
    assert_is("evaluated", failed.json)
    unknown = modelzip("eval", CNN, "--data", digits, "--fail-under", "agreement=0.5")
    assert unknown.exit_code == 4
    assert "--reference" in unknown.stderr


def test_reports_are_written_as_files_too(modelzip, tmp_path, digits):
    files = [tmp_path / "report.json", tmp_path / "report.md"]
    options = [option for file in files for option in ("--report", file)]
    assert modelzip("eval", CNN, "--data", digits, *options).exit_code == 0
    assert_is("evaluated", json.loads(files[0].read_text()))
    assert "| model | accuracy |" in files[1].read_text()


def test_what_does_not_fit_is_said_in_a_line(modelzip, tmp_path, sample, digits):
    with np.load(DIGITS) as arrays:
        x, y = arrays["x"][:20], arrays["y"][:20]
    np.savez(tmp_path / "high.npz", x=x, y=y + 5)
    np.savez(tmp_path / "wide.npz", x=np.zeros((4, 1, 8, 8), np.float32))
    weights = sample("digits_cnn.pth")
    for code, words, arguments in (
        (2, "--data", (CNN,)),
        (2, "nothing.npz", (CNN, "--data", "nothing.npz")),
        (2, "a checkpoint, not data", (CNN, "--data", CNN)),
        (2, "--arch file.py:Net", (weights, "--data", digits)),
        (2, "does not fit", (LM, "--arch", CNN, "--data", digits)),
        (2, "did you mean 'accuracy'", (CNN, "--data", digits, "--fail-under", "acuracy=1")),
        (2, "no Missing", (weights, "--arch", f"{SAMPLES / 'train.py'}:Missing", "--data", digits)),
        (1, "outputs", (CNN, "--data", tmp_path / "high.npz")),
        (1, "[n, 1, 8, 8]", (CNN, "--data", tmp_path / "wide.npz")),
        (2, "standard input", ("-", "--data", digits)),
    ):
        run = modelzip("eval", *arguments)
        assert (run.exit_code, run.stderr.count("\n")) == (code, 1), run.stderr
        assert words in run.stderr


def test_a_stop_leaves_nothing(environment, tmp_path):
    command = [PROGRAM, "eval", CNN, "--data", DIGITS, "--report", tmp_path / "report.json"]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGINT)
    process.communicate()
    assert process.returncode in (130, 0)  # 0: on a machine that is done in a second
    assert process.returncode == 0 or not [*tmp_path.iterdir()]
