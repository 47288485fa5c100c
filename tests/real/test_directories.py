"""Hugging Face directories: compressed shard by shard, with everything beside the weights."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest
import torch

from modelzip_cli import load_file
from tests import checkpoints
from tests.checkpoints import same, weights
from tests.conftest import GIVE_UP, PROGRAM
from tests.hostile.makers import entry, safetensors_of
from tests.real import makers
from tests.real.checks import assert_close, assert_refused, files_in, load, read_directory
from tests.real.makers import hugging_face, index_name, model_tensors, modelzip_names, shard_names

each_suffix = pytest.mark.parametrize("suffix", [".safetensors", ".bin"])


@each_suffix
@pytest.mark.parametrize("shards", [1, 3])
def test_a_directory_is_compressed_shard_by_shard_beside_it_with_its_side_files_untouched(
    shards, suffix, run, tmp_path
):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=shards, suffix=suffix)
    before = {name: (folder / name).read_bytes() for name in files_in(folder)}
    done = run("quantize", folder)
    assert done.exit_code == 0, done.stderr
    out = tmp_path / "bert.int8"
    expected = [*makers.SIDE_FILES, *modelzip_names(shards, suffix), "modelzip.index.json"]
    assert set(files_in(out)) <= set(expected)  # a single shard needs no index
    assert set(expected) - set(files_in(out)) <= ({"modelzip.index.json"} if shards == 1 else set())
    for name, data in makers.SIDE_FILES.items():
        assert (out / name).read_bytes() == data
    assert {name: (folder / name).read_bytes() for name in files_in(folder)} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "bert.int8"]


@each_suffix
@pytest.mark.parametrize("shards", [1, 3])
def test_a_directory_comes_back_under_its_names_with_a_right_index(shards, suffix, run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=shards, suffix=suffix)
    assert run("quantize", folder).exit_code == 0
    done = run("restore", tmp_path / "bert.int8")
    assert done.exit_code == 0, done.stderr
    out = tmp_path / "bert.int8.restored"
    assert files_in(out) == files_in(folder)
    found = read_directory(out, suffix)
    assert set(found) == set(model_tensors())
    assert_close(found, {key: model_tensors()[key] for key in found})
    if shards > 1:
        before, after = (json.loads((path / index_name(suffix)).read_text()) for path in (folder, out))
        assert after["weight_map"] == before["weight_map"]
        assert after["metadata"]["total_size"] == before["metadata"]["total_size"]
    for name, data in makers.SIDE_FILES.items():
        assert (out / name).read_bytes() == data


@each_suffix
@pytest.mark.parametrize("shards", [1, 3])
def test_a_dense_directory_has_the_names_of_its_source_and_loads_in_its_place(shards, suffix, run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=shards, suffix=suffix)
    done = run("quantize", folder, "-s", "fp16", "--layout", "dense")
    assert done.exit_code == 0, done.stderr
    out = tmp_path / "bert.fp16"
    assert files_in(out) == files_in(folder)
    found = read_directory(out, suffix)
    assert same(found["model.embed_tokens.weight"], model_tensors()["model.embed_tokens.weight"].half())
    if shards > 1:
        index = json.loads((out / index_name(suffix)).read_text())
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())


@each_suffix
@pytest.mark.parametrize("shards", [1, 3])
def test_no_loader_takes_a_native_directory_for_a_model(shards, suffix, run, tmp_path):
    run("quantize", hugging_face(tmp_path / "bert", model_tensors(), shards=shards, suffix=suffix))
    names = {path.name for path in (tmp_path / "bert.int8").rglob("*")}
    assert names
    known = {"model.safetensors", "pytorch_model.bin", *map(index_name, (".safetensors", ".bin"))}
    known |= {*shard_names(3, ".safetensors"), *shard_names(3, ".bin")}
    assert not names & known


@pytest.mark.parametrize("shards", [1, 3])
def test_each_shard_of_a_native_directory_has_a_manifest_of_its_own(shards, run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=shards)
    run("quantize", folder)
    out = tmp_path / "bert.int8"
    for name, source in zip(modelzip_names(shards, ".safetensors"), shard_names(shards, ".safetensors"), strict=True):
        assert_close(load_file(out / name), load(folder / source))
    if shards > 1:
        index = json.loads((out / "modelzip.index.json").read_text())
        before = json.loads((folder / index_name(".safetensors")).read_text())["weight_map"]
        renamed = dict(zip(shard_names(3, ".safetensors"), modelzip_names(3, ".safetensors"), strict=True))
        assert index["weight_map"] == {key: renamed[file] for key, file in before.items()}


@each_suffix
@pytest.mark.parametrize("shards", [1, 3])
def test_inspect_and_load_file_take_a_directory(shards, suffix, run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=shards, suffix=suffix)
    run("quantize", folder)
    for path, compressed in ((folder, False), (tmp_path / "bert.int8", True)):
        found = run("inspect", path, "--json").json["source"]
        assert (found["container"], found["compressed"]) == ("hf-directory", compressed)
        assert found["tensors"] == len(model_tensors())
        assert found["parameters"] == sum(value.numel() for value in model_tensors().values())
        loaded = load_file(path)
        assert set(loaded) == set(model_tensors())
        assert_close(loaded, {key: model_tensors()[key] for key in loaded})


def test_the_report_on_a_directory_covers_all_shards(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    report = run("quantize", folder, "--json").json
    assert {row["name"] for row in report["tensors"]} == set(model_tensors())
    assert report["source"]["container"] == "hf-directory"
    shards = [tmp_path / "bert.int8" / name for name in modelzip_names(3, ".safetensors")]
    assert report["output"]["bytes"] >= sum(path.stat().st_size for path in shards)
    assert report["totals"]["parameters"] == sum(value.numel() for value in model_tensors().values())


def test_rules_reach_into_every_shard_of_a_directory_and_need_to_match_in_one_only(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    done = run("quantize", folder, "-s", "int4", "--set", "model.layers.2.mlp.up_proj=int2", "--json")
    assert done.exit_code == 0, done.stderr
    schemes = {row["name"]: row["scheme"] for row in done.json["tensors"]}
    assert schemes["model.layers.2.mlp.up_proj.weight"] == "int2-g128"
    assert schemes["model.layers.0.mlp.up_proj.weight"] == "int4-g128"
    assert schemes["model.embed_tokens.weight"] == "int8"
    assert_refused(run("quantize", folder, "--only", "modle.*", "-o", "x"), 2, "matches no tensor", "closest name")


@pytest.mark.parametrize("written", ["bert/", ".", "../bert", "./bert"])
def test_a_directory_may_be_named_in_any_way(written, run, tmp_path, monkeypatch):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    monkeypatch.chdir(folder if written in (".", "../bert") else tmp_path)
    done = run("quantize", written)
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "bert.int8"]
    assert files_in(folder) == sorted([*makers.SIDE_FILES, *shard_names(3, ".safetensors"), index_name(".safetensors")])


def test_the_output_of_a_directory_may_be_chosen(run, tmp_path):
    folder = hugging_face(tmp_path / "in" / "bert", model_tensors(), shards=3)
    assert run("quantize", folder, "-o", "small").exit_code == 0
    assert run("quantize", folder, "--output-dir", "out").exit_code == 0
    assert files_in(tmp_path / "small") == files_in(tmp_path / "out" / "bert.int8")
    assert run("restore", "small", "-o", "back").exit_code == 0
    assert files_in(tmp_path / "back") == files_in(folder)


def test_a_directory_found_by_r_is_one_model(run, tmp_path):
    hugging_face(tmp_path / "models" / "bert", model_tensors(), shards=3)
    hugging_face(tmp_path / "models" / "deep" / "gpt", model_tensors(), suffix=".bin")
    checkpoints.plain_pth(tmp_path / "models" / "plain.pth")
    done = run("quantize", "-r", tmp_path / "models", "--output-dir", "out", "--json")
    assert done.exit_code == 0, done.stderr
    assert done.json["summary"]["done"] == 3
    tops = {name.split("/")[0] for name in files_in(tmp_path / "out")}
    assert tops == {"bert.int8", "deep", "plain.int8.safetensors", "modelzip.jsonl"}
    again = run("quantize", "-r", tmp_path / "out", "--json")
    assert again.exit_code == 0, again.stderr
    assert (again.json["summary"]["done"], again.json["summary"]["failed"]) == (0, 0)


def test_a_directory_that_is_a_model_itself_may_be_given_with_r(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    for option in ((), ("--output-dir", "out")):
        done = run("quantize", "-r", folder, *option)
        assert done.exit_code == 0, done.stderr
    assert files_in(tmp_path / "out" / "bert.int8") == files_in(tmp_path / "bert.int8")


def test_an_existing_output_of_a_directory_is_an_error_or_replaced(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    (tmp_path / "bert.int8").mkdir()
    (tmp_path / "bert.int8" / "precious").write_text("mine")
    assert_refused(run("quantize", folder), 2, "exists")
    assert files_in(tmp_path / "bert.int8") == ["precious"]
    assert run("quantize", folder, "--skip-existing").exit_code == 0
    assert files_in(tmp_path / "bert.int8") == ["precious"]
    (tmp_path / "bert.int8" / "precious").unlink()
    (tmp_path / "bert.int8").rmdir()
    assert run("quantize", folder).exit_code == 0
    before = {name: (tmp_path / "bert.int8" / name).read_bytes() for name in files_in(tmp_path / "bert.int8")}
    assert run("quantize", folder, "-f").exit_code == 0
    assert {name: (tmp_path / "bert.int8" / name).read_bytes() for name in files_in(tmp_path / "bert.int8")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "bert.int8"]


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight"])
def test_an_error_in_any_shard_of_a_directory_leaves_nothing(name, run, tmp_path):
    tensors = model_tensors()
    tensors[name][3, 5] = float("nan")
    folder = hugging_face(tmp_path / "bert", tensors, shards=3)
    assert_refused(run("quantize", folder), 1, name, "NaN")
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_a_dry_run_of_a_directory_writes_nothing(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    done = run("quantize", folder, "-n", "--json")
    assert done.exit_code == 0, done.stderr
    assert done.json["output"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_a_gate_is_held_against_the_whole_directory(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    assert run("quantize", folder, "--fail-under", "sqnr=90").exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]
    assert run("quantize", folder, "--fail-under", "sqnr=30").exit_code == 0


def test_verify_takes_a_native_directory(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    run("quantize", folder)
    out = tmp_path / "bert.int8"
    assert run("verify", out).exit_code == 0
    shard = out / modelzip_names(3, ".safetensors")[1]
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    assert_refused(run("verify", out), 1, "checksum")
    assert_refused(run("restore", out), 1, "checksum")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "bert.int8"]


@pytest.mark.parametrize("shards", [1, 3])
def test_bin_files_beside_safetensors_in_a_directory_are_neither_opened_nor_copied(shards, run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=shards)
    for name in (*shard_names(shards, ".bin"), "training_args.bin"):
        (folder / name).write_bytes(b"not a checkpoint at all")
    if shards > 1:
        (folder / index_name(".bin")).write_text("not JSON")
    done = run("quantize", folder)
    assert done.exit_code == 0, done.stderr
    out = tmp_path / "bert.int8"
    assert not [name for name in files_in(out) if name.endswith((".bin", ".bin.index.json"))]
    assert run("restore", out).exit_code == 0
    assert set(read_directory(tmp_path / "bert.int8.restored", ".safetensors")) == set(model_tensors())


def test_the_weights_for_other_programs_in_a_directory_are_not_copied(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors())
    (folder / "onnx").mkdir()
    for name in ("tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "rust_model.ot"):
        (folder / name).write_bytes(bytes(1000))
    assert run("quantize", folder).exit_code == 0
    assert set(files_in(tmp_path / "bert.int8")) <= {
        *makers.SIDE_FILES,
        *modelzip_names(1, ".safetensors"),
        "modelzip.index.json",
    }


def test_a_module_in_a_subfolder_of_a_directory_is_copied_with_its_weights(run, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors())
    (folder / "2_Dense").mkdir()
    makers.write_shard(folder / "2_Dense" / "model.safetensors", {"linear.weight": weights(64, 64)})
    assert run("quantize", folder).exit_code == 0
    copied = tmp_path / "bert.int8" / "2_Dense" / "model.safetensors"
    assert copied.read_bytes() == (folder / "2_Dense" / "model.safetensors").read_bytes()


def test_the_whole_model_in_one_more_file_beside_the_shards_of_a_directory_is_left_alone(run, tmp_path):
    folder = hugging_face(tmp_path / "mistral", model_tensors(), shards=3)
    makers.write_shard(folder / "consolidated.safetensors", {"tok_embeddings.weight": weights(130, 64)})
    done = run("quantize", folder)
    assert done.exit_code == 0, done.stderr
    assert not [name for name in files_in(tmp_path / "mistral.int8") if "consolidated" in name]


def test_code_in_a_directory_is_not_run(run, tmp_path, monkeypatch):
    folder = hugging_face(tmp_path / "bert", model_tensors(), side_files={"config.json": b'{"auto_map": {"a": "m.A"}}'})
    (folder / "modeling_x.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.chdir(folder)
    assert run("quantize", folder).exit_code == 0
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_directory_of_links_as_the_hub_keeps_it_becomes_one_of_files(shards, run, tmp_path):
    model = hugging_face(tmp_path / "bert", model_tensors(), shards=shards)
    snapshot = makers.hub_cache(tmp_path / "hub", model)
    done = run("quantize", snapshot, "-o", tmp_path / "small")
    assert done.exit_code == 0, done.stderr
    for name, data in makers.SIDE_FILES.items():
        assert (tmp_path / "small" / name).read_bytes() == data
    assert not [path for path in (tmp_path / "small").rglob("*") if path.is_symlink()]
    assert set(load_file(tmp_path / "small" / modelzip_names(shards, ".safetensors")[0]))


@pytest.mark.parametrize("name", ["tokenizer.json", "secret.txt"])
def test_a_link_out_of_a_directory_carries_nothing_along(name, run, tmp_path):
    (tmp_path / "elsewhere").write_text("a secret")
    folder = hugging_face(tmp_path / "bert", model_tensors(), side_files={"config.json": b"{}"})
    (folder / name).symlink_to(tmp_path / "elsewhere")
    run("quantize", folder)
    assert not (tmp_path / "bert.int8" / name).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_directory_is_written_leaves_nothing(number, code, tmp_path, environment):
    size, header = 2 << 20, {"__metadata__": {"format": "pt"}}
    header |= {f"w{n}": entry([1024, size // 4096], n * size, (n + 1) * size) for n in range(96)}
    folder = hugging_face(tmp_path / "bert", {"w": torch.ones(1)})
    with (folder / "model.safetensors").open("wb") as file:
        file.write(safetensors_of(header))
        file.truncate(file.tell() + 96 * size)
    command = [PROGRAM, "quantize", "bert", "-j", "1", "--coder", "bitpack"]  # zeros would take no room otherwise
    settings = environment | {"MODELZIP_KERNELS": "numpy"}
    with subprocess.Popen(command, cwd=tmp_path, env=settings, stderr=subprocess.PIPE) as process:
        while not [path for path in tmp_path.glob(".modelzip-*/.modelzip-*") if path.stat().st_size > size]:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(number)
        stderr = process.communicate(timeout=GIVE_UP)[1]
    assert (process.returncode, stderr.count(b"\n")) == (code, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_the_installed_program_takes_a_directory_there_and_back(installed, tmp_path):
    folder = hugging_face(tmp_path / "bert", model_tensors(), shards=3)
    assert installed("quantize", "bert").exit_code == 0
    done = installed("restore", "bert.int8", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.json["output"]["container"] == "hf-directory"
    assert files_in(tmp_path / "bert.int8.restored") == files_in(folder)
