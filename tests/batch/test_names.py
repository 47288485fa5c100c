"""Names of outputs, from the names of sources."""

from __future__ import annotations

import os

import pytest

from modelzip_cli.batch.names import derived_name, output_name, restored_name
from modelzip_cli.recipe import Recipe
from modelzip_cli.single import Settings, compress_file
from tests.checkpoints import plain_pth, plain_safetensors


@pytest.mark.parametrize(
    ("name", "derived"),
    [
        ("model.pth", "model.int8.safetensors"),
        ("model.safetensors", "model.int8.safetensors"),
        ("model.pt2", "model.int8.safetensors"),
        ("model.pth.tar", "model.int8.safetensors"),
        ("v1.5-final.ckpt", "v1.5-final.int8.safetensors"),
        ("resnet50-0676ba61", "resnet50-0676ba61.int8.safetensors"),
        ("weights.v2", "weights.v2.int8.safetensors"),
        (".pth", ".pth.int8.safetensors"),
        ("a b.bin", "a b.int8.safetensors"),
    ],
)
def test_only_a_known_suffix_is_taken_off(name, derived, tmp_path):
    assert derived_name(tmp_path / name, "int8", ".safetensors") == derived


def test_a_directory_keeps_its_whole_name_and_gets_no_suffix(tmp_path):
    (tmp_path / "llama-1.5.bin").mkdir()
    assert derived_name(tmp_path / "llama-1.5.bin", "int8", ".safetensors") == "llama-1.5.bin.int8"


def test_the_current_directory_is_called_what_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "bert").mkdir()
    monkeypatch.chdir(tmp_path / "bert")
    assert derived_name(tmp_path / "bert" / ".", "int8", "") == "bert.int8"
    assert derived_name((tmp_path / "bert").relative_to(tmp_path / "bert"), "int8", "") == "bert.int8"


def test_a_name_that_is_no_text_keeps_its_bytes(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.pth")
    assert os.fsencode(derived_name(path, "int8", ".safetensors")) == b"caf\xe9.int8.safetensors"


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".safetensors"])
def test_a_dense_output_has_the_suffix_of_its_source(suffix, tmp_path):
    recipe = Recipe(scheme="fp16", layout="dense")
    assert output_name(tmp_path / f"model{suffix}", recipe) == f"model.fp16{suffix}"


def test_the_suffix_of_a_dense_output_follows_the_content_where_the_source_has_none(tmp_path):
    recipe = Recipe(scheme="fp16", layout="dense")
    assert output_name(plain_pth(tmp_path / "torch"), recipe) == "torch.fp16.pth"
    assert output_name(plain_safetensors(tmp_path / "safe"), recipe) == "safe.fp16.safetensors"


def test_a_native_output_is_named_without_a_look_at_the_source(tmp_path):
    assert output_name(tmp_path / "not there.pth", Recipe()) == "not there.int8.safetensors"


@pytest.mark.parametrize(
    ("source", "restored"),
    [("a.ckpt", "small.restored.ckpt"), ("a.safetensors", "small.restored.safetensors"), ("a", "small.restored.pth")],
)
def test_a_restored_file_has_the_suffix_of_what_was_compressed(source, restored, tmp_path):
    write = plain_safetensors if source.endswith(".safetensors") else plain_pth
    small = tmp_path / "small.safetensors"
    compress_file(write(tmp_path / source), small, Recipe(), Settings(), command="quantize")
    assert restored_name(small) == restored


def test_a_plain_file_is_restored_as_safetensors(tmp_path):
    assert restored_name(plain_pth(tmp_path / "model.bin")) == "model.restored.safetensors"
