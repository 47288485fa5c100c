from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from modelzip_cli.errors import BadData, UsageError
from modelzip_cli.running.distill import TeacherAtChance, check_student, check_teacher, choose_rows
from modelzip_cli.running.inputs import Wanted
from modelzip_cli.running.model import Model
from modelzip_cli.running.students import StudentSpec
from tests.teaching import Points, make_teacher, model_of, points, small

ASKED = StudentSpec(width=0.5)


def numbered(count: int) -> Points:
    return Points(np.zeros((count, 6), np.float32), np.zeros(count, np.int64))


@pytest.mark.parametrize(("count", "held"), [(4, 1), (15, 2), (200, 20), (5000, 500), (20_000, 1000)])
def test_a_tenth_is_held_out_up_to_a_thousand(count, held):
    train, out = choose_rows(numbered(count), None, 0)
    assert len(out) == held
    assert not {*train} & {*out}
    assert [*train] == sorted(train)
    assert len(train) == count - max(1, round(0.1 * count))


def test_a_limit_leaves_examples_that_the_seed_chooses():
    one, other = (choose_rows(numbered(1000), 100, seed) for seed in (0, 1))
    assert len(one[0]) + len(one[1]) == 100
    assert {*one[0]} != {*other[0]}
    again = choose_rows(numbered(1000), 100, 0)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_examples_are_refused(count):
    with pytest.raises(BadData, match=f"points: {count} examples are too few"):
        choose_rows(numbered(count), None, 0)
    with pytest.raises(BadData, match="points: 3 examples are too few"):
        choose_rows(numbered(100), 3, 0)


class Says(nn.Module):
    """Gives as its answer what stands in the first place of an example."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(x[:, 0].long(), 4).float()


def answers(given: list[int], labels: list[int]) -> Points:
    """A data set for which a teacher gives these answers."""
    x = np.zeros((len(given), 6), np.float32)
    x[:, 0] = given
    return Points(x, np.array(labels))


@pytest.mark.parametrize(
    ("right", "of", "passes"),
    [
        (4, 4, True),
        (3, 4, True),
        (2, 4, False),
        (60, 100, True),
        (45, 100, True),
        (30, 100, False),
        (25, 100, False),
        (0, 100, False),
    ],
)
def test_a_teacher_has_to_be_clearly_better_than_the_most_frequent_label(right, of, passes):
    """Four labels as often as each other: chance is a quarter."""
    labels = [place % 4 for place in range(of)]
    given = [label if place < right else (label + 1) % 4 for place, label in enumerate(labels)]
    data, rows, teacher = answers(given, labels), np.arange(of), model_of(Says())
    if passes:
        check_teacher(teacher, data, rows, 0)
        return
    with pytest.raises(TeacherAtChance, match=rf"teacher.pt2: the teacher is right in {right / of:.1%} of {of} cases"):
        check_teacher(teacher, data, rows, 0)


def test_labels_decide_nothing_where_there_are_none():
    check_teacher(model_of(small()), points(labelled=False), np.arange(100), 0)


def test_one_class_among_the_examples_is_refused():
    data = answers([1] * 50 + [2], [1] * 50 + [2])
    with pytest.raises(BadData, match="points: the labels of 50 examples are all the same"):
        check_teacher(model_of(Says()), data, np.arange(50), 0)


def test_a_student_with_other_classes_is_refused():
    batch, teacher = points().batch(np.arange(2)), model_of(make_teacher()[0])
    check_student(model_of(small()), teacher, batch)
    with pytest.raises(UsageError, match=r"student: gives scores \[2, 5\] where teacher.pt2 gives \[2, 3\]"):
        check_student(model_of(nn.Linear(6, 5), "student"), teacher, batch)


def test_a_student_with_another_tokenizer_is_refused():
    def reading(read) -> Model:
        wanted = Wanted(shape=(6,), tokenizer=read)
        return Model(small().eval(), "student", "a test", wanted, 0)

    batch, by_bytes = points().batch(np.arange(2)), reading(lambda text: [*text.encode()])
    check_student(by_bytes, reading(lambda text: [*text.encode()]), batch)
    check_student(by_bytes, reading(None), batch)
    with pytest.raises(UsageError, match="student: has another tokenizer than student"):
        check_student(reading(lambda text: [*map(ord, text)]), by_bytes, batch)
