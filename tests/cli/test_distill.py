"""`modelzip distill` as people run it: what it prints, writes, leaves behind and refuses."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelzip_cli.errors import CannotWrite
from modelzip_cli.running import distill as module
from modelzip_cli.running import evaluate, resume
from modelzip_cli.running.training import Trainer
from tests.conftest import PROGRAM, SAMPLES
from tests.exports import exported
from tests.residual import Residual
from tests.teaching import make_teacher
from tests.test_report_schema import assert_is

NET = Path(__file__).parents[1] / "residual.py"
SMALL = ("--student", f"{NET}:Small")  # nothing to cut and nothing to export, so it is quick


@pytest.fixture(scope="session")
def school(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher as teacher.pt2, teacher.pth and nested.pth, and data of many kinds."""
    folder = tmp_path_factory.mktemp("school")
    net, x, y = make_teacher()
    (folder / "teacher.pt2").write_bytes(exported(net, torch.from_numpy(x[:2])))
    torch.save(net.state_dict(), folder / "teacher.pth")
    torch.save({"ema": net.state_dict(), "model": Residual().state_dict()}, folder / "nested.pth")
    out_of_range, nothing = y.copy(), x.copy()
    out_of_range[17], nothing[17] = 3, np.nan
    for name, arrays in {
        "train": (x, y),
        "unlabelled": (x, None),
        "out_of_range": (x, out_of_range),
        "one_class": (x, np.ones_like(y)),
        "chance": (x, np.roll(y, 1)),
        "few": (x[:3], y[:3]),
        "handful": (x[:20], y[:20]),
        "narrow": (x[:, :5], y),
        "nan": (nothing, y),
    }.items():
        np.savez(folder / f"{name}.npz", **{key: a for key, a in zip("xy", arrays, strict=True) if a is not None})
    return folder


@pytest.fixture(autouse=True)
def _latency_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "LATENCY_RUNS", 1)


@pytest.fixture
def distill(modelzip: Any, school: Path) -> Callable[..., Any]:
    """Six steps on one thread: `distill("--kind", "weak")`; `data` and `teacher` say which."""

    def run(*options: object, data: str = "train", teacher: str = "teacher.pt2") -> Any:
        source = school / f"{data}.npz"
        return modelzip("distill", school / teacher, "--data", source, "--max-steps", 6, "-j", 1, *options)

    return run


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets a signal to stop come in some step, once."""

    def at(number: int) -> None:
        take = Trainer.step

        def step(self: Trainer, place: int) -> float:
            if place == number - 1:
                monkeypatch.setattr(Trainer, "step", take)
                signal.raise_signal(signal.SIGTERM)
            return take(self, place)

        monkeypatch.setattr(Trainer, "step", step)

    return at


def left(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_student_is_written_beside_its_teacher_and_runs(modelzip, school, tmp_path):
    teacher = tmp_path / "teacher.pt2"
    teacher.write_bytes((school / "teacher.pt2").read_bytes())
    run = modelzip("distill", teacher, "--data", school / "train.npz", "--max-steps", 20, "-j", 1)
    assert run.exit_code == 0
    assert left(tmp_path) == ["teacher.pt2", "teacher.student.pt2"]
    assert teacher.read_bytes() == (school / "teacher.pt2").read_bytes()
    assert [line.split()[0] for line in run.stdout.splitlines() if line.startswith(("teacher ", "student "))] == [
        "teacher",
        "student",
        "student",
        "student",
    ]
    for word in ("student before", "student after", "4 of 5 groups of channels", "20 of 20 steps of 64", "held-out"):
        assert word in run.stdout
    lines = run.stderr.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("step 2 of 20  loss ")
    found = modelzip("eval", tmp_path / "teacher.student.pt2", "--data", school / "train.npz", "--json", "-j", 1).json
    assert found["evaluation"]["after"]["accuracy"] > 0.6
    assert torch.export.load(tmp_path / "teacher.student.pt2").module()(torch.rand(3, 6)).shape == (3, 3)


def test_the_same_seed_gives_the_same_file(distill, tmp_path):
    for name, seed in (("a.pth", 0), ("b.pth", 0), ("c.pth", 1)):
        assert distill("-o", tmp_path / name, *SMALL, "--seed", seed).exit_code == 0
    first, again, other = ((tmp_path / name).read_bytes() for name in ("a.pth", "b.pth", "c.pth"))
    assert first == again != other


def test_quiet_prints_the_paths_of_outputs_alone(distill, tmp_path):
    run = distill("-o", tmp_path / "s.pth", *SMALL, "--quiet", "--then", "fp16")
    assert (run.exit_code, run.stderr) == (0, "")
    assert run.stdout.split() == [str(tmp_path / name) for name in ("s.pth", "s.fp16.safetensors")]
    assert left(tmp_path) == ["s.fp16.safetensors", "s.pth"]


def test_the_table_may_be_measured_on_other_data(distill, school, tmp_path):
    run = distill("-o", tmp_path / "s.pth", *SMALL, "--test-data", school / "handful.npz", "--no-progress")
    assert "measured   on " in run.stdout
    assert "handful.npz" in run.stdout
    assert "accuracy" in run.stdout


def test_the_report_is_what_the_schema_says(distill, school, tmp_path):
    report = distill("-o", tmp_path / "s.pt2", "--json", "--no-progress", "--then", "int8", "--seed", 3).json
    assert_is("distillation", report)
    assert report["evaluation"]["teacher"]["parameters"] == sum(p.numel() for p in Residual().parameters())
    assert report["output"]["bytes"] == (tmp_path / "s.pt2").stat().st_size == report["evaluation"]["after"]["bytes"]
    assert report["quantized"]["bytes"] == (tmp_path / "s.int8.safetensors").stat().st_size
    assert report["evaluation"]["teacher"]["agreement"] == 1
    assert [point["step"] for point in report["training"]["history"]] == [*range(7)]
    assert report["recipe"]["seed"] == report["recipe"]["lesson"]["seed"] == 3


def test_a_strong_student_begins_ahead_of_a_weak_one(distill, tmp_path):
    options = ("--student", "layers=0,2", "--json")
    found = {
        kind: distill("-o", tmp_path / f"{kind}.pt2", "--kind", kind, *options).json["evaluation"]
        for kind in ("strong", "weak")
    }
    assert found["strong"]["before"]["kl"] < found["weak"]["before"]["kl"]
    assert found["strong"]["after"]["parameters"] == found["weak"]["after"]["parameters"]


def test_an_image_model_is_cut_taught_and_quantized(modelzip, tmp_path):
    run = modelzip(
        *(
            "distill",
            SAMPLES / "digits_cnn.pt2",
            "--data",
            SAMPLES / "digits_train.npz",
            "--limit",
            160,
            "--ratio",
            "8x",
        ),
        *("--max-steps", 4, "--test-data", SAMPLES / "digits_test.npz", "-o", tmp_path / "s.pt2", "--json", "-j", 1),
    )
    assert_is("distillation", run.json)
    evaluation = run.json["evaluation"]
    assert evaluation["teacher"]["accuracy"] == 0.935
    assert evaluation["after"]["examples"] == 2000
    assert evaluation["after"]["parameters"] <= evaluation["teacher"]["parameters"] / 8


def test_a_language_model_loses_a_layer(modelzip, tmp_path):
    arch = f"{SAMPLES / 'train.py'}:DocsLM"
    run = modelzip(
        *("distill", SAMPLES / "docs_lm_trainer.pth", "--arch", arch, "--data", SAMPLES / "docs_train.npz"),
        *("--limit", 20, "--max-steps", 2, "--student", "layers=0,1,3", "-o", tmp_path / "s.pth", "--json", "-j", 1),
    )
    assert_is("distillation", run.json)
    evaluation = run.json["evaluation"]
    assert evaluation["before"]["nats"] < evaluation["teacher"]["nats"] + 1
    assert run.json["notes"] == ["dropped blocks.2 of 4 layers"]
    options = ("--data", SAMPLES / "docs_test.npz", "--limit", 4, "-j", 1)
    run = modelzip("eval", tmp_path / "s.pth", "--arch", arch, "--arch-args", '{"layers": 3}', *options)
    assert run.exit_code == 0


def test_a_language_model_teaches_a_small_one_of_its_class(modelzip, tmp_path):
    arch, size = f"{SAMPLES / 'train.py'}:DocsLM", '{"width": 16, "layers": 1, "heads": 2}'
    run = modelzip(
        *("distill", SAMPLES / "docs_lm_trainer.pth", "--arch", arch, "--data", SAMPLES / "docs_train.npz"),
        *("--student", arch, "--student-args", size, "--limit", 20, "--max-steps", 2, "-j", 1),
        *("-o", tmp_path / "s.safetensors", "--json"),
    )
    assert_is("distillation", run.json)
    assert run.json["recipe"]["kind"] == "weak"
    assert run.json["output"]["container"] == "safetensors"
    options = ("--data", SAMPLES / "docs_test.npz", "--limit", 4, "-j", 1)
    assert modelzip("eval", tmp_path / "s.safetensors", "--arch", arch, "--arch-args", size, *options).exit_code == 0


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_class_run_with_it(distill, modelzip, school, tmp_path, suffix):
    path = tmp_path / f"s{suffix}"
    run = distill("--student", f"{NET}:Residual", "--student-args", '{"width": 8}', "-o", path, teacher="teacher.pt2")
    assert run.exit_code == 0
    data = ("--data", school / "train.npz", "-j", 1)
    refused = modelzip("eval", path, *data)
    assert refused.exit_code == 2
    assert f"--arch {NET}:Residual --arch-args '{{\"width\": 8}}'" in refused.stderr
    arguments = ("--arch", f"{NET}:Residual", "--arch-args", '{"width": 8}')
    assert modelzip("eval", path, *arguments, *data).exit_code == 0


def test_a_quantized_student_runs_with_the_graph_beside_it(distill, modelzip, school, tmp_path):
    assert distill("-o", tmp_path / "s.pt2", "--then", "int8").exit_code == 0
    run = modelzip("eval", tmp_path / "s.int8.safetensors", "--data", school / "train.npz", "-j", 1)
    assert run.exit_code == 0
    assert "the graph of" in run.stdout


def test_a_nested_checkpoint_is_chosen_by_its_key(distill, tmp_path):
    options = ("--arch", f"{NET}:Residual", *SMALL, "--json")
    report = distill("-o", tmp_path / "s.pth", "--key", "ema", *options, teacher="nested.pth").json
    assert_is("distillation", report)
    run = distill("-o", tmp_path / "m.pth", "--key", "model", *options, teacher="nested.pth")
    assert run.exit_code == 1
    assert "the teacher is right in" in run.stderr


def test_output_goes_into_a_folder_that_is_made(distill, tmp_path):
    run = distill("--output-dir", tmp_path / "new", "-q")
    assert run.stdout.split() == [str(tmp_path / "new" / "teacher.student.pt2")]
    run = distill("--output-dir", tmp_path / "new", "-o", "s.pt2")
    assert run.exit_code == 2
    assert "choose one" in run.stderr


def test_reports_are_written_as_files(distill, tmp_path):
    run = distill("-o", tmp_path / "s.pth", "--report", tmp_path / "r.json", "--report", tmp_path / "r.md", "-q")
    assert run.exit_code == 0
    assert_is("distillation", json.loads((tmp_path / "r.json").read_text()))
    assert "| student after |" in (tmp_path / "r.md").read_text()
    assert "****" not in (tmp_path / "r.md").read_text()
    run = distill("-f", "-o", tmp_path / "s.pth", "--report", tmp_path / "s.xml")
    assert run.exit_code == 2
    assert "ends in .json, .md" in run.stderr


def test_a_temperature_is_tried(distill, tmp_path):
    report = distill("-o", tmp_path / "s.pth", *SMALL, "--temperature", "auto", "--json").json
    assert report["recipe"]["lesson"]["temperature"] in (1, 4)


@pytest.mark.parametrize("loss", ["features", "jacobian"])
def test_what_else_there_is_to_learn(distill, tmp_path, loss):
    run = distill("-o", tmp_path / "s.pt2", "--loss", loss, "--json")
    assert run.exit_code == 0
    assert run.json["recipe"]["lesson"]["loss"] == loss


def test_data_without_labels_will_do(distill, tmp_path):
    report = distill("-o", tmp_path / "s.pth", *SMALL, "--json", data="unlabelled").json
    assert_is("distillation", report)
    assert report["evaluation"]["after"]["accuracy"] is None
    assert report["recipe"]["lesson"]["labels"] == 0
    run = distill("-o", tmp_path / "l.pth", *SMALL, "--labels", 0.5, data="unlabelled")
    assert run.exit_code == 2
    assert "unlabelled.npz has no labels: leave --labels away" in run.stderr


def test_a_handful_of_examples_will_do(distill, tmp_path):
    assert distill("-o", tmp_path / "s.pt2", data="handful").exit_code == 0


def test_a_run_that_breaks_says_where_and_keeps_the_best(distill, tmp_path, monkeypatch):
    take = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, step: float("nan") if step == 3 else take(self, step))
    report = distill("-o", tmp_path / "s.pth", *SMALL, "--json").json
    assert_is("distillation", report)
    (warning,) = report["warnings"]
    assert warning.startswith("the loss is not a number at step 4: the student is that of step ")
    assert left(tmp_path) == ["s.pth"]


# --- outputs that exist, gates ----------------------------------------------------------------------------------------


def test_an_output_that_exists_is_replaced_on_demand_alone(distill, tmp_path):
    path = tmp_path / "s.pth"
    path.write_text("precious")
    run = distill("-o", path, *SMALL)
    assert run.exit_code == 2
    assert run.stderr.endswith("s.pth exists; -f replaces it\n")
    assert path.read_text() == "precious"
    assert distill("-o", path, *SMALL, "-f").exit_code == 0
    assert path.read_bytes().startswith(b"PK")


def test_a_quantized_output_that_exists_is_seen_before_anything_is_done(distill, tmp_path):
    (tmp_path / "s.int8.safetensors").write_text("precious")
    run = distill("-o", tmp_path / "s.pt2", "--then", "int8")
    assert run.exit_code == 2
    assert "s.int8.safetensors exists" in run.stderr
    assert left(tmp_path) == ["s.int8.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fail-under", "accuracy=1.1"], "accuracy is 0."),
        (["--fail-under", "agreement=0.1", "--fail-under", "agreement=1.1"], "agreement is 0."),
        (["--fail-under", "perplexity-ratio=9"], "perplexity-ratio is "),
    ],
)
def test_a_gate_that_is_not_met_leaves_nothing(distill, tmp_path, options, message):
    run = distill("-o", tmp_path / "s.pth", *SMALL, *options)
    assert run.exit_code == 4
    assert message in run.stderr
    assert left(tmp_path) == []


def test_a_gate_holds_for_the_quantized_student_too(distill, tmp_path, monkeypatch):
    check, asked = module.check_gates, []

    def twice(gates: Any, found: Any) -> Any:
        asked.append(found.bytes)
        return check(gates if len(asked) == 3 else (), found)  # of the teacher, of the student, of what it became

    monkeypatch.setattr(module, "check_gates", twice)
    run = distill("-o", tmp_path / "s.pth", *SMALL, "--then", "int8", "--fail-under", "agreement=1.1")
    assert run.exit_code == 4
    assert "agreement is " in run.stderr
    assert left(tmp_path) == []


def test_a_gate_that_is_met_is_in_the_report(distill, tmp_path):
    report = distill("-o", tmp_path / "s.pth", *SMALL, "--fail-under", "agreement=0.1", "--json").json
    assert [(gate["metric"], gate["limit"], gate["passed"]) for gate in report["gates"]] == [("agreement", 0.1, True)]


def test_a_gate_on_labels_that_are_not_there_fails_before_anything_is_learnt(distill, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "run", lambda *_: pytest.fail("it learns"))
    run = distill("-o", tmp_path / "s.pt2", "--fail-under", "accuracy=0.1", data="unlabelled")
    assert run.exit_code == 4
    assert "accuracy is not known without labels" in run.stderr


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("chance", "teacher.pt2: the teacher is right in"),
        ("one_class", "one_class.npz: all 200 examples have the label 1"),
        ("out_of_range", "out_of_range.npz: example 17 .*the label is 3, but the model has 3 outputs"),
        ("few", "few.npz: 3 examples are too few"),
        ("narrow", r"narrow.npz: examples are \[n, 5\], but the model takes \[n, 6\]"),
        ("nan", "nan.npz: example 17 .*teacher.pt2 gives NaN for it"),
        ("nosuch", "nosuch.npz"),
    ],
)
def test_data_that_do_not_fit_are_refused_in_a_line(distill, tmp_path, data, message):
    run = distill("-o", tmp_path / "s.pt2", "--no-progress", data=data)
    assert run.exit_code in (1, 2)
    assert re.search(message, run.stderr)
    assert len(run.stderr.splitlines()) == 1
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--student", f"{NET}:Small", "--student-args", '{"classes": 4}'], 2, "need the same classes"),
        (["--student", f"{NET}:Small", "--loss", "features"], 2, "needs a student that is cut from the teacher"),
        (["--student", f"{NET}:Small", "--kind", "strong"], 2, "no weight has the name and shape"),
        (["--student", f"{NET}:Small", "--student-args", '{"hiden": 4}'], 2, "unexpected keyword argument 'hiden'"),
        (["--student", "layers=0,9"], 2, "no layer 9: blocks has 0, 1, 2"),
        (["--ratio", "1000x"], 3, "the fewest are"),
    ],
)
def test_students_that_cannot_be_are_refused_before_anything_is_learnt(
    distill, tmp_path, monkeypatch, options, code, message
):
    monkeypatch.setattr(Trainer, "run", lambda *_: pytest.fail("it learns"))
    run = distill("-o", tmp_path / "s.pt2", *options)
    assert run.exit_code == code
    assert message in run.stderr
    assert left(tmp_path) == []


def test_a_student_that_cannot_be_exported_says_so_before_it_learns(distill, tmp_path, monkeypatch):
    (tmp_path / "branches.py").write_text(
        "import torch\n"
        "class Branches(torch.nn.Linear):\n"
        "    def __init__(self): super().__init__(6, 3)\n"
        "    def forward(self, x): return super().forward(x) if x.sum() > 0 else -super().forward(x)\n"
    )
    monkeypatch.setattr(Trainer, "run", lambda *_: pytest.fail("it learns"))
    run = distill("-o", tmp_path / "s.pt2", "--student", f"{tmp_path / 'branches.py'}:Branches")
    assert run.exit_code == 1
    assert "torch.export cannot export the model" in run.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "s.onnx"], "s.onnx: a student is a file, whose suffix says what is in it"),
        (["-o", "-"], "-: a student is a file"),
        (["-o", "folder"], "folder: a student is a file"),
        (["-o", "nosuch/s.pt2"], "the folder nosuch does not exist"),
        (["--labels", "2"], "--labels 2: write a number from 0 to 1"),
        (["--labels", "nan"], "--labels nan: write a number from 0 to 1"),
        (["--learning-rate", "0"], "--learning-rate 0: write a number"),
        (["--temperature", "0"], "--temperature '0': write a number above 0"),
        (["--temperature", "hot"], "--temperature 'hot': write a number above 0"),
        (["--time", "soon"], "--time 'soon': write a time such as"),
        (["--ratio", "1"], "--ratio '1': write a number above 1"),
        (["--kind", "stronk"], "--kind 'stronk': there are strong, weak; did you mean 'strong'"),
        (["--loss", "soft,features"], "--loss 'soft,features': there are soft"),
        (["--score", "l1"], "--score 'l1': there are l2, taylor"),
        (["--student", "width=2"], "--student 'width=2': write a share"),
        (["--student-args", "{}", "--student", "net.py"], "net.py"),
        (["--then", "int99"], "int99"),
        (["--fail-under", "sqnr=3"], "--fail-under 'sqnr=3': no metric 'sqnr'"),
        (["--batch-size", "1"], "--batch-size"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_a_line(distill, tmp_path, options, message):
    run = distill(*options)
    assert message in run.stderr
    assert run.exit_code in (1, 2)
    assert len(run.stderr.splitlines()) == 1
    assert left(tmp_path) == []


# --- stopping and going on --------------------------------------------------------------------------------------------


def test_a_run_that_is_stopped_keeps_the_best_and_goes_on_to_the_same_file(distill, tmp_path, stopped):
    options = ("--student", f"{NET}:Residual", "--student-args", '{"width": 8}', "--temperature", "auto")
    assert distill("-o", tmp_path / "straight.pth", *options).exit_code == 0
    stopped(4)
    run = distill("-o", tmp_path / "s.pth", *options)
    assert run.exit_code == 143
    assert "--resume goes on from step 4" in run.stdout
    assert left(tmp_path) == ["s.pth", "s.pth.resume", "straight.pth"]
    assert torch.load(tmp_path / "s.pth", weights_only=True)["state_dict"]

    run = distill("-o", tmp_path / "s.pth", *options)
    assert run.exit_code == 2
    assert "exists; -f replaces it" in run.stderr
    run = distill("-o", tmp_path / "s.pth", *options, "--resume", "--seed", 1)
    assert run.exit_code == 2
    assert "s.pth.resume: is of another run: seed was 0, now it is 1; give the same options" in run.stderr
    run = distill("-o", tmp_path / "s.pth", *options, "--resume")
    assert run.exit_code == 0
    assert (tmp_path / "s.pth").read_bytes() == (tmp_path / "straight.pth").read_bytes()
    assert left(tmp_path) == ["s.pth", "straight.pth"]


def test_what_was_stopped_is_not_begun_anew_by_mistake(distill, tmp_path, stopped):
    stopped(2)
    assert distill("-o", tmp_path / "s.pth", *SMALL).exit_code == 143
    (tmp_path / "s.pth").unlink()
    run = distill("-o", tmp_path / "s.pth", *SMALL)
    assert run.exit_code == 2
    assert "s.pth.resume: a run was stopped here: --resume goes on from it, -f begins anew" in run.stderr
    assert distill("-o", tmp_path / "s.pth", *SMALL, "-f").exit_code == 0
    assert left(tmp_path) == ["s.pth"]


def test_a_stopped_run_that_misses_its_gate_can_still_go_on(distill, tmp_path, stopped):
    stopped(2)
    assert distill("-o", tmp_path / "s.pth", *SMALL, "--fail-under", "accuracy=2").exit_code == 4
    assert left(tmp_path) == ["s.pth.resume"]


@pytest.mark.parametrize("content", [None, b"", b"no resume point"])
def test_a_resume_point_that_is_none_is_refused_before_the_teacher_is_opened(distill, tmp_path, content):
    if content is not None:
        (tmp_path / "s.pt2.resume").write_bytes(content)
    run = distill("-o", tmp_path / "s.pt2", "--resume", teacher="nosuch.pt2")
    assert run.exit_code in (1, 2)
    assert "s.pt2.resume: " in run.stderr
    assert "run without --resume" in run.stderr


def test_a_resume_point_that_cannot_be_written_is_a_warning(distill, tmp_path, monkeypatch):
    def full(path: Path, *_: object, **__: object) -> None:
        raise CannotWrite(f"{path}: cannot write: No space left on device")

    monkeypatch.setattr(resume, "write_bytes", full)
    report = distill("-o", tmp_path / "s.pth", *SMALL, "--json").json
    (warning,) = report["warnings"]
    assert warning.startswith("no resume point at step 1: ")
    assert warning.endswith("s.pth.resume: cannot write: No space left on device")
    assert left(tmp_path) == ["s.pth"]


@pytest.fixture
def process(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """The installed program in the background; it is over when the test is."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        words = [PROGRAM, *map(str, arguments)]
        running.append(subprocess.Popen(words, text=True, cwd=tmp_path, env=environment, **pipes))
        return running[-1]

    yield start
    for one in running:
        one.kill()
        one.communicate()


SLOW = """
import time
from torch import nn

class Slow(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.Dropout(0.1), nn.Linear(8, 3))

    def forward(self, x):
        time.sleep(0.02 * self.training)
        return super().forward(x)
"""


def test_sigterm_in_the_middle_of_a_run(process, modelzip, school, tmp_path, tmp_path_factory):
    slow = tmp_path_factory.mktemp("code") / "slow.py"
    slow.write_text(SLOW)
    data = ("--data", school / "train.npz", "-j", 1)
    options = ("distill", school / "teacher.pt2", *data, "--student", f"{slow}:Slow", "--max-steps", 60)
    running = process(*options, "-o", "s.pt2")
    assert running.stderr.readline().startswith("step 6 of 60")
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 143
    assert "stopped by SIGTERM" in err
    assert "student after" in out
    assert left(tmp_path) == ["s.pt2", "s.pt2.resume"]
    assert modelzip("eval", "s.pt2", *data).exit_code == 0

    assert modelzip(*options, "-o", "s.pt2", "--resume").exit_code == 0
    assert modelzip(*options, "-o", "straight.pt2").exit_code == 0
    assert (tmp_path / "s.pt2").read_bytes() == (tmp_path / "straight.pt2").read_bytes()
    assert left(tmp_path) == ["s.pt2", "straight.pt2"]
