"""`modelzip distill` through the program: what it writes, what it says, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from modelzip_cli import load_file
from tests.conftest import PROGRAM, SAMPLES
from tests.test_report_schema import assert_is

TRAIN, TEST = SAMPLES / "digits_train.npz", SAMPLES / "digits_test.npz"
CLASSES = SAMPLES / "train.py"
SHORT = ("--limit", "160", "--max-steps", "6", "-j", "1", "--no-progress")


@pytest.fixture
def net(tmp_path) -> Path:
    """A file with a smaller network, as a user would write it."""
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\n\n\n"
        "class Small(nn.Module):\n"
        "    def __init__(self, width=4, classes=10):\n"
        "        super().__init__()\n"
        "        self.stem = nn.Conv2d(1, width, 3, 2)\n"
        "        self.bn = nn.BatchNorm2d(width)\n"
        "        self.head = nn.Linear(width, classes)\n\n"
        "    def forward(self, x):\n"
        "        return self.head(self.bn(self.stem(x)).relu().mean(dim=(2, 3)))\n"
    )
    return path


def test_a_strong_student_is_cut_taught_and_quantized(modelzip, sample, tmp_path):
    teacher = sample("digits_cnn.pt2")
    before = teacher.read_bytes()
    run = modelzip("distill", teacher, "--data", TRAIN, "--student", "width=0.5", *SHORT, "--then", "int8", "--json")
    assert run.exit_code == 0, run.stderr
    assert_is("distillation", run.json)
    evaluation = run.json["evaluation"]
    assert evaluation["teacher"]["agreement"] == 1
    assert evaluation["after"]["kl"] < evaluation["before"]["kl"]
    assert evaluation["after"]["parameters"] == 44_014
    student, small = tmp_path / "digits_cnn.student.pt2", tmp_path / "digits_cnn.student.int8.safetensors"
    assert run.json["output"]["bytes"] == student.stat().st_size
    assert run.json["quantized"]["bytes"] == small.stat().st_size < student.stat().st_size
    assert teacher.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((teacher.name, student.name, small.name))
    assert torch.export.load(student).module()(torch.rand(3, 1, 12, 12)).shape == (3, 10)
    runs = modelzip("eval", student, small, "--data", TEST, "-j", "1", "--json", "--limit", "300").json["runs"]
    assert runs[0]["evaluation"]["after"]["accuracy"] == pytest.approx(
        runs[1]["evaluation"]["after"]["accuracy"], abs=0.05
    )


def test_the_same_seed_gives_the_same_file(modelzip, sample, tmp_path):
    teacher = sample("digits_cnn.pt2")
    for name, seed in (("a.pt2", 0), ("b.pt2", 0), ("c.pt2", 1)):
        options = ("--kind", "weak", "--seed", seed, "-o", tmp_path / name, "-q")
        assert modelzip("distill", teacher, "--data", TRAIN, *SHORT, *options).exit_code == 0
    first, again, other = ((tmp_path / name).read_bytes() for name in ("a.pt2", "b.pt2", "c.pt2"))
    assert first == again != other


def test_a_network_of_the_users_own_learns_and_runs_again(modelzip, sample, net, tmp_path):
    teacher = sample("digits_cnn.pth")
    arch = ("--arch", f"{CLASSES}:DigitsCNN")
    student = ("--student", f"{net}:Small", "--student-args", '{"width": 8}')
    run = modelzip("distill", teacher, *arch, "--data", TRAIN, *student, *SHORT)
    assert run.exit_code == 0, run.stderr
    assert "weak" in run.stdout
    written = tmp_path / "digits_cnn.student.pth"
    assert load_file(written)["stem.weight"].shape == (8, 1, 3, 3)
    unknown = modelzip("eval", written, "--data", TEST)
    assert unknown.exit_code == 2
    assert "net.py:Small" in unknown.stderr
    assert (
        modelzip(
            "eval", written, "--arch", f"{net}:Small", "--arch-args", '{"width": 8}', "--data", TEST, "--limit", "50"
        ).exit_code
        == 0
    )


def test_a_language_model_loses_a_layer(modelzip, tmp_path):
    teacher, output = SAMPLES / "docs_lm_trainer.pth", tmp_path / "small.pt2"
    options = ("--arch", f"{CLASSES}:DocsLM", "--data", SAMPLES / "docs_train.npz", "--student", "layers=0,1,3")
    run = modelzip("distill", teacher, *options, *SHORT, "-o", output, "--json")
    assert run.exit_code == 0, run.stderr
    assert_is("distillation", run.json)
    assert run.json["evaluation"]["after"]["parameters"] == 615_680
    assert not [name for name in load_file(output) if name.startswith("blocks.3.")]


def test_a_gate_that_is_not_met_leaves_nothing(modelzip, sample, tmp_path):
    teacher = sample("digits_cnn.pt2")
    run = modelzip("distill", teacher, "--data", TRAIN, *SHORT, "--fail-under", "accuracy=1.01")
    assert run.exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == [teacher.name]


def test_what_cannot_be_is_refused_in_a_line(modelzip, sample, net, tmp_path):
    teacher = sample("digits_cnn.pt2")
    with np.load(TRAIN) as arrays:
        x, y = arrays["x"][:60], arrays["y"][:60]
    np.savez(tmp_path / "one_class.npz", x=x, y=np.zeros_like(y))
    np.savez(tmp_path / "shifted.npz", x=x, y=(y + 3) % 10)
    np.savez(tmp_path / "few.npz", x=x[:2], y=y[:2])
    np.savez(tmp_path / "unlabelled.npz", x=x)
    (tmp_path / "there.pt2").write_bytes(b"")
    for code, words, options in (
        (2, "no 'widht'", ("--student", "widht=0.5")),
        (2, "between 0 and 1", ("--student", "width=2")),
        (2, "exclude each other", ("--student", "depth=0.5,layers=0,1")),
        (2, "--ratio finds the width", ("--student", "width=0.5", "--ratio", "2x")),
        (3, "cannot be reached", ("--ratio", "1000x")),
        (2, "there are strong, weak", ("--kind", "medium")),
        (2, "int9", ("--then", "int9")),
        (2, "no resume point", ("--resume",)),
        (2, "exists", ("-o", "there.pt2")),
        (2, "blocks", ("--student", "layers=0,7")),
        (2, "the same classes", ("--student", f"{net}:Small", "--student-args", '{"classes": 9}')),
        (2, "no labels", ("--data", "unlabelled.npz", "--labels", "0.5")),
        (1, "one class", ("--data", "one_class.npz")),
        (1, "most frequent answer", ("--data", "shifted.npz")),
        (1, "too few", ("--data", "few.npz")),
    ):
        data = () if "--data" in options else ("--data", TRAIN, "--limit", "64")
        run = modelzip("distill", teacher, *data, "--max-steps", "2", "-j", "1", "--no-progress", *options)
        assert (run.exit_code, run.stderr.count("\n")) == (code, 1), (options, run.stderr)
        assert words in run.stderr, (options, run.stderr)
    assert not [*tmp_path.glob("*student*")]


def test_a_stopped_run_keeps_the_best_and_goes_on_to_the_same_weights(modelzip, environment, sample, net, tmp_path):
    teacher = sample("digits_cnn.pt2")
    options = ("--data", TRAIN, "--limit", "160", "--student", f"{net}:Small", "--max-steps", "400", "-j", "1")
    command = [PROGRAM, "distill", teacher, *options, "--no-progress", "-o", "stopped.pth"]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    point = tmp_path / "stopped.pth.resume"
    for _ in range(1000):
        if point.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 143
    assert b"--resume" in out
    assert point.exists()
    assert (tmp_path / "stopped.pth").exists()
    other = modelzip("distill", teacher, *options, "-o", "stopped.pth", "--resume", "--seed", "1")
    assert other.exit_code == 2
    assert "seed" in other.stderr
    assert modelzip("distill", teacher, *options, "-o", "stopped.pth", "--resume", "-q").exit_code == 0
    assert modelzip("distill", teacher, *options, "-o", "whole.pth", "-q").exit_code == 0
    assert not point.exists()
    stopped, whole = load_file(tmp_path / "stopped.pth"), load_file(tmp_path / "whole.pth")
    assert all(torch.equal(stopped[name], tensor) for name, tensor in whole.items())
