from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from modelzip_cli.errors import BadData, UsageError
from modelzip_cli.running.lesson import Asked, choose_lesson
from modelzip_cli.running.students import StudentSpec
from tests.residual import Residual
from tests.teaching import Points, model_of, points

CUT, FRESH = StudentSpec(width=0.5), StudentSpec(arch="net.py:Small")


def lesson(examples: Points, student: nn.Module | None = None, count: int = 160, **options):
    """The lesson for a student of 3,475 parameters; `teacher_batch`, `student_batch`: what they are fixed to."""
    batches = [{"batch": options.pop(f"{side}_batch", None)} for side in ("teacher", "student")]
    teacher, learner = (model_of(student or Residual(), wanted=wanted) for wanted in batches)
    asked = Asked(**({"spec": CUT} | options))
    return choose_lesson(asked, teacher, learner, examples, np.arange(count))


def pictures(count: int = 200) -> Points:
    return Points(np.zeros((count, 1, 4, 4), np.float32), np.zeros(count, np.int64))


def tokens(count: int = 200) -> Points:
    data = Points(np.zeros((count, 8), np.int64), np.zeros((count, 8), np.int64))
    data.a_label_a_position = True
    return data


def test_features_and_text_are_learnt_at_temperature_one():
    found = lesson(points())
    assert (found.temperature, found.labels, found.batch, found.steps) == (1.0, 0.5, 64, 300)
    found = lesson(tokens())
    assert (found.temperature, found.labels, found.batch) == (1.0, 0.5, 16)


def test_pictures_are_learnt_at_temperature_four_where_there_is_time():
    found = lesson(pictures())
    assert (found.temperature, found.labels) == (4.0, 0.1)
    found = lesson(pictures(), steps=24)  # 9.6 epochs
    assert (found.temperature, found.labels) == (1.0, 0.5)
    assert lesson(pictures(), steps=25).temperature == 4.0


def test_what_is_asked_for_wins():
    found = lesson(
        pictures(),
        temperature=2.0,
        labels=0.0,
        learning_rate=0.5,
        batch=10,
        steps=3,
        seconds=9.0,
        seed=4,
        loss="jacobian",
    )
    assert found.to_json() == {
        "loss": "jacobian",
        "temperature": 2.0,
        "labels": 0.0,
        "learning_rate": 0.5,
        "batch": 10,
        "steps": 3,
        "seed": 4,
        "seconds": 9.0,
    }


def test_steps_are_twenty_epochs_and_no_fewer_than_three_hundred():
    assert lesson(points(), count=64).steps == 300
    assert lesson(points(), count=6400).steps == 2000


def test_the_learning_rate_depends_on_where_a_student_begins_and_on_its_size():
    assert lesson(points(), kind="weak").learning_rate == 3e-3
    assert lesson(points(), kind="strong").learning_rate == 1.5e-3
    assert lesson(tokens(), kind="strong").learning_rate == 6e-4
    with torch.device("meta"):
        large = nn.Linear(1000, 4000, bias=False)
    assert lesson(points(), large, kind="weak").learning_rate == 1.5e-3


def test_data_without_labels_leave_them_out():
    assert lesson(points(labelled=False)).labels == 0.0
    assert lesson(points(labelled=False), labels=0.0).labels == 0.0
    with pytest.raises(UsageError, match="points has no labels: leave --labels away"):
        lesson(points(labelled=False), labels=0.5)


def test_gradients_to_tokens_are_refused():
    with pytest.raises(UsageError, match=r"--loss jacobian follows gradients to the input, and points holds tokens"):
        lesson(tokens(), loss="jacobian")


def test_a_batch_is_what_a_model_is_fixed_to_else_at_most_the_data():
    assert lesson(points(), count=20).batch == 20
    assert lesson(points(), count=20, batch=64).batch == 20
    assert lesson(points(), teacher_batch=32, batch=64).batch == 32
    assert lesson(points(), teacher_batch=32, student_batch=8).batch == 8
    with pytest.raises(BadData, match="points: 20 examples to learn from do not fill the batch of 32"):
        lesson(points(), teacher_batch=32, count=20)


def test_a_report_says_what_was_asked():
    asked = Asked(FRESH, "weak", limit=10, then="int8")
    expected = {"kind": "weak", "score": "l2", "loss": "soft", "limit": 10, "seed": 0, "then": "int8"}
    assert asked.to_json() == {"student": "net.py:Small", **expected}
