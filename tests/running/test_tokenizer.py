from __future__ import annotations

import json
import sys

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers, processors

from modelzip_cli.errors import BadData, FileNotThere, MissingExtra
from modelzip_cli.running.tokenizer import as_tokenizer, open_tokenizer
from tests.running.opening import written


def words(path, **settings):
    """A tokenizer of four words that ends each text with [SEP]."""
    fast = Fast(models.WordLevel({"[PAD]": 3, "[SEP]": 1, "a": 2, "b": 0}, unk_token="b"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 1)])
    fast.enable_truncation(2)
    if settings:
        fast.enable_padding(**settings)
    fast.save(str(path))
    return path


def test_bytes_are_their_own_tokens():
    tokenizer = open_tokenizer("bytes")
    assert tokenizer("aé\0") == [97, 0xC3, 0xA9, 0]
    assert (tokenizer.cut("aé", 2), tokenizer.pad) == ([97, 0xC3], 0)


def test_a_list_of_characters_has_the_unknown_last(tmp_path):
    tokenizer = open_tokenizer(str(written(tmp_path / "v.json", '["b", "é", "\\n", "\\ufffd"]')))
    assert tokenizer("b\né?") == [0, 2, 1, 3]
    assert tokenizer.cut("bbbb", 3) == [0, 0, 0]


def test_a_tokenizer_json_is_used_without_the_padding_and_cutting_that_it_was_saved_with(tmp_path):
    tokenizer = open_tokenizer(str(words(tmp_path / "tokenizer.json")))
    assert tokenizer("a b a") == [2, 0, 2, 1]
    assert tokenizer.cut("a b a", 3) == [2, 0, 1]  # the mark of the end stays
    assert tokenizer("a b a") == [2, 0, 2, 1]
    assert tokenizer.pad == 3
    assert open_tokenizer(str(words(tmp_path / "p.json", pad_id=7, pad_token="x", length=9))).pad == 7


def test_a_directory_gives_the_tokenizer_that_transformers_makes_of_it(tmp_path):
    words(tmp_path / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "a", "model_max_length": 3}
    written(tmp_path / "tokenizer_config.json", json.dumps(settings))
    tokenizer = open_tokenizer(str(tmp_path))
    assert (tokenizer("a b a"), tokenizer.pad) == ([2, 0, 2, 1], 2)
    assert tokenizer.cut("a b a", 3) == [2, 0, 1]


def test_a_directory_with_code_of_its_own_does_not_run_it(tmp_path):
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    written(tmp_path / "tokenizer_config.json", json.dumps(settings))
    written(tmp_path / "own.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(BadData, match="no tokenizer that transformers opens without code of its own"):
        open_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "no tokenizer: Expecting property name"),
        ("{}", "no tokenizer: "),
        ("3", "no tokenizer: "),
        ('["a"]', "a vocabulary is a list of two or more single characters"),
        ('["a", "bc"]', "a vocabulary is a list of two or more single characters"),
        ('["a", 1]', "a vocabulary is a list of two or more single characters"),
        ('["a", "b", "a"]', "a character stands in the vocabulary twice"),
        ("", "the file is empty"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content, problem):
    path = written(tmp_path / "t.json", content)
    with pytest.raises(BadData) as caught:
        open_tokenizer(str(path))
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named_with_its_neighbour(tmp_path):
    written(tmp_path / "vocab.json", "[]")
    with pytest.raises(FileNotThere, match=r"vocabs\.json: no such file; did you mean 'vocab\.json'"):
        open_tokenizer(str(tmp_path / "vocabs.json"))


@pytest.mark.parametrize(("library", "spec"), [("tokenizers", "t.json"), ("transformers", ".")])
def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch, library, spec):
    words(tmp_path / "t.json")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"{library} is not installed; pip install 'modelzip\[hf\]'"):
        open_tokenizer(str(tmp_path / spec))


def test_a_function_is_a_tokenizer_and_one_of_ours_stays_as_it_is():
    tokenizer = as_tokenizer(lambda text: list(range(len(text))))
    assert (tokenizer("abc"), tokenizer.cut("abc", 2), tokenizer.pad) == ([0, 1, 2], [0, 1], 0)
    assert as_tokenizer(tokenizer) is tokenizer
