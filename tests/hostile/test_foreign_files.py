"""Files of other kinds are named for what they are: most "corrupt checkpoints" are one of these."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from modelzip_cli.errors import ModelzipError
from tests.hostile.makers import Member, read_all, torch_members, zip_of


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(3))
    return stream.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"
FOREIGN = {
    "GGUF": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "GGUF"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
    "npy": (npy(), "NumPy array"),
    "npz": (npz(), r"\.npz"),
    "gzip": (gzip.compress(b"weights", mtime=0), "gzip"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(40), "7z"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(40), "zstd"),
    "LFS pointer": (POINTER, "git lfs pull"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "HTML in small letters": (b"<!doctype html>\n<html>", "HTML"),
    "ELF": (b"\x7fELF\x02\x01\x01" + bytes(60), "a program"),
    "TorchScript": (
        zip_of(
            [
                *torch_members(pickle.dumps({}, 2), {}),
                Member("archive/constants.pkl", b""),
                Member("archive/code/a.py", b""),
            ]
        ),
        "TorchScript",
    ),
    "torch.export": (zip_of([Member("m/models/model.json", b"{}"), Member("m/archive_format", b"pt2")]), r"\.pt2"),
    "another zip": (zip_of([Member("readme.txt", b"hello")]), "zip archive"),
    "an empty zip": (zip_of([]), "zip|not a checkpoint|checkpoint"),
    "a bare pickle": (pickle.dumps({"w": [1, 2, 3]}, 2), "bare pickle"),
    "a bare pickle of protocol 4": (pickle.dumps({"w": [1, 2, 3]}, 4), "bare pickle"),
    "empty": (b"", "empty"),
    "one byte": (b"\0", "too short"),
    "zeros": (bytes(100), "not a safetensors file"),
    "text": (b"weights: see the other folder\n", "not a checkpoint"),
    "JSON": (b'{"architectures": ["Net"]}\n', "not a checkpoint"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_foreign_file_is_named_for_what_it_is(kind, suffix, tmp_path):
    data, what = FOREIGN[kind]
    path = Path(tmp_path, f"model{suffix}")
    path.write_bytes(data)
    with pytest.raises(ModelzipError, match=what) as caught:
        read_all(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.exit_code == 1


def test_a_checkpoint_is_known_by_its_content_and_not_by_its_suffix(honest, tmp_path):
    for source, suffix in (("safetensors", ".pth"), ("torch", ".safetensors")):
        path = tmp_path / f"misnamed{suffix}"
        path.write_bytes(honest[source].read_bytes())
        assert read_all(path) == read_all(honest[source])
