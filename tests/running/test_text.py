from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip_cli.errors import BadData, UsageError
from modelzip_cli.running.content import Origin
from modelzip_cli.running.inputs import IGNORED
from modelzip_cli.running.text import LONGEST_WINDOW, WINDOW, open_text, open_texts
from modelzip_cli.running.tokenizer import Tokenizer, open_tokenizer
from tests.running.opening import dtypes, every, opened, tokens, written

BYTES = open_tokenizer("bytes")
PADDED = Tokenizer(BYTES.encode, lambda text, most: [*BYTES(text)[: most - 1], 9], pad=7)


def texts(*found, labels=None, encode=BYTES, **wanted):
    numbers = None if labels is None else np.array(labels)
    origin = Origin("t.csv", "digest", name_row=lambda row: f"t.csv: line {row + 2}")
    return open_texts(found, numbers, origin, tokens(**wanted), encode)


def windows(text, encode=BYTES, **wanted):
    return open_text(text.encode(), Origin("t.txt", "digest"), tokens(**wanted), encode)


def test_a_batch_is_filled_up_to_its_longest_text():
    data = texts("a", "abc", "ab", labels=[0, 1, 2])
    batch = data.batch(np.array([2, 0]))
    assert batch.inputs[0].tolist() == [[97, 98], [97, 0]]
    assert batch.labels.tolist() == [2, 0]
    assert dtypes(data) == [torch.int64, torch.int64]
    assert (data.labelled, data.a_label_a_position, data.labels.tolist(), len(data)) == (True, False, [0, 1, 2], 3)
    assert data.place(1) == "t.csv: line 3"


def test_it_is_filled_with_the_pad_of_the_tokenizer_and_a_second_input_is_the_mask():
    data = texts("a", "abc", labels=[0, 1], encode=PADDED, inputs=2)
    assert every(data) == ([[[97, 7, 7], [97, 98, 99]], [[1, 0, 0], [1, 1, 1]]], [0, 1])


def test_a_model_of_one_length_gets_that_length():
    data = texts("a", "abcde", labels=[0, 1], encode=PADDED, shape=(3,), inputs=2)
    assert every(data) == ([[[97, 7, 7], [97, 98, 9]], [[1, 0, 0], [1, 1, 1]]], [0, 1])
    assert data.warnings == ("t.csv: 1 of 2 texts were cut to the 3 tokens that the model takes",)


def test_texts_without_labels_are_for_a_language_model():
    data = texts("ab", "", "x", "abcd", context=2, inputs=2)
    assert every(data) == ([[[97, 98], [97, 98]], [[1, 1], [1, 1]]], [[98, IGNORED], [98, 99]])
    assert (data.labelled, data.a_label_a_position) == (True, True)
    assert data.warnings == (
        "t.csv: 1 of 4 texts were cut to the 2 tokens that the model takes",
        "t.csv: 2 of 4 texts have no two tokens: left out",
    )
    assert data.place(1) == "t.csv: line 5"


def test_lists_of_tokens_need_no_tokenizer():
    data = texts([5, 6], [1], labels=[1, 0], encode=None, context=1, positions=False)
    assert every(data) == ([[[5], [1]]], [1, 0])


def test_texts_for_a_model_that_is_no_language_model_stay_unlabelled():
    assert every(texts("ab", "c", positions=False)) == ([[[97, 98], [99, 0]]], None)


@given(st.lists(st.text("aé☃", min_size=2, max_size=5), min_size=1, max_size=6), st.data())
def test_a_language_model_predicts_each_token_but_the_first_once(found, data):
    rows = data.draw(st.permutations(range(len(found))))
    batch = texts(*found).batch(np.array(rows))
    for row, x, y in zip(rows, batch.inputs[0].tolist(), batch.labels.tolist(), strict=True):
        whole = BYTES(found[row])
        assert [token for token in y if token != IGNORED] == whole[1:]
        assert x[: len(whole) - 1] == whole[:-1]


def test_an_empty_text_of_a_classifier_is_named():
    with pytest.raises(BadData) as caught:
        texts("a", "", "", labels=[0, 1, 1])
    assert str(caught.value) == "t.csv: line 3: a text without a token"
    with pytest.raises(BadData, match="no text has two tokens"):
        texts("a", "b")


def test_text_without_a_tokenizer_names_the_option(tmp_path):
    for path in (written(tmp_path / "t.txt", "abc"), written(tmp_path / "t.csv", "text,label\na,0\n")):
        with pytest.raises(UsageError, match="text needs the tokenizer of the model; --tokenizer names one: bytes"):
            opened(path, tokens())


def test_the_tokenizer_of_the_option_goes_before_that_of_the_model(tmp_path):
    path = written(tmp_path / "t.txt", "abc")
    assert every(opened(path, tokens(tokenizer=BYTES))) == ([[[97, 98]]], [[98, 99]])
    assert every(opened(path, tokens(tokenizer=BYTES), tokenizer=len_so_far)) == ([[[0, 1]]], [[1, 2]])


def len_so_far(text):
    return list(range(len(text)))


def test_a_long_text_is_cut_into_windows_that_share_a_token():
    data = windows("abcdefghij", context=3)
    assert every(data) == (
        [[[97, 98, 99], [100, 101, 102], [103, 104, 105]]],
        [[98, 99, 100], [101, 102, 103], [104, 105, 106]],
    )
    assert (data.labelled, data.a_label_a_position, dtypes(data)) == (True, True, [torch.int64, torch.int64])
    assert len(windows("abcdefghi", context=3)) == 2  # the third would be short


@pytest.mark.parametrize(
    ("wanted", "time"),
    [
        ({}, WINDOW),
        ({"shape": (None,)}, WINDOW),
        ({"context": 100}, 100),
        ({"context": 10**6}, LONGEST_WINDOW),
        ({"shape": (5,), "context": 9}, 5),
    ],
)
def test_a_window_is_as_long_as_the_model_says(wanted, time):
    data = windows("a" * 5000, **wanted)
    assert len(data.batch(np.array([0])).inputs[0][0]) == time
    assert len(data) == 4999 // time


def test_a_text_shorter_than_a_window_is_one_where_the_model_takes_any_length():
    assert every(windows("abc", context=50)) == ([[[97, 98]]], [[98, 99]])
    with pytest.raises(BadData, match=r"t\.txt: 3 tokens, but one window takes 6"):
        windows("abc", shape=(5,))
    with pytest.raises(BadData, match=r"t\.txt: 1 tokens, but one window takes 2"):
        windows("a")


def test_one_long_text_is_for_language_models(tmp_path):
    path = written(tmp_path / "t.txt", "abc")
    for wanted in (tokens(positions=False), None):
        with pytest.raises(UsageError, match="one long text is for language models; give examples with labels"):
            opened(path, wanted, tokenizer=BYTES)


def test_text_that_is_not_utf_8_says_where(tmp_path):
    (tmp_path / "t.txt").write_bytes("naïve".encode("latin1"))
    with pytest.raises(BadData, match=r"t\.txt: not UTF-8 \(byte 2\); if it is Latin-1, `iconv"):
        opened(tmp_path / "t.txt", tokens(), tokenizer=BYTES)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert every(opened(tmp_path / "t.txt", tokens(), tokenizer=BYTES)) == ([[[97, 98]]], [[98, 99]])


def test_a_fingerprint_tells_tokens_and_windows_apart():
    found = [
        windows("abcdef", context=2),
        windows("abcdeg", context=2),
        windows("abcdef", context=3),
        texts("ab", "cd"),
        texts("abc", "d"),
        texts("ab", "cd", positions=False),
        texts("ab", "cd", inputs=2),
        texts("ab", "cd", shape=(1,)),
        texts("ab", "cd", encode=PADDED),
    ]
    assert len({data.fingerprint for data in found}) == len(found)
    assert windows("abcdef", context=2).fingerprint == found[0].fingerprint
