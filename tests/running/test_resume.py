from __future__ import annotations

import copy
import json
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch.fx import GraphModule

from modelzip_cli.errors import BrokenCheckpoint, CannotWrite, FileNotThere, UsageError
from modelzip_cli.running.channels import find_channels
from modelzip_cli.running.cutting import cut
from modelzip_cli.running.features import Features
from modelzip_cli.running.resume import KEY, read_point, restore, resume_path, save_point
from modelzip_cli.running.training import Trainer
from modelzip_cli.running.widths import choose
from tests.residual import Residual
from tests.running.graphs import teacher_graph
from tests.teaching import learn, model_of, points, same_weights, trainer

STEPS = 13
MARKS = {"seed": 0, "data": "abc", "teacher": ["xyz", 10], "seconds": None}


def residual() -> Trainer:
    """A student with dropout and batch norm."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return trainer(Residual(8), steps=STEPS)


@cache
def _narrow() -> GraphModule:
    teacher = teacher_graph()
    channels = find_channels(teacher)
    return cut(teacher, channels, choose(teacher, channels, 0.5))


def with_features() -> Trainer:
    """A student that is cut from the teacher, with maps for what is inside."""
    teacher, student = teacher_graph(), copy.deepcopy(_narrow())
    features = Features(teacher, student, points().batch(np.arange(2)).inputs, "net", 0)
    return trainer(student, model_of(teacher), steps=STEPS, loss="features", features=features)


def with_jacobians() -> Trainer:
    """A student that learns gradients."""
    return trainer(steps=STEPS, loss="jacobian")


MAKERS = {"residual": residual, "features": with_features, "jacobian": with_jacobians}


@pytest.fixture(scope="module")
def straight():
    """Each kind of run, from its first step to its last."""
    done = {name: make() for name, make in MAKERS.items()}
    for learner in done.values():
        learn(learner)
    return done


def stopped_at(make, step, path):
    """The same run, ended after a step and saved there."""
    learner = make()
    learner.run(lambda _: save_point(path, learner, MARKS), lambda: learner.state.step == step, lambda _: None)


@pytest.mark.parametrize("kind", MAKERS)
@given(step=st.integers(1, STEPS - 1))
@example(step=1)
@example(step=STEPS - 1)
@settings(max_examples=2)
def test_a_run_that_goes_on_gives_the_bytes_of_one_that_never_stopped(kind, step, straight, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "student.pt2.resume"
    stopped_at(MAKERS[kind], step, path)
    torch.rand(step)  # whatever else happened in the meantime
    learner = MAKERS[kind]()
    restore(learner, read_point(path), MARKS)
    assert learner.state.step == step
    state, expected = learn(learner), straight[kind].state
    assert same_weights(learner.student.module, straight[kind].student.module)
    assert [dict(point, loss=0) for point in state.history] == [dict(point, loss=0) for point in expected.history]
    assert (state.best_step, state.peak, state.step) == (expected.best_step, expected.peak, STEPS)


def test_a_run_may_be_stopped_as_often_as_one_likes(straight, tmp_path):
    path = tmp_path / "student.pt2.resume"
    stopped_at(residual, 4, path)
    for step in (5, 6, 11):
        learner = residual()
        restore(learner, read_point(path), MARKS)
        learner.run(
            lambda _, learner=learner: save_point(path, learner, MARKS),
            lambda learner=learner, step=step: learner.state.step == step,
            lambda _: None,
        )
    learner = residual()
    restore(learner, read_point(path), MARKS)
    learn(learner)
    assert same_weights(learner.student.module, straight["residual"].student.module)


def test_a_point_lies_beside_the_output_and_is_no_pickle(tmp_path):
    path = resume_path(tmp_path / "student.pt2")
    assert path == tmp_path / "student.pt2.resume"
    stopped_at(residual, 2, path)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[KEY])["fingerprint"] == MARKS
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("seed", 1, "seed was 0, now it is 1"),
        ("data", "\x1b[31m", r"data was abc, now it is \\x1b\[31m"),
        ("teacher", ["xyz", 11], r"teacher was \['xyz', 10\], now it is \['xyz', 11\]"),
        ("seconds", 60.0, "seconds was None, now it is 60.0"),
        ("threads", 4, "threads was None, now it is 4"),
    ],
)
def test_another_run_is_refused_by_what_differs(name, value, shown, tmp_path):
    path = tmp_path / "student.pt2.resume"
    stopped_at(residual, 2, path)
    with pytest.raises(UsageError, match=f"student.pt2.resume: is of another run: {shown}; give the same options"):
        restore(residual(), read_point(path), MARKS | {name: value})


def test_without_a_point_there_is_nothing_to_go_on_from(tmp_path):
    with pytest.raises(FileNotThere, match=r"student.resume: there is no resume point; run without --resume"):
        read_point(tmp_path / "student.resume")


def foreign(path):
    """A checkpoint of another program."""
    save_file({"weight": torch.ones(2)}, path, {"format": "pt"})


def without_tensors(path):
    """A file that says the right things and holds nothing."""
    save_file({}, path, {KEY: json.dumps({"fingerprint": MARKS, "state": {}})})


def no_object(path):
    """What is said is no object."""
    save_file({}, path, {KEY: json.dumps([1, 2])})


@pytest.mark.parametrize("write", [foreign, no_object, lambda path: path.write_bytes(b""), lambda path: path.mkdir()])
def test_a_file_that_is_no_point_is_refused_in_a_line(write, tmp_path):
    path = tmp_path / "student.resume"
    write(path)
    with pytest.raises((BrokenCheckpoint, FileNotThere), match=r"student.resume: .*run without --resume") as caught:
        read_point(path)
    assert "\n" not in str(caught.value)


def test_a_point_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "student.resume"
    stopped_at(residual, 1, path)
    data = path.read_bytes()
    for length in (0, 1, 8, 9, 500, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(BrokenCheckpoint, match="is no resume point, or a damaged one"):
            read_point(path)


def test_a_point_of_another_network_is_refused(tmp_path):
    path = tmp_path / "student.resume"
    stopped_at(lambda: trainer(Residual(4), steps=STEPS), 2, path)
    with pytest.raises(BrokenCheckpoint, match="a damaged resume point: run without --resume"):
        restore(residual(), read_point(path), MARKS)
    without_tensors(path)
    with pytest.raises(BrokenCheckpoint, match="a damaged resume point: run without --resume"):
        restore(residual(), read_point(path), MARKS)


def test_where_nothing_can_be_written_the_old_point_stays(tmp_path, monkeypatch):
    path = tmp_path / "student.resume"
    stopped_at(residual, 2, path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CannotWrite, match=r"student.resume: cannot write: No space left on device"):
        save_point(path, residual(), MARKS)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]
