"""The index of a Hugging Face directory: it names every tensor once, or the directory is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.checkpoints import weights
from tests.real import makers
from tests.real.checks import assert_close, assert_refused, load, read_directory
from tests.real.makers import edit_index, hugging_face, index_name, model_tensors, shard_names


def swap(index: dict[str, Any]) -> None:
    """Say of two tensors of different shards that each is in the other's."""
    names = [*index["weight_map"]]
    first, last = names[0], names[-1]
    files = index["weight_map"]
    files[first], files[last] = files[last], files[first]


def point_to(file: Any) -> Callable[[dict[str, Any]], None]:
    """Say of the first tensor that it is in `file`."""
    return lambda index: index["weight_map"].update({"model.embed_tokens.weight": file})


WRONG_INDEXES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a shard that is not there": point_to("model-00004-of-00003.safetensors"),
    "a tensor that no shard has": lambda index: index["weight_map"].update(ghost="model-00001-of-00003.safetensors"),
    "a tensor that the index lacks": lambda index: index["weight_map"].pop("model.norm.weight"),
    "a shard that the index lacks": lambda index: [
        index["weight_map"].pop(key) for key, file in [*index["weight_map"].items()] if "00003-of" in file
    ],
    "a tensor in another shard": point_to("model-00003-of-00003.safetensors"),
    "two tensors that changed places": swap,
    "a shard above the folder": point_to("../model-00001-of-00003.safetensors"),
    "a shard by an absolute path": point_to("/etc/passwd"),
    "a shard in a subfolder": point_to("1_Pooling/config.json"),
    "a shard called ..": point_to(".."),
    "a shard with a zero byte": point_to("model\0.safetensors"),
    "a shard with a backslash": point_to("..\\model.safetensors"),
    "a shard without a name": point_to(""),
    "a shard that is a number": point_to(1),
    "no weight_map": lambda index: index.pop("weight_map"),
    "a weight_map that is a list": lambda index: index.update(weight_map=[]),
    "an empty weight_map": lambda index: index.update(weight_map={}),
}


@pytest.mark.parametrize("wrong", WRONG_INDEXES)
def test_a_directory_whose_index_disagrees_with_its_shards_is_refused(wrong, run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    edit_index(folder, WRONG_INDEXES[wrong])
    assert_refused(run("quantize", folder), 1, "bert")
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


@pytest.mark.parametrize("written", ["", "{", "[]", "null", '{"weight_map": {"a": "b", "a": "c"}}', "\ufeff{}", "NaN"])
def test_a_directory_whose_index_is_no_index_is_refused(written, run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    (folder / index_name(".safetensors")).write_text(written)
    assert_refused(run("quantize", folder), 1, "bert", "index.json")
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_a_directory_with_one_tensor_in_two_shards_is_refused(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    last = folder / "model-00003-of-00003.safetensors"
    makers.write_shard(last, load(last) | {"model.embed_tokens.weight": weights(130, 64)})
    assert_refused(run("quantize", folder), 1, "bert", "model.embed_tokens.weight")
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_a_directory_in_which_a_shard_was_not_downloaded_is_refused_by_its_name(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert_refused(run("quantize", folder), 1, "model-00002-of-00003.safetensors")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
    (folder / "model-00002-of-00003.safetensors").write_bytes(pointer)
    assert_refused(run("quantize", folder), 1, "model-00002-of-00003.safetensors", "git lfs pull")
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_shards_of_a_directory_without_their_index_are_no_model(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    (folder / index_name(".safetensors")).unlink()
    done = run("quantize", folder)
    assert done.exit_code in (1, 2)
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_a_directory_without_weights_is_refused(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors())
    (folder / "model.safetensors").unlink()
    done = run("quantize", folder)
    assert done.exit_code in (1, 2)
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


@pytest.mark.parametrize("metadata", [None, {}, {"total_size": 5}, {"total_size": 1e9, "total_parameters": 7}])
def test_the_size_in_the_index_of_a_directory_need_not_be_right_and_is_when_restored(metadata, run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    edit_index(folder, lambda index: index.update(metadata=metadata) if metadata is not None else index.pop("metadata"))
    done = run("quantize", folder)
    assert done.exit_code == 0, done.stderr
    assert run("restore", tmp_path / "bert.int8").exit_code == 0
    index = json.loads((tmp_path / "bert.int8.restored" / index_name(".safetensors")).read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in model_tensors().values())


def test_a_single_file_in_a_directory_may_have_an_index(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors())
    index = {"metadata": {}, "weight_map": dict.fromkeys(model_tensors(), "model.safetensors")}
    (folder / index_name(".safetensors")).write_text(json.dumps(index))
    assert run("quantize", folder).exit_code == 0
    assert not (tmp_path / "bert.int8" / "model.safetensors").exists()
    assert run("restore", tmp_path / "bert.int8").exit_code == 0
    assert set(read_directory(tmp_path / "bert.int8.restored", ".safetensors")) == set(model_tensors())


def test_a_sharded_directory_of_torch_files_may_be_legacy(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3, suffix=".bin")
    for name in shard_names(3, ".bin"):
        makers.legacy(folder / name, load(folder / name))
    assert run("quantize", folder).exit_code == 0
    assert run("restore", tmp_path / "bert.int8").exit_code == 0
    found = read_directory(tmp_path / "bert.int8.restored", ".bin")
    assert_close(found, {key: model_tensors()[key] for key in found})


def test_a_tie_within_a_shard_of_a_directory_is_one_again(run, tmp_path):
    tensors = model_tensors()
    tensors = {"lm_head.weight": tensors["model.embed_tokens.weight"], **tensors}
    folder = hugging_face(tmp_path / "gpt", tensors, suffix=".bin")
    assert run("quantize", folder).exit_code == 0
    assert run("restore", tmp_path / "gpt.int8").exit_code == 0
    found = load(tmp_path / "gpt.int8.restored" / "pytorch_model.bin")
    assert found["lm_head.weight"].data_ptr() == found["model.embed_tokens.weight"].data_ptr()
