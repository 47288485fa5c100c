from __future__ import annotations

import numpy as np
import pytest

from modelzip_cli.errors import BadData, FileNotThere, ModelzipError, UsageError
from modelzip_cli.running.data import DataOptions, open_data
from modelzip_cli.running.inputs import Wanted
from tests.running.opening import NUMBERS, every, opened, saved, tokens, written


@pytest.mark.parametrize("name", ["dätä ü.npz", "CAPITAL.NPZ", "a:b.npz", "code.py:make.npz"])
def test_a_file_is_told_by_its_suffix(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        np.savez(file, **NUMBERS)
    data = opened(tmp_path / name)
    assert every(data) == ([NUMBERS["x"].tolist()], NUMBERS["y"].tolist())
    assert data.label == str(tmp_path / name)


def test_a_file_that_is_there_wins_over_an_import_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "os:listdir", "")
    with pytest.raises(UsageError, match="no data by its suffix ''"):
        opened("os:listdir")


def test_a_file_that_is_not_there_is_named_with_its_neighbour(tmp_path):
    saved(tmp_path / "train.npz", **NUMBERS)
    for name in ("trian.npz", "train", "train.xyz"):
        with pytest.raises(FileNotThere, match=rf"{name}: no such file; did you mean 'train\.npz'"):
            opened(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.safetensors", "a checkpoint, not data"),
        ("model.PTH", "a checkpoint, not data"),
        ("model.pt2", "a checkpoint, not data"),
        ("data.h5", "no data by its suffix '.h5'"),
        ("data", "no data by its suffix ''"),
        ("code.py", "no data by its suffix '.py'"),
    ],
)
def test_what_is_no_data_is_refused_with_what_is_taken(tmp_path, name, what):
    path = written(tmp_path / name, "x")
    with pytest.raises(UsageError) as caught:
        opened(path)
    assert str(caught.value) == (
        f"{path}: {what}; --data takes a folder of pictures, .npz (x, y), .npy, .csv, .tsv, .jsonl, .parquet, .arrow, "
        ".feather, .txt, or module:function or file.py:function that gives a data set"
    )


@pytest.mark.parametrize("suffix", ["npz", "npy", "csv", "tsv", "jsonl", "parquet", "arrow", "feather"])
@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\xff\xfe\xff", b"PK\x03\x04", b"\x93NUMPY", b"PAR1", b"ARROW1\0\0", b'"']
)
def test_a_file_of_nonsense_is_refused_in_one_line_that_names_it(tmp_path, suffix, content):
    path = tmp_path / f"d.{suffix}"
    path.write_bytes(content)
    for wanted in (Wanted(), tokens()):
        with pytest.raises(ModelzipError) as caught:
            open_data(str(path), wanted, DataOptions(tokenizer=lambda text: [1] * len(text)))
        assert isinstance(caught.value, (BadData, UsageError))
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert str(caught.value).isprintable()


def test_reading_twice_gives_the_same(tmp_path):
    data = opened(saved(tmp_path / "d.npz", **NUMBERS))
    assert every(data) == every(data)


@pytest.mark.parametrize(
    ("name", "wanted", "options", "option"),
    [
        (".", Wanted(), {"label_key": "y"}, "--label-key"),
        (".", Wanted(), {"text_key": "y"}, "--text-key"),
        ("os:listdir", Wanted(), {"mean": (0.5,), "std": (0.5,)}, "--mean"),
        ("os:listdir", Wanted(), {"image_size": (8, 8)}, "--image-size"),
        ("d.npz", Wanted(), {"label_key": "y"}, "--label-key"),
        ("d.npz", Wanted(), {"image_size": (8, 8)}, "--image-size"),
        ("d.npz", tokens(), {"mean": (0.5,), "std": (0.5,)}, "--mean"),
    ],
)
def test_an_option_that_does_not_apply_is_not_passed_over(tmp_path, monkeypatch, name, wanted, options, option):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "d.npz", **NUMBERS)
    with pytest.raises(UsageError) as caught:
        opened(name, wanted, **options)
    assert str(caught.value) == f"{name}: {option} does not apply to this kind of data"


def test_a_column_of_text_is_nothing_for_a_model_that_takes_numbers(tmp_path):
    with pytest.raises(UsageError, match="--text-key, but the model takes numbers, not text"):
        opened(written(tmp_path / "t.csv", "text,a\nx,1\n"), text_key="text")
