from __future__ import annotations

import numpy as np
import pytest
import torch

from modelzip_cli.errors import BadData, UsageError, UserCodeFailed
from modelzip_cli.running.inputs import Wanted
from modelzip_cli.running.user_data import NEEDED
from tests.running.opening import dtypes, every, opened, tokens, written

CODE = """
import numpy as np
import torch
from torch.utils.data import TensorDataset

def pairs():
    return TensorDataset(torch.arange(6.0, dtype=torch.float64).view(3, 2), torch.tensor([1, 0, 1]))

ready = [(np.array([1, 2]), 0), ([3, 4], np.int32(1))]

def bare():
    return [np.ones((1, 2), np.float16), np.zeros((1, 2), np.float16)]

def positions():
    return [(torch.tensor([1, 2]), [2, 3])]

def masked():
    return [((torch.tensor([1, 2]), torch.tensor([1, 0])), 0)]

class Draws:
    def __len__(self): return 2
    def __getitem__(self, row): return torch.rand(2)

def text(): return [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])]
def ragged(): return [(torch.ones(2), 0), (torch.ones(3), 1)]
def half(): return [(torch.ones(2), 0), torch.ones(2)]
def words(): return [{"x": 1}]
def fractions(): return [(torch.ones(2), 0.5)]
def none(): return []
def stream(): return iter([1])
def needs(argument): return []
def wide(): return [torch.ones(3)]

class Fails(list):
    def __getitem__(self, row):
        if row: raise OSError("disk\\nis gone")
        return torch.ones(2)

def fails(): return Fails([1, 2])
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return written(tmp_path / "code.py", CODE).name


def test_pairs_are_stacked_as_the_model_takes_them(code):
    data = opened(f"{code}:pairs", Wanted(shape=(2,)))
    assert every(data) == ([[[0, 1], [2, 3], [4, 5]]], [1, 0, 1])
    assert dtypes(data) == [torch.float32, torch.int64]
    assert data.batch(np.array([2, 0])).labels.tolist() == [1, 1]
    assert (data.label, data.labelled, data.a_label_a_position, data.warnings) == ("code.py:pairs", True, False, ())
    assert data.labels is None  # they are known once they are read
    assert data.place(2) == "code.py:pairs: example 2 (counted from 0)"


def test_other_data_sets(code):
    assert every(opened(f"{code}:ready")) == ([[[1, 2], [3, 4]]], [0, 1])
    assert dtypes(opened(f"{code}:ready", tokens())) == [torch.int64, torch.int64]
    assert every(opened(f"{code}:bare")) == ([[[[1, 1]], [[0, 0]]]], None)
    assert every(opened(f"{code}:masked", tokens())) == ([[[1, 2]], [[1, 0]]], [0])
    positions = opened(f"{code}:positions", tokens())
    assert every(positions) == ([[[1, 2]]], [[2, 3]])
    assert positions.a_label_a_position


def test_tokens_without_labels_are_labelled_with_the_token_after(code):
    data = opened(f"{code}:text", tokens(context=2))
    assert every(data) == ([[[1, 2], [4, 5]]], [[2, 3], [5, 6]])
    assert data.a_label_a_position
    assert every(opened(f"{code}:text", tokens(positions=False))) == ([[[1, 2, 3], [4, 5, 6]]], None)


def test_examples_that_change_are_warned_of(code):
    assert opened(f"{code}:Draws").warnings == (
        "code.py:Draws: example 0 differs when it is read again; figures depend on chance",
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ragged", "example 1 (counted from 0): [3], but example 0 is [2]; give all one shape"),
        ("half", "some examples have labels, others none"),
        ("words", "example 0 (counted from 0): dict, no tensor, array or number; it has to be x or (x, y)"),
        ("fractions", "example 0 (counted from 0): y is torch.float32 []; a label is a whole number"),
        ("none", "the data set is empty"),
        ("stream", f"gives list_iterator; {NEEDED}"),
    ],
)
def test_a_data_set_that_is_none_is_refused(code, name, problem):
    with pytest.raises(BadData) as caught:
        every(opened(f"{code}:{name}"))
    assert str(caught.value) == f"code.py:{name}: {problem}"


@pytest.mark.parametrize(
    ("name", "wanted", "problem"),
    [
        ("wide", Wanted(shape=(2,)), "examples are [n, 3], but the model takes [n, 2]"),
        (
            "pairs",
            tokens(),
            "example 0 (counted from 0): x is torch.float64, but the model takes tokens: whole numbers",
        ),
    ],
)
def test_a_data_set_that_does_not_fit_the_model_is_refused(code, name, wanted, problem):
    with pytest.raises(BadData) as caught:
        opened(f"{code}:{name}", wanted)
    assert str(caught.value) == f"code.py:{name}: {problem}"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("needs", ": TypeError: needs() missing 1 required positional argument: 'argument'; --debug shows where"),
        ("fails", ", example 1: OSError: disk; --debug shows where"),
    ],
)
def test_what_the_users_code_raises_is_told_in_a_line(code, name, problem):
    with pytest.raises(UserCodeFailed) as caught:
        every(opened(f"{code}:{name}"))
    assert str(caught.value) == f"code.py:{name}{problem}"
    assert caught.value.__cause__ is not None


def test_a_name_that_is_not_there_is_named_with_the_closest(code):
    with pytest.raises(UsageError, match=r"code\.py:pear: code\.py has no pear; did you mean 'pairs'"):
        opened(f"{code}:pear")


def test_a_fingerprint_tells_path_and_examples_apart(code):
    found = [opened(f"{code}:{name}").fingerprint for name in ("pairs", "ready", "bare", "pairs")]
    assert len(set(found)) == 3
