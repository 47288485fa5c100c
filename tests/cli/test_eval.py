"""`modelzip eval` through the program: what it prints, its gates, and how it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.conftest import GIVE_UP, PROGRAM, SAMPLES, Run
from tests.net import Net
from tests.test_report_schema import assert_is

CNN, MLP, LM = SAMPLES / "digits_cnn.pt2", SAMPLES / "digits_mlp.pth", SAMPLES / "docs_lm.safetensors"
DIGITS, FLAT, DOCS = (SAMPLES / name for name in ("digits_test.npz", "digits_mlp_test.npz", "docs_test.npz"))
DOCS_LM = f"{SAMPLES / 'train.py'}:DocsLM"


@pytest.fixture
def evaluated(modelzip, classifier) -> Callable[..., Run]:
    """Evaluate a file of the small classifier, by name or path, on its data or on `data`."""

    def run(model: object, *arguments: object, data: object = None, arch: str | None = classifier.arch) -> Run:
        path = classifier.path(model) if isinstance(model, str) and model != "-" else model
        network = [] if arch is None else ["--arch", arch]
        return modelzip("eval", path, "--data", data or classifier.path("data.npz"), *network, "-j", "1", *arguments)

    return run


@pytest.fixture
def changed_data(classifier, tmp_path) -> Callable[..., Path]:
    """The classifier's data with arrays replaced, by functions of them."""

    def change(**changes: Callable[[np.ndarray], np.ndarray]) -> Path:
        with np.load(classifier.path("data.npz")) as arrays:
            np.savez(tmp_path / "changed.npz", **{name: changes.get(name, np.array)(arrays[name]) for name in arrays})
        return tmp_path / "changed.npz"

    return change


def refused(run: Run, exit_code: int, problem: str) -> None:
    """One line, and nothing else, with this in it."""
    assert (run.exit_code, run.stdout, run.stderr.count("\n")) == (exit_code, "", 1), run.stderr
    assert run.stderr.startswith("modelzip: error: ")
    assert problem in run.stderr


# The samples


def test_an_exported_sample_is_as_accurate_as_its_card_says(modelzip):
    run = modelzip("eval", CNN, "--data", DIGITS, "-j", "1", "--json")
    assert run.exit_code == 0, run.stderr
    assert_is("evaluated", run.json)
    after = run.json["evaluation"]["after"]
    assert (after["examples"], after["parameters"], after["bytes"]) == (2000, 173_842, CNN.stat().st_size)
    assert after["accuracy"] == pytest.approx(0.935, abs=0.002)
    assert set(after["latency"]) == {"1", "32"}
    assert run.json["evaluation"]["before"] is None


def test_a_language_model_has_a_perplexity(modelzip):
    run = modelzip("eval", LM, "--arch", DOCS_LM, "--data", DOCS, "--limit", "64", "-j", "1", "--json")
    assert_is("evaluated", run.json)
    after = run.json["evaluation"]["after"]
    assert after["labels"] == 64 * 64
    assert after["nats"] == pytest.approx(1.4337, abs=0.1)
    assert after["perplexity"] == pytest.approx(np.exp(after["nats"]), rel=1e-4)


def test_linear_layers_run_without_a_network(modelzip):
    run = modelzip("eval", MLP, "--data", FLAT, "-j", "1")
    assert run.exit_code == 0, run.stderr
    assert "93.35% ±0.56" in run.stdout
    assert "perceptron of 3 layers, ReLU between them" in run.stdout


# What it prints


def test_a_model_is_a_row_of_a_table(evaluated, classifier):
    run = evaluated("net.pt2", arch=None)
    assert (run.exit_code, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert lines[0].endswith("data.npz: 60 examples")
    assert re.split(r" {2,}", lines[2]) == [
        *("model", "accuracy", "nats/label", "batch 1", "batch 32", "size", "parameters")
    ]
    assert re.split(r" {2,}", lines[3])[:3] == [str(classifier.path("net.pt2")), "90.00% ±3.87", "0.9677"]
    assert "network    exported graph" in run.stdout
    assert "latency    median of a batch, 1 thread" in run.stdout


def test_the_json_of_a_model_is_that_of_the_schema(evaluated, classifier):
    run = evaluated("net.pt2", "--json", arch=None)
    assert (run.exit_code, run.stderr) == (0, "")
    assert_is("evaluated", run.json)
    after = run.json["evaluation"]["after"]
    assert (after["accuracy"], after["examples"], after["labels"], after["top5"]) == (0.9, 60, 60, None)
    assert run.json["evaluation"]["before"] is None
    assert run.json["source"]["path"] == str(classifier.path("net.pt2"))
    assert run.json["network"] == "exported graph"


def test_a_reference_comes_first_and_others_are_held_against_it(evaluated, classifier):
    paths = [classifier.path(name) for name in ("net.pt2", "net.int8.safetensors")]
    reference = ("--reference", paths[0])
    table = evaluated("net.int8.safetensors", *reference, arch=None).stdout.splitlines()
    assert "agreement" in table[2]
    assert [line.split()[0] for line in table[3:5]] == [*map(str, paths)]

    run = evaluated("net.int8.safetensors", *reference, "--json", arch=None)
    assert_is("evaluated", run.json)
    before, after = run.json["evaluation"]["before"], run.json["evaluation"]["after"]
    assert (before["agreement"], before["kl"], before["perplexity-ratio"]) == (1, 0, 1)
    assert 0 < after["kl"] < 0.01
    assert after["perplexity-ratio"] == pytest.approx(np.exp(before["nats"] - after["nats"]), abs=1e-5)
    assert [before["bytes"], after["bytes"]] == [path.stat().st_size for path in paths]


def test_a_reference_may_have_another_network_than_arch(evaluated, classifier, tmp_path):
    save_file(Net(width=4).state_dict(), tmp_path / "student.safetensors")
    options = ("--arch-args", '{"width": 4}', "--reference", classifier.path("net.pt2"), "--json")
    run = evaluated(tmp_path / "student.safetensors", *options)
    assert run.exit_code == 0, run.stderr
    assert run.json["evaluation"]["before"]["accuracy"] == 0.9
    assert run.json["evaluation"]["after"]["parameters"] < 200


def test_several_models_are_rows_of_one_table(evaluated, classifier):
    more = (classifier.path("net.safetensors"), classifier.path("net.int8.safetensors"))
    run = evaluated("net.pt2", *more, "--json")
    assert_is("evaluated_many", run.json)
    assert [Path(one["source"]["path"]).name for one in run.json["runs"]] == [
        *("net.pt2", "net.safetensors", "net.int8.safetensors")
    ]
    first, second, _ = (one["evaluation"]["after"] for one in run.json["runs"])
    assert first["nats"] == pytest.approx(second["nats"], abs=1e-5)
    lines = evaluated("net.pt2", *more).stdout.splitlines()
    assert [line.split()[0] for line in lines[3:6]] == [str(classifier.path("net.pt2")), *map(str, more)]


def test_each_of_several_models_is_a_line_of_jsonl(evaluated, classifier):
    more = classifier.path("net.safetensors")
    lines = evaluated("net.pt2", more, "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line)["source"]["path"] for line in lines] == [str(classifier.path("net.pt2")), str(more)]
    for line in lines:
        assert_is("evaluated", json.loads(line))


def test_data_without_labels_are_enough_for_a_comparison(evaluated, classifier, tmp_path):
    np.save(tmp_path / "x.npy", np.load(classifier.path("data.npz"))["x"])
    options = ("--reference", classifier.path("net.pt2"), "--json")
    run = evaluated("net.int8.safetensors", *options, data=tmp_path / "x.npy")
    assert_is("evaluated", run.json)
    after = run.json["evaluation"]["after"]
    assert (after["labels"], after["accuracy"], after["nats"], after["perplexity-ratio"]) == (0, None, None, None)
    assert after["agreement"] > 0.9


def test_a_seed_chooses_the_examples_of_a_limit(evaluated):
    def nats(*options: object) -> float:
        after = evaluated("net.pt2", *options, "--json").json["evaluation"]["after"]
        assert after["examples"] == 20
        return after["nats"]

    assert nats("--limit", 20) == nats("--limit", 20, "--seed", 0) != nats("--limit", 20, "--seed", 1)
    assert evaluated("net.pt2", "--limit", 999, "--json").json["evaluation"]["after"]["examples"] == 60


def test_a_key_chooses_a_state_dict(evaluated):
    teacher, student = (evaluated("nested.pth", "--key", key, "--json") for key in ("teacher", "student"))
    assert teacher.json["evaluation"]["after"]["accuracy"] == 0.9
    assert student.json["evaluation"]["after"]["accuracy"] < 0.9
    assert_is("evaluated", student.json)


def test_reports_are_written_as_files_too(evaluated, tmp_path):
    files = [tmp_path / "report.json", tmp_path / "report.md"]
    assert evaluated("net.pt2", "--report", files[0], "--report", files[1]).exit_code == 0
    assert_is("evaluated", json.loads(files[0].read_text()))
    assert "| model | accuracy | nats/label |" in files[1].read_text()


def test_nothing_else_is_written(evaluated, classifier, tmp_path):
    before = {path: path.read_bytes() for path in classifier.folder.iterdir()}
    assert evaluated("net.pt2", "--reference", classifier.path("net.int8.safetensors")).exit_code == 0
    assert {path: path.read_bytes() for path in classifier.folder.iterdir()} == before
    assert not [*tmp_path.iterdir()]


def test_the_reference_of_a_perceptron_has_the_right_activation_too(modelzip, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))
    with torch.no_grad():
        net[0].weight.mul_(4)
        net[2].weight.mul_(8)
    x = torch.randn(100, 8)
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=net(x).argmax(dim=1).numpy())
    save_file(net.state_dict(), tmp_path / "mlp.safetensors")
    paths = (tmp_path / "mlp.safetensors", "--reference", tmp_path / "mlp.safetensors")
    run = modelzip("eval", *paths, "--data", tmp_path / "data.npz", "-j", "1", "--json")
    evaluation = run.json["evaluation"]
    assert (evaluation["before"]["accuracy"], evaluation["after"]["agreement"]) == (1.0, 1.0)


# Gates


def test_gates_that_are_met_are_in_the_report(evaluated, classifier):
    gates = ("accuracy=0.9", "agreement=0.9", "perplexity-ratio=0.9")
    options = [option for gate in gates for option in ("--fail-under", gate)]
    run = evaluated("net.int8.safetensors", *options, "--reference", classifier.path("net.pt2"), "--json")
    assert run.exit_code == 0
    assert_is("evaluated", run.json)
    after = run.json["evaluation"]["after"]
    assert [(gate["metric"], gate["limit"], gate["passed"]) for gate in run.json["gates"]] == [
        *(("accuracy", 0.9, True), ("agreement", 0.9, True), ("perplexity-ratio", 0.9, True))
    ]
    assert all(gate["value"] == pytest.approx(after[gate["metric"]], abs=1e-6) for gate in run.json["gates"])


def test_a_gate_that_is_not_met_is_exit_code_4(evaluated):
    run = evaluated("net.pt2", "--fail-under", "accuracy=0.95", "--json")
    assert run.exit_code == 4
    assert_is("evaluated", run.json)  # and no second object for the error
    assert run.stderr.endswith("net.pt2: accuracy is 0.9000, the limit 0.95\n")
    assert "NOT MET" in evaluated("net.pt2", "--fail-under", "accuracy=0.95").stdout


@pytest.mark.parametrize(
    ("metric", "needed"),
    [("accuracy", "labels"), ("agreement", "--reference"), ("perplexity-ratio", "labels and --reference")],
)
def test_a_gate_on_what_is_not_known_is_not_met(evaluated, classifier, tmp_path, metric, needed):
    np.save(tmp_path / "x.npy", np.load(classifier.path("data.npz"))["x"])
    run = evaluated("net.pt2", "--fail-under", f"{metric}=0", "--json", data=tmp_path / "x.npy")
    assert run.exit_code == 4
    assert run.json["gates"] == [{"metric": metric, "limit": 0, "value": None, "passed": False}]
    assert f"{metric} is not known: it needs {needed}" in run.stderr


def test_one_of_several_models_that_fails_its_gate_fails_the_run(evaluated, classifier, tmp_path):
    torch.manual_seed(0)
    save_file(Net().state_dict(), tmp_path / "random.safetensors")
    run = evaluated("net.safetensors", tmp_path / "random.safetensors", "--fail-under", "accuracy=0.8", "--json")
    assert run.exit_code == 4
    assert_is("evaluated_many", run.json)
    assert [one["gates"][0]["passed"] for one in run.json["runs"]] == [True, False]
    assert "random.safetensors: accuracy is" in run.stderr


# What does not fit


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--arch-args", "{}"), "--arch-args are arguments of what --arch names: give both"),
        (("--arch-args", "width=3"), "write a JSON object"),
        (("--mean", "0.5"), "--mean and --std belong together"),
        (("--mean", "a", "--std", "1"), "write a number for each channel"),
        (("--mean", "0.5", "--std", "0"), "write a number for each channel"),
        (("--image-size", "big"), "write a size such as 224 or 224x320"),
        (("--image-size", "8"), "--image-size does not apply to this kind of data"),
        (("--text-key", "text"), "--text-key does not apply to this kind of data"),
        (("--fail-under", "acuracy=1"), "did you mean 'accuracy'?; there are accuracy, agreement, perplexity-ratio"),
        (("--fail-under", "sqnr=20"), "there are accuracy, agreement, perplexity-ratio"),
        (("--fail-under", "accuracy=high"), "write METRIC=VALUE"),
        (("--limit", "0"), "--limit"),
        (("--jobs", "0"), "--jobs 0: write a number from 1 to 1024"),
        (("--format", "yaml"), "--format 'yaml': there are auto, rich"),
        (("--report", "report.html"), "name a file that ends in .json, .md"),
        (("--report", "missing/report.md"), "the folder missing does not exist"),
        (("--tokenizer", "missing.json"), "missing.json: no such file"),
        (("--reference", "missing.pt2"), "missing.pt2: no such file"),
        (("--reference", "-"), "cannot be read from standard input"),
        (("--scheme", "int8"), "--scheme"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_options_are_told(evaluated, arguments, problem):
    arch = None if arguments == ("--arch-args", "{}") else "net.py:Net" if "--arch-args" in arguments else None
    run = evaluated("net.pt2", *arguments, arch=arch)
    assert (run.exit_code, run.stdout) == (2, "")
    assert problem in run.stderr
    assert run.stderr.count("\n") == 1


def test_two_forms_exclude_each_other(evaluated):
    run = evaluated("net.pt2", "--json", "--format", "plain")
    assert run.exit_code == 2
    assert_is("error", run.json)
    assert "exclude each other" in run.json["error"]["message"]


def test_data_have_to_be_named(modelzip, classifier):
    run = modelzip("eval", classifier.path("net.pt2"))
    assert run.exit_code == 2
    assert "--data" in run.stderr
    assert "--help" in run.stderr


def test_what_is_no_data_is_told(evaluated, classifier):
    refused(evaluated("net.pt2", data="nothing.npz"), 2, "nothing.npz: no such file")
    refused(evaluated("net.pt2", data=classifier.path("net.pt2")), 2, "net.pt2: a checkpoint, not data; --data takes")
    refused(evaluated("net.pt2", data=classifier.folder), 2, "")


def test_what_is_no_model_is_told(evaluated, classifier, tmp_path):
    refused(evaluated(tmp_path / "missing.pt2"), 2, "missing.pt2: no such file")
    refused(evaluated("data.npz", arch=None), 1, "a NumPy .npz archive, not a torch checkpoint")
    refused(evaluated("net.safetensors", arch=None), 2, "holds weights but not the network that uses them. Give one of")
    refused(evaluated(tmp_path, arch=None), 2, "a directory, but no Hugging Face model")
    refused(evaluated("-"), 2, "standard input")
    whole = classifier.path("net.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    refused(evaluated(tmp_path / "cut.safetensors"), 1, "cut.safetensors")


def test_weights_of_another_network_are_told(modelzip, classifier):
    run = modelzip("eval", LM, "--arch", classifier.arch, "--data", classifier.path("data.npz"))
    refused(run, 2, f"{LM}: does not fit --arch {classifier.arch}: 6 missing: first.weight, first.bias, ")


def test_a_reference_of_other_classes_is_told(evaluated, classifier, tmp_path):
    run = evaluated("net.pt2", "--reference", CNN, arch=None)
    refused(run, 1, "digits_cnn.pt2: the model fails on float32 [2, 16]: ")
    (tmp_path / "four.py").write_text("from torch import nn\ndef net(): return nn.Sequential(nn.Linear(16, 4))")
    save_file({"0.weight": torch.ones(4, 16), "0.bias": torch.ones(4)}, tmp_path / "four.safetensors")
    run = evaluated(tmp_path / "four.safetensors", "--reference", classifier.path("net.pt2"), arch="four.py:net")
    refused(run, 1, "net.pt2: gives 3 scores where ")


def test_labels_out_of_range_are_named(evaluated, changed_data):
    data = changed_data(y=lambda y: y + 1)
    refused(evaluated("net.pt2", data=data), 1, "the label is 3, but the model has 3 outputs")


def test_one_class_is_not_enough(evaluated, changed_data):
    refused(evaluated("net.pt2", data=changed_data(y=np.zeros_like)), 1, "all 60 examples have the label 0; one class")


def test_one_example_is_not_enough(evaluated, changed_data):
    data = changed_data(x=lambda x: x[:1], y=lambda y: y[:1])
    refused(evaluated("net.pt2", data=data), 1, "one example only")


def test_data_of_another_shape_are_told(evaluated, changed_data):
    data = changed_data(x=lambda x: x[:, :9])
    refused(evaluated("net.pt2", data=data, arch=None), 1, "examples are [n, 9], but the model takes [n, 16]")
    refused(evaluated("net.safetensors", data=data), 1, "the model fails on float32 [2, 9]: RuntimeError: ")


def test_weights_that_are_no_numbers_are_never_right(evaluated, classifier, tmp_path):
    tensors = load_file(classifier.path("net.safetensors"))
    save_file(tensors | {"head.bias": torch.full((3,), torch.nan)}, tmp_path / "nan.safetensors")
    options = ("--reference", classifier.path("net.pt2"), "--fail-under", "perplexity-ratio=0.5", "--json")
    run = evaluated(tmp_path / "nan.safetensors", *options)
    assert run.exit_code == 4
    assert_is("evaluated", run.json)
    after = run.json["evaluation"]["after"]
    assert (after["accuracy"], after["agreement"], after["nats"], after["kl"]) == (0, 0, None, None)
    assert run.json["gates"][0]["value"] is None
    assert run.json["warnings"] == [
        f"{tmp_path / 'nan.safetensors'}: scores of 60 examples are NaN or infinite; they count as wrong"
    ]
    table = evaluated(tmp_path / "nan.safetensors").stdout
    assert "0.00%" in table
    assert "NaN or infinite" in table


def test_a_report_may_not_replace_a_model(evaluated, classifier, tmp_path):
    shutil.copy(classifier.path("net.safetensors"), tmp_path / "net.json")  # found by content, not by its name
    refused(evaluated(tmp_path / "net.json", "--report", tmp_path / "net.json"), 2, "would change the source")
    refused(
        evaluated("net.pt2", "--reference", tmp_path / "net.json", "--report", tmp_path / "net.json"), 2, "would change"
    )


# Code of the user's own

CHATTY = """
print("imported")
import torch
from tests.net import Net

class Chatty(Net):
    def __init__(self):
        super().__init__()
        print("built")

    def forward(self, x):
        print("called")
        return super().forward(x)

class Data:
    def __len__(self):
        return 8

    def __getitem__(self, row):
        print("read")
        return torch.full((16,), float(row)), row % 3

class Broken(Net):
    def forward(self, x):
        return self.no_such(x)
"""


@pytest.fixture
def chatty(tmp_path) -> Path:
    """Code that prints whatever it does."""
    (tmp_path / "chatty.py").write_text(CHATTY)
    return tmp_path / "chatty.py"


def test_what_the_users_code_prints_does_not_spoil_the_report(evaluated, chatty):
    run = evaluated("net.safetensors", "--json", arch=f"{chatty}:Chatty", data=f"{chatty}:Data")
    assert run.exit_code == 0
    assert_is("evaluated", run.json)
    assert {"imported", "built", "called", "read"} <= set(run.stderr.split())


def test_code_that_raises_is_a_line_and_a_traceback_with_debug(evaluated, chatty):
    run = evaluated("net.safetensors", arch=f"{chatty}:Broken")
    assert run.exit_code == 1
    assert "AttributeError: 'Broken' object has no attribute 'no_such'" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    run = evaluated("net.safetensors", "--debug", arch=f"{chatty}:Broken")
    assert "return self.no_such(x)" in run.stderr


def test_a_script_that_reads_its_own_arguments_is_no_silent_success(evaluated, tmp_path):
    (tmp_path / "train.py").write_text("import argparse\nargparse.ArgumentParser().parse_args()\n")
    run = evaluated("net.safetensors", arch=f"{tmp_path / 'train.py'}:Net")
    assert run.exit_code == 1
    assert "put what it does as a program under if __name__ == '__main__':" in run.stderr


# As a process


def test_head_of_a_report_is_a_success(environment, tmp_path, classifier):
    arguments = (classifier.path("net.pt2"), "--data", classifier.path("data.npz"), "--json", "-j", "1")
    done = subprocess.run(
        ["sh", "-c", '{ "$0" eval "$@"; echo "code $?" >&2; } | head -c 1', PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
        timeout=GIVE_UP,
    )
    assert (done.stdout, done.stderr) == ("{", "code 0\n")


WAITING = """
import pathlib, time

class Data:
    def __len__(self):
        return 4

    def __getitem__(self, row):
        pathlib.Path("waits").touch()
        time.sleep(300)
"""


def test_a_stop_leaves_nothing(environment, tmp_path, classifier):
    (tmp_path / "waiting.py").write_text(WAITING)
    process = subprocess.Popen(
        [PROGRAM, "eval", classifier.path("net.pt2"), "--data", "waiting.py:Data", "--report", "report.json"],
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    give_up = time.monotonic() + GIVE_UP
    while not (tmp_path / "waits").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=GIVE_UP)
    assert (process.returncode, stdout) == (130, b"")
    assert stderr.startswith(b"modelzip: stopped by SIGINT")
    assert {path.name for path in tmp_path.iterdir()} == {"waiting.py", "waits"}
