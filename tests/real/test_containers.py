"""The containers that checkpoints come in, and the foreign files that only look like them."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from modelzip_cli import load_file
from modelzip_cli.cli import app as program
from tests import checkpoints
from tests.checkpoints import same, weights
from tests.hostile.makers import entry, integer, mapping, read_all, safetensors_of
from tests.real import makers
from tests.real.checks import assert_close, assert_refused, assert_same, container_of, each_form, files_in, load

# Containers: the legacy non-zip format of torch, 2018 to 2021

LEGACY = {
    "plain": checkpoints.state_dict,
    "tied": lambda: (tensors := checkpoints.state_dict()) | {"lm_head.weight": tensors["embed.weight"]},
    "slices": lambda: dict(zip("abc", weights(3 * 96, 64, seed=30).split(96), strict=True)),
    "strided": lambda: {"w": weights(96, 128, seed=31).t(), "v": weights(8, 12, 10, 16).permute(3, 1, 0, 2)},
    "small and empty": checkpoints.small_and_empty,
    "dtypes": lambda: {
        str(dtype): checkpoints.of_dtype(dtype, 5, 3)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int16, torch.uint8, torch.bool)
    },
}


@pytest.mark.parametrize("kind", LEGACY)
def test_a_legacy_file_is_read_and_comes_back_as_a_zip_file(kind, run, there_and_back, tmp_path):
    path = makers.legacy(tmp_path / "model.pth", LEGACY[kind]())
    expected = load(path)
    assert container_of(run, path) == "torch"
    assert_same(load_file(path), expected)
    back = there_and_back(path, "--allow-nonfinite")
    assert back.read_bytes().startswith(b"PK\x03\x04")
    assert_close(load(back), expected)
    assert_same(load(there_and_back(path, "-s", "keep")), expected)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_the_suffix_of_a_legacy_file_is_that_of_what_is_restored(suffix, there_and_back, tmp_path):
    path = makers.legacy(tmp_path / f"model{suffix}", checkpoints.state_dict())
    assert there_and_back(path).name == f"small.restored{suffix}"


def test_a_legacy_trainer_file_keeps_what_is_around_the_weights(there_and_back, tmp_path):
    value = {"model_state_dict": checkpoints.state_dict(), **checkpoints.trainer_values()}
    path = makers.legacy(tmp_path / "model.pth", value)
    found = load(there_and_back(path, "-s", "keep", "--keep-extras"))
    assert [*found] == [*value]
    assert_same(found["model_state_dict"], value["model_state_dict"])
    assert found["class_names"] == value["class_names"]
    assert same(found["optimizer"]["state"][0]["exp_avg"], value["optimizer"]["state"][0]["exp_avg"])


def test_a_tie_in_a_legacy_file_is_one_again_when_restored(there_and_back, tmp_path):
    found = load(there_and_back(makers.legacy(tmp_path / "m.pth", LEGACY["tied"]())))
    assert found["embed.weight"].data_ptr() == found["lm_head.weight"].data_ptr()


def test_a_legacy_file_made_dense_is_loaded_by_the_script_that_loaded_it(run, tmp_path):
    path = makers.legacy(tmp_path / "model.pth", {"model": checkpoints.state_dict(), "epoch": 3})
    assert run("quantize", path, "-s", "fp16", "--layout", "dense").exit_code == 0
    found = load(tmp_path / "model.fp16.pth")
    assert found["epoch"] == 3
    assert same(found["model"]["embed.weight"], checkpoints.state_dict()["embed.weight"].half())


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
def test_a_legacy_file_that_was_cut_is_refused(keep, run, tmp_path):
    path = makers.legacy(tmp_path / "model.pth", checkpoints.state_dict())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert_refused(run("quantize", path), 1, "model.pth")
    assert files_in(tmp_path) == ["model.pth"]


def test_a_legacy_file_cut_at_any_byte_is_refused(tmp_path):
    whole = makers.legacy(tmp_path / "m.pth", {"w": torch.ones(2, 3)}).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(program.ModelzipError):
            read_all(tmp_path / "cut.pth")


def test_a_legacy_file_of_a_big_endian_machine_is_not_read_as_if_it_were_little_endian(run, tmp_path):
    system = {"protocol_version": integer(1001), "little_endian": makers.FALSE, "type_sizes": mapping({})}
    held = makers.held_storage("1", 4, makers.NONE)
    root = mapping({"w": makers.old_tensor(held, (2, 2))})
    storages = {"1": (4, struct.pack(">4f", 1, 2, 3, 4))}
    path = tmp_path / "m.pth"
    path.write_bytes(makers.assembled_legacy(root, storages, system=system))
    assert_refused(run("quantize", path), 1, "endian")


def test_a_legacy_file_with_megabytes_of_values_before_its_storages_is_read(there_and_back, tmp_path):
    words = {number: f"token number {number}" for number in range(60_000)}
    path = makers.legacy(tmp_path / "m.pth", {"state_dict": checkpoints.state_dict(), "vocabulary": words})
    found = load(there_and_back(path))
    assert found["vocabulary"] == words
    assert_close(found["state_dict"], checkpoints.state_dict())


# Its oldest form: torch._utils._rebuild_tensor with four arguments, no _metadata; and Python 2


@pytest.mark.parametrize("python_2", [False, True], ids=["python 3", "python 2"])
@pytest.mark.parametrize("form", makers.OLDEST)
def test_the_oldest_legacy_form_is_read(form, python_2, run, there_and_back, tmp_path):
    path = tmp_path / "alexnet.pth"
    expected = makers.oldest(path, form, python_2=python_2)
    assert_same(load(path), expected)  # torch reads what was put together by hand
    assert_same(load_file(path), expected)
    assert container_of(run, path) == "torch"
    assert_close(load(there_and_back(path)), expected)


def test_storages_of_a_legacy_file_that_are_views_of_others_are_read(there_and_back, tmp_path):
    expected = makers.legacy_views(tmp_path / "m.pth")
    assert_same(load(tmp_path / "m.pth"), expected)
    assert_same(load_file(tmp_path / "m.pth"), expected)


def test_storages_of_a_legacy_file_come_in_any_order(tmp_path):
    parts = {key: weights(5, 7, seed=40 + place) for place, key in enumerate(("9", "10", "1"))}
    pairs = {
        f"w{key}": makers.old_tensor(makers.held_storage(key, 35, makers.NONE), (5, 7)) for key in ("1", "9", "10")
    }
    storages = {key: (35, makers.raw(value)) for key, value in parts.items()}
    (tmp_path / "m.pth").write_bytes(makers.assembled_legacy(mapping(pairs), storages))
    assert_same(load_file(tmp_path / "m.pth"), {f"w{key}": parts[key] for key in ("1", "9", "10")})


# The zip format: any root folder, entries that differ by age


@pytest.mark.parametrize("root", ["archive", "best_model_x3", "epoch27_0.9134_loss.pth", "a b é", "0", "data"])
def test_the_folder_in_a_zip_file_may_have_any_name(root, run, there_and_back, tmp_path):
    path, value = tmp_path / "model.pth", checkpoints.state_dict()
    makers.zip_of_age(path, value, makers.AGES["1.6"], root)
    assert_close(load(there_and_back(path)), value)


@pytest.mark.parametrize("age", makers.AGES)
def test_a_zip_file_of_any_age_is_read(age, there_and_back, tmp_path):
    value = {"model": checkpoints.state_dict(), "epoch": 3}
    path = makers.zip_of_age(tmp_path / "model.pth", value, makers.AGES[age])
    found = load(there_and_back(path))
    assert_close(found["model"], value["model"])
    assert found["epoch"] == 3


# Content, never the suffix


@pytest.mark.parametrize("name", ["m.pth.tar", "m.ckpt", "m.pt", "m.pth", "m.bin", "m.safetensors", "m.model", "m"])
@each_form
def test_a_torch_file_is_known_by_its_content_whether_zip_or_legacy(write, name, run, tmp_path):
    path = write(tmp_path / name, checkpoints.state_dict())
    assert container_of(run, path) == "torch"
    done = run("quantize", path, "-q", "-o", "out.safetensors")
    assert done.exit_code == 0, done.stderr
    assert_close(load_file(tmp_path / "out.safetensors"), load(path))


def test_a_safetensors_file_is_known_by_its_content(run, tmp_path):
    for name in ("m.bin", "m.pth", "m"):
        path = checkpoints.plain_safetensors(tmp_path / name)
        assert container_of(run, path) == "safetensors"
        assert run("quantize", path, "-o", f"{name}.out.safetensors").exit_code == 0


@each_form
def test_pth_tar_is_one_suffix(write, run, tmp_path):
    path = write(tmp_path / "model_best.pth.tar", {"state_dict": checkpoints.state_dict(), "epoch": 3})
    assert run("quantize", path).exit_code == 0
    assert (tmp_path / "model_best.int8.safetensors").exists()


# Foreign files: what it is, in one line. test_foreign_files.py holds GGUF, HDF5, npy, npz, gzip, 7z, zstd, Git LFS
# pointers, HTML, ELF, other zips, bare pickles and text by their messages; here are the program's words, and the rest

FOREIGN = {
    "CTranslate2": (makers.ctranslate2(), "CTranslate2"),
    "CTranslate2, a translator": (makers.ctranslate2("WhisperSpec"), "CTranslate2"),
    "ONNX of torch": (makers.onnx("pytorch"), "ONNX"),
    "ONNX of another producer": (makers.onnx("tf2onnx"), "ONNX"),
    "torch 0.1": (makers.torch_0_1(), "tar"),
    "tar": (makers.other_tar(), "tar"),
    "GGUF": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "GGUF"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n",
        "git lfs pull",
    ),
    "HTML": (b"\n<!doctype HTML>\n<html lang=en><body>401</body></html>", "HTML"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(40), "gzip"),
}


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors", "model.onnx"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_named_in_one_line_and_nothing_is_written(kind, name, run, tmp_path):
    data, what = FOREIGN[kind]
    (tmp_path / name).write_bytes(data)
    for command in ("quantize", "inspect"):
        assert_refused(run(command, tmp_path / name), 1, name, what)
    assert files_in(tmp_path) == [name]


def test_the_line_about_a_foreign_file_says_what_is_accepted(run, tmp_path):
    (tmp_path / "model.bin").write_bytes(makers.ctranslate2())
    assert_refused(run("quantize", tmp_path / "model.bin"), 1, ".safetensors", "torch")


def test_npz_is_foreign(run, tmp_path):
    import numpy as np

    np.savez(tmp_path / "weights.npz", a=np.ones((64, 64)))
    assert_refused(run("quantize", tmp_path / "weights.npz"), 1, "weights.npz", "NumPy .npz")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_foreign_and_the_advice_is_a_state_dict(run, tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.trace(torch.nn.Linear(64, 64), torch.ones(1, 64)).save(str(path))
    done = run("quantize", path)
    assert_refused(done, 1, "model.pt", "TorchScript", "state_dict")
    assert "trust" not in done.stderr
    assert files_in(tmp_path) == ["model.pt"]


# Safetensors: what is in the metadata

METADATA = {
    "none": None,
    "as transformers writes it": {"format": "pt"},
    "JSON as a value": {"format": "pt", "config": json.dumps({"layers": [1, 2], "é": '"\\'}), "empty": ""},
}


@pytest.mark.parametrize("kind", METADATA)
def test_the_metadata_inside_a_safetensors_file_stays_as_it_was(kind, run, there_and_back, tmp_path):
    path, metadata = tmp_path / "model.safetensors", METADATA[kind]
    save_file(dict(checkpoints.state_dict()), path, metadata=metadata)
    back = there_and_back(path)
    with safe_open(tmp_path / "small.safetensors", "pt") as stored:
        assert (metadata or {}).items() <= stored.metadata().items()
    with safe_open(back, "pt") as stored:
        assert stored.metadata() in ((metadata,) if metadata else (None, {"format": "pt"}))


def test_a_header_of_88_bytes_for_one_tensor_is_read(there_and_back, tmp_path):
    value = weights(64, 80, seed=41)
    header = json.dumps({"weight": entry([64, 80], 0, 20480)}).encode()
    path = tmp_path / "one.safetensors"
    path.write_bytes(safetensors_of(header + b" " * (88 - len(header)), makers.raw(value)))
    assert int.from_bytes(path.read_bytes()[:8], "little") == 88
    assert_close(load(there_and_back(path)), {"weight": value})
