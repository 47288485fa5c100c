from __future__ import annotations

import numpy as np
import pytest

from modelzip_cli.errors import BadData
from modelzip_cli.running.inputs import IGNORED
from modelzip_cli.running.labels import check_labels, check_range, number_classes, number_labels
from tests.running.opening import opened, saved, tokens, written


def place(row):
    return f"t.csv: line {row + 2}"


def numbered(*found, known=None):
    labels, classes, _ = number_labels(found, place, known)
    return labels.tolist(), classes


def test_whole_numbers_are_used_as_they_are():
    assert numbered("3", "0", "3") == ([3, 0, 3], None)
    assert numbered(3, 0.0, True) == ([3, 0, 1], None)
    assert numbered("3.0", "1") == ([3, 1], None)  # pandas writes a column so that once had a gap


def test_text_is_numbered_in_alphabetical_order_or_as_the_model_does():
    assert numbered("b", "a", "ü", "a") == ([1, 0, 2, 0], ("a", "b", "ü"))
    assert numbered("nan", "naan") == ([1, 0], ("naan", "nan"))
    assert numbered("b", "a", known=("b", "c", "a")) == ([0, 2], ("b", "c", "a"))


@pytest.mark.parametrize(
    ("found", "where", "shown"),
    [
        (("1", "N/A", "2"), 3, "'N/A'"),
        (("cat", "7", "dog"), 3, "'7'"),
        (("cat", ""), 3, "''"),
        ((1, None), 3, "None"),
        ((None, 1), 2, "None"),
        ((1, 1.5), 3, "1.5"),
        ((1, float("nan")), 3, "nan"),
        ((1, [1]), 3, "[1]"),
        (("0.5", "1.5"), 2, "'0.5'"),
        (("a", "1e400"), 3, "'1e400'"),
        ((1, 1 << 70), 3, str(1 << 70)),
    ],
)
def test_a_label_that_is_none_is_named(found, where, shown):
    with pytest.raises(BadData) as caught:
        numbered(*found)
    assert str(caught.value) == f"t.csv: line {where}: the label is {shown}; labels are all whole numbers or all text"


def test_other_names_than_the_models_are_warned_of():
    classes, warnings = number_classes(["neg", "pos"], ("LABEL_0", "LABEL_1"))
    assert classes == ("neg", "pos")
    assert warnings == (
        "the classes are not called as in the model (LABEL_0, LABEL_1); they are numbered in alphabetical order: "
        "0 = neg, 1 = pos",
    )


def test_two_classes_of_the_model_with_one_name_cannot_be_told_apart():
    classes, warnings = number_classes(["crane", "drake"], ("crane", "drake", "crane"))
    assert classes == ("crane", "drake")
    assert len(warnings) == 1


def examples(tmp_path, y, **more):
    y = np.asarray(y)
    return opened(saved(tmp_path / "d.npz", x=np.zeros((len(y), 3), np.float32), y=y), **more)


def test_labels_that_fit_pass(tmp_path):
    check_labels(examples(tmp_path, [0, 1, 2]), 3)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0], "one example only; figures and learning need more"),
        ([1, 1, 1], "all 3 examples have the label 1; one class alone says nothing; give data of all classes"),
    ],
)
def test_too_little_to_learn_from_is_refused(tmp_path, y, message):
    with pytest.raises(BadData) as caught:
        check_labels(examples(tmp_path, y), 3)
    assert str(caught.value) == f"{tmp_path / 'd.npz'}: {message}"


@pytest.mark.parametrize(
    ("y", "outputs", "row", "label", "hint"),
    [
        ([1, 2, 3], 3, 2, 3, "; labels start at 1? Subtract 1"),
        ([0, 7, 9], 3, 1, 7, ""),
        ([0, -1, 1], 3, 1, -1, ""),
        ([0, IGNORED, 1], 3, 1, IGNORED, ""),
        (np.array([0, 255], np.uint8), 3, 1, 255, ""),
    ],
)
def test_a_label_without_an_output_is_named(tmp_path, y, outputs, row, label, hint):
    with pytest.raises(BadData) as caught:
        check_labels(examples(tmp_path, y), outputs)
    assert str(caught.value) == (
        f"{tmp_path / 'd.npz'}: example {row} (counted from 0): the label is {label}, but the model has {outputs} "
        f"outputs: labels are 0 to {outputs - 1}{hint}"
    )


def test_the_line_and_the_class_of_a_label_are_named(tmp_path):
    data = written(tmp_path / "t.csv", "a,label\n1,cat\n2,dog\n3,eel\n")
    with pytest.raises(BadData, match=r"t\.csv: line 4: the label is 2 \(eel\), but the model has 2 outputs"):
        check_labels(opened(data), 2)


def test_positions_that_do_not_count_have_no_output(tmp_path):
    data = saved(tmp_path / "d.npz", x=np.ones((1, 3), np.int32), y=np.array([[IGNORED, 0, 4]]))
    check_labels(opened(data, tokens()), 5)  # one example has many labels here
    with pytest.raises(BadData, match="the label is 4, but the model has 4 outputs"):
        check_labels(opened(data, tokens()), 4)


def test_without_labels_only_the_number_of_examples_is_checked(tmp_path):
    check_labels(opened(saved(tmp_path / "d.npz", x=np.zeros((2, 3)))), 1)
    with pytest.raises(BadData, match="one example only"):
        check_labels(opened(saved(tmp_path / "d.npz", x=np.zeros((1, 3)))), 1)


def test_the_labels_of_a_batch_are_named_by_their_rows(tmp_path):
    data = opened(saved(tmp_path / "d.npz", x=np.zeros((9, 3)), y=np.zeros(9)))
    with pytest.raises(BadData, match=r"example 8 \(counted from 0\): the label is 5"):
        check_range(np.array([1, 5]), 2, data, rows=[4, 8])
