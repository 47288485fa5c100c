from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather, parquet

from modelzip_cli.errors import BadData, MissingExtra, UsageError
from modelzip_cli.running.inputs import Wanted
from modelzip_cli.running.tokenizer import open_tokenizer
from tests.running.opening import dtypes, every, opened, tokens, written

BYTES = open_tokenizer("bytes")
NUMBERS = {"b": [1, 2.5, -3e-3], "a": [0, 1, 0], "label": [2, 0, 2]}
TEXTS = {"id": [9, 8, 7], "text": ["a", 'b,"\n', "é"], "label": ["pos", "neg", "pos"]}


def csv_of(columns, path, delimiter=","):
    def cell(value):
        return '"' + value.replace('"', '""') + '"' if isinstance(value, str) else str(value)

    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return written(path, "\r\n".join(delimiter.join(map(cell, row)) for row in rows) + "\r\n")


def jsonl_of(columns, path):
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return written(path, "\n".join(json.dumps(row) for row in rows) + "\n\n")


def parquet_of(columns, path):
    parquet.write_table(pa.table(columns), path)
    return path


def stream_of(columns, path):
    table = pa.table(columns)
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    return path


def file_of(columns, path):
    feather.write_feather(pa.table(columns), path)
    return path


WRITERS = {
    "csv": (csv_of, ".csv"),
    "capital csv": (csv_of, ".CSV"),
    "tsv": (lambda columns, path: csv_of(columns, path, "\t"), ".tsv"),
    "jsonl": (jsonl_of, ".jsonl"),
    "parquet": (parquet_of, ".parquet"),
    "arrow stream": (stream_of, ".arrow"),
    "arrow file": (file_of, ".arrow"),
    "feather": (file_of, ".feather"),
}
each_kind = pytest.mark.parametrize("kind", WRITERS)


def table(kind, columns, folder):
    writer, suffix = WRITERS[kind]
    return writer(columns, folder / f"tüble{suffix}")


def message(path, wanted=None, **options) -> str:
    with pytest.raises((BadData, UsageError)) as caught:
        opened(path, wanted, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@each_kind
def test_numbers_are_features_in_the_order_of_their_columns(tmp_path, kind):
    data = opened(table(kind, NUMBERS, tmp_path), Wanted(shape=(2,)))
    x = [[np.float32(b), a] for b, a in zip(NUMBERS["b"], NUMBERS["a"], strict=True)]
    assert every(data) == ([x], [2, 0, 2])
    assert dtypes(data) == [torch.float32, torch.int64]
    assert (data.labelled, data.classes, data.warnings) == (True, None, ())


@each_kind
def test_text_is_tokenised_for_a_model_that_takes_tokens(tmp_path, kind):
    data = opened(table(kind, TEXTS, tmp_path), tokens(), tokenizer=BYTES)
    assert every(data) == ([[[97, 0, 0, 0], [98, 44, 34, 10], [0xC3, 0xA9, 0, 0]]][0:1], [1, 0, 1])
    assert data.classes == ("neg", "pos")


@each_kind
def test_columns_are_named_by_the_options(tmp_path, kind):
    path = table(kind, {"label": ["x", "y"], "sentence": ["a", "b"], "score": [1, 0]}, tmp_path)
    assert every(opened(path, tokens(), tokenizer=BYTES)) == ([[[97], [98]]], [0, 1])
    chosen = opened(path, tokens(), tokenizer=BYTES, label_key="score", text_key="label")
    assert every(chosen) == ([[[ord("x")], [ord("y")]]], [1, 0])


def test_rows_without_labels_stay_so_for_features_and_are_a_language_models_for_text(tmp_path):
    features = csv_of({"a": [1, 2]}, tmp_path / "f.csv")
    assert every(opened(features)) == ([[[1], [2]]], None)
    assert opened(features).warnings == (
        f"{features}: no column is called label, y, class, so there are no labels; see --label-key",
    )
    text = csv_of({"text": ["ab", "cd"]}, tmp_path / "t.csv")
    assert every(opened(text, tokens(), tokenizer=BYTES)) == ([[[97], [99]]], [[98], [100]])
    labelled = csv_of({"text": ["ab", "cd"], "label": [0, 1]}, tmp_path / "l.csv")
    assert every(opened(labelled, tokens(positions=True), tokenizer=BYTES)) == ([[[97], [99]]], [[98], [100]])


def test_text_labels_are_numbered_as_the_model_does(tmp_path):
    path = csv_of(TEXTS, tmp_path / "t.csv")
    assert every(opened(path, tokens(classes=("pos", "neg")), tokenizer=BYTES))[1] == [0, 1, 0]
    other = opened(path, tokens(classes=("A", "B")), tokenizer=BYTES)
    assert every(other)[1] == [1, 0, 1]
    assert other.warnings[0].startswith(f"{path}: the classes are not called as in the model (A, B)")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_x_of_lists_is_the_input(tmp_path, kind):
    path = table(kind, {"x": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]], "y": [0, 1]}, tmp_path)
    assert every(opened(path, Wanted(shape=(2, 2)))) == ([[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]], [0, 1])
    path = table(kind, {"x": [[5, 6, 7], [8]], "y": [0, 1]}, tmp_path)
    assert every(opened(path, tokens())) == ([[[5, 6, 7], [8, 0, 0]]], [0, 1])


NOT_FINITE = "no finite float32; the model takes numbers"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,label\n1,0\n\nx,1\n", f"line 4: column a is 'x', {NOT_FINITE}"),
        ("a,b,label\n1,,0\n", f"line 2: column b is '', {NOT_FINITE}"),
        ("a,b,label\n1,nan,0\n", f"line 2: column b is 'nan', {NOT_FINITE}"),
        ("a,b,label\n1,1e39,0\n", f"line 2: column b is '1e39', {NOT_FINITE}"),
        ("a,label\n1\n", "line 2: 1 cells, but the header has 2"),
        ("a,label\n1,0,3\n", "line 2: 3 cells, but the header has 2"),
        ('a,label\n"1,0\n', "line 2: unexpected end of data"),
        ("a,label\n1,\n", "line 2: the label is ''; labels are all whole numbers or all text"),
        ("1,2\n3,4\n", "the first row holds numbers; it has to name the columns, such as x1,x2,label"),
        ("a,label,a\n", "two columns are called 'a'"),
        ("a,label\n", "a header, but no rows"),
        ("\n", "no rows"),
        ("label\n0\n", "no column beside that of the labels"),
        ("", "the file is empty"),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_named_by_line_and_column(tmp_path, text, problem):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    assert message(path) == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "label": 0}\n{"label": 0}', f"line 2: column a is None, {NOT_FINITE}"),
        ('{"a": 1}\n\n{"a": [1]}', f"line 3: column a is [1], {NOT_FINITE}"),
        ('{"a": 1}\n{"a": 1' + "0" * 400 + "}", f"line 2: column a is 1{'0' * 58}…, {NOT_FINITE}"),
        ('{"a": 1}\n[1]', "line 2: no JSON object"),
        ('{"a": 1}\n{"a": 1', "line 2: Expecting ',' delimiter: line 1 column 8 (char 7)"),
        ('{"a": 1}\n{"a": NaN}', "line 2: NaN is not JSON"),
        ('{"x": [1, 2]}\n{"x": [1]}', "line 2: [1], but the first is [2]"),
        ('{"x": [1, 2]}\n{"x": [1, "b"]}', "line 2: x is [1, 'b'], no array of finite numbers"),
        ('{"x": [1, 2]}\n{"x": [[1], 2]}', "line 2: x is [[1], 2], no array of finite numbers"),
        ('{"x": []}', "line 1: x is [], no array of finite numbers"),
        (" \n", "no lines"),
    ],
)
def test_what_is_wrong_in_a_jsonl_file_is_named_by_line(tmp_path, text, problem):
    assert message(written(tmp_path / "t.jsonl", text)) == problem


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": null}', "line 2: column text is None, no text"),
        ('{"text": 3}', "line 2: column text is 3, no text"),
    ],
)
def test_text_that_is_none_is_named(tmp_path, line, problem):
    path = written(tmp_path / "t.jsonl", f'{{"text": "ab"}}\n{line}\n')
    assert message(path, tokens(), tokenizer=BYTES) == problem


@pytest.mark.parametrize("x", ["[1.5]", "[true]", '["a"]', "3", f"[{1 << 64}]"])
def test_tokens_that_are_none_are_named(tmp_path, x):
    path = written(tmp_path / "t.jsonl", f'{{"x": [1, 2]}}\n{{"x": {x}}}\n')
    assert message(path, tokens()).startswith("line 2: x is ")


@each_kind
def test_a_column_that_is_not_there_is_named_with_the_closest(tmp_path, kind):
    path = table(kind, TEXTS, tmp_path)
    problem = message(path, tokens(), label_key="labels", tokenizer=BYTES)
    assert problem == "--label-key labels: no such column; did you mean 'label'?"
    problem = message(path, tokens(), text_key="zzz", tokenizer=BYTES)
    assert problem == "--text-key zzz: no such column; there are id, text, label"
    path = table(kind, {"review": ["ab"]}, tmp_path)
    assert message(path, tokens(), tokenizer=BYTES) == "no column is called text; --text-key names one of review"


@pytest.mark.parametrize("kind", ["parquet", "arrow stream", "arrow file", "feather"])
def test_a_gap_in_an_arrow_table_is_named_by_row(tmp_path, kind):
    path = table(kind, {"a": [1.0, None, 3.0], "label": [0, 1, 1]}, tmp_path)
    assert message(path) == f"row 2: column a is None, {NOT_FINITE}"
    path = table(kind, {"a": [1.0, 2.0, 3.0], "label": [0, 1, None]}, tmp_path)
    assert message(path) == "row 3: the label is None; labels are all whole numbers or all text"


@pytest.mark.parametrize("kind", ["parquet", "arrow stream", "arrow file", "feather"])
def test_a_damaged_arrow_table_is_refused(tmp_path, kind):
    path = table(kind, NUMBERS, tmp_path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"hello", content[:8], content.replace(b"label", b"lab\xffl")):
        path.write_bytes(damaged)
        assert message(path).startswith("damaged, or no Parquet or Arrow file: ")


def test_many_rows_of_an_arrow_table_come_in_their_order(tmp_path):
    path = parquet_of({"a": list(range(3000)), "label": [row % 7 for row in range(3000)]}, tmp_path / "t.parquet")
    data = opened(path)
    assert every(data) == ([[[row] for row in range(3000)]], [row % 7 for row in range(3000)])
    assert data.place(2999) == f"{path}: row 3000"


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = parquet_of(NUMBERS, tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pyarrow is not installed; pip install 'modelzip\[tables\]'"):
        opened(path)


def test_a_mean_of_each_feature_is_taken_off(tmp_path):
    path = csv_of({"a": [1, 2], "b": [10, 20]}, tmp_path / "t.csv")
    assert every(opened(path, mean=(1, 10), std=(1, 10))) == ([[[0, 0], [1, 1]]], None)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(rows=st.lists(st.tuples(finite, finite, st.integers(-(2**40), 2**40)), min_size=1, max_size=5))
def test_a_csv_file_gives_the_numbers_that_were_written(tmp_path_factory, rows):
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("a", "b", "label"))}
    data = opened(csv_of(columns, tmp_path_factory.mktemp("t") / "t.csv"))
    assert every(data) == ([[[a, b] for a, b, _ in rows]], [label for *_, label in rows])


def test_a_fingerprint_tells_content_and_columns_apart(tmp_path):
    path = csv_of({"a": [0, 1], "b": [1, 0]}, tmp_path / "t.csv")
    found = [opened(path).fingerprint, opened(path, label_key="a").fingerprint, opened(path, label_key="b").fingerprint]
    csv_of({"a": [0, 1], "b": [1, 1]}, path)
    assert len({*found, opened(path).fingerprint}) == 4
