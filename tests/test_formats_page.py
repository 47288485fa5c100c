"""docs/formats.md says what can be read and written: every cell of its tables is held against the program."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_safetensors

from modelzip_cli import load_file
from modelzip_cli.cli import app as program
from tests import checkpoints
from tests.checkpoints import same, weights
from tests.conftest import Run
from tests.hostile.makers import Member, call, integer, mapping, text, torch_file, torch_members, zip_of
from tests.real import makers

Tensors = dict[str, torch.Tensor]
PAGE = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
READ_COLUMNS = ["checkpoint", "read as", "compressed", "dense", "restored", "notes"]
REFUSED_COLUMNS = ["file", "exit code", "the line says"]


def table(columns: list[str]) -> dict[str, list[str]]:
    """The rows of the one table with these columns, by their first cell."""
    lines = PAGE.splitlines()
    start = lines.index(f"| {' | '.join(columns)} |")
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        first, *others = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert len(others) == len(columns) - 1, line
        assert first not in rows
        rows[first] = others
    return rows


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Callable[..., Run]:
    """Run a command line in this process and in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run_line(*arguments: object) -> Run:
        capsys.readouterr()
        code = program._run([str(argument) for argument in arguments])
        found = capsys.readouterr()
        return Run(code, found.out.encode(), found.err)

    return run_line


# What can be read: each maker returns the path and the tensors that are in it

Made = tuple[Path, Tensors]


def written(path: Path, tensors: Tensors, writer: Callable[[Path, object], Path], around: object = None) -> Made:
    return writer(path, tensors if around is None else around), tensors


def plain_safetensors(folder: Path) -> Made:
    return checkpoints.plain_safetensors(folder / "m.safetensors"), checkpoints.state_dict()


def trainer(folder: Path) -> Made:
    state = checkpoints.state_dict()
    return written(folder / "m.ckpt", state, makers.zipped, {"state_dict": state, "epoch": 3})


def python_2(folder: Path) -> Made:
    return folder / "m.pth", makers.oldest(folder / "m.pth", "legacy", python_2=True)


def whole_model(folder: Path) -> Made:
    tensors = makers.whole_module(folder, lambda model: torch.save(model, folder / "m.pt"))
    (folder / "somebodys_net.py").unlink()
    return folder / "m.pt", tensors


def exported(folder: Path) -> Made:
    return folder / "m.pt2", makers.exported(folder / "m.pt2")


def compressed(folder: Path, suffix: str) -> Made:
    path = checkpoints.plain_pth(folder / "source.pth")
    output = folder / f"m{suffix}"
    assert program._run(["quantize", str(path), "-o", str(output), "-s", "int8", "-q"]) == 0
    path.unlink()
    return output, checkpoints.state_dict()


def directory(folder: Path, suffix: str, shards: int) -> Made:
    tensors = makers.model_tensors()
    return makers.hugging_face(folder / "m", tensors, suffix=suffix, shards=shards), tensors


def compressed_directory(folder: Path) -> Made:
    path, tensors = directory(folder / "source", ".safetensors", 3)
    assert program._run(["quantize", str(path), "-o", str(folder / "m"), "-q"]) == 0
    return folder / "m", tensors


READ: dict[str, Callable[[Path], Made]] = {
    "safetensors file": plain_safetensors,
    "torch file, since 1.6 (zip)": lambda folder: written(
        folder / "m.pth.tar", checkpoints.state_dict(), makers.zipped
    ),
    "torch file, before 1.6": lambda folder: written(folder / "m.bin", checkpoints.state_dict(), makers.legacy),
    "torch file of 2017, Python 2": python_2,
    "model pickled whole": whole_model,
    "checkpoint of a trainer": trainer,
    "one bare tensor": lambda folder: written(
        folder / "m.pt", {"tensor": weights(64, 96)}, makers.zipped, weights(64, 96)
    ),
    "Hugging Face directory, `model.safetensors`": lambda folder: directory(folder, ".safetensors", 1),
    "Hugging Face directory, `pytorch_model.bin`": lambda folder: directory(folder, ".bin", 1),
    "Hugging Face directory, safetensors in shards": lambda folder: directory(folder, ".safetensors", 3),
    "Hugging Face directory, `.bin` in shards": lambda folder: directory(folder, ".bin", 3),
    "exported program (`.pt2`)": exported,
    "compressed file (safetensors)": lambda folder: compressed(folder, ".safetensors"),
    "compressed file (torch)": lambda folder: compressed(folder, ".pth"),
    "compressed directory": compressed_directory,
    "standard input (`-`)": plain_safetensors,
}
FILES = {name: maker for name, maker in READ.items() if name != "standard input (`-`)"}
SUFFIXES = {"safetensors": ".safetensors", "torch": ".pth", "directory": ""}


def kind_of(path: Path) -> str:
    """What an output is: safetensors, torch (the zip form) or directory."""
    if path.is_dir():
        return "directory"
    with path.open("rb") as file:
        start = file.read(9)
    return "torch" if start.startswith(b"PK\x03\x04") else {b"{": "safetensors"}[start[8:9]]


def assert_close(found: Tensors, expected: Tensors, tolerance: float = 1 / 50) -> None:
    """The same names and shapes, and weights as int8 leaves them, once or twice."""
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        if value.numel():
            error = (found[name].double() - value.double()).abs().max()
            assert error <= value.double().abs().max() * tolerance, name


def others_read(path: Path) -> Tensors:
    """The plain weights at `path` as torch, safetensors and the index of a directory give them, without modelzip."""
    if path.is_dir():
        index = next(path.glob("*.index.json"), None)
        names = set(json.loads(index.read_text())["weight_map"].values()) if index else None
        files = [path / name for name in names] if names else [*path.glob("model.safetensors"), *path.glob("*.bin")]
        return {name: value for file in files for name, value in others_read(file).items()}
    if kind_of(path) == "safetensors":
        return load_safetensors(path)
    found = torch.load(path, weights_only=True)
    if isinstance(found, torch.Tensor):
        return {"tensor": found}
    found = next((found[key] for key in ("state_dict", "model_state_dict") if key in found), found)
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def listed(done: Run) -> Path:
    assert done.exit_code == 0, done.stderr
    return Path(done.stdout.strip())


def test_every_row_of_the_table_has_a_maker_and_every_maker_a_row():
    assert [*table(READ_COLUMNS)] == [*READ]
    assert [*table(REFUSED_COLUMNS)] == [*REFUSED]


@pytest.mark.parametrize("row", FILES)
def test_what_is_read_is_read_as_the_table_says(row, run, tmp_path):
    path, expected = READ[row](tmp_path)
    claimed = table(READ_COLUMNS)[row][0]
    done = run("inspect", path, "--json")
    assert done.exit_code == 0, done.stderr
    assert f"`{done.json['source']['container']}`" == claimed
    assert done.json["source"]["compressed"] is row.startswith("compressed")
    found = load_file(path)
    if row.startswith("compressed"):
        assert_close(found, expected)
    else:
        assert sorted(found) == sorted(expected)
        assert all(same(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("row", FILES)
def test_what_is_written_is_what_the_table_says_and_comes_back(row, run, tmp_path):
    path, expected = READ[row](tmp_path)
    _, small, dense, restored, _ = table(READ_COLUMNS)[row]
    default, *others = small.split(", ")
    output = listed(run("quantize", path, "-q"))
    assert kind_of(output) == default
    for kind in (default, *others):
        small_path = listed(run("quantize", path, "-q", "-o", tmp_path / f"small{SUFFIXES[kind]}"))
        assert kind_of(small_path) == kind
        assert run("inspect", small_path, "--json").json["source"]["compressed"]
        assert_close(load_file(small_path), expected)
    back = listed(run("restore", path if row.startswith("compressed") else output, "-q"))
    assert kind_of(back) == restored
    assert_close(others_read(back), expected)
    plain = listed(run("quantize", path, "-q", "-s", "fp16", "--layout", "dense"))
    assert kind_of(plain) == dense
    assert_close(others_read(plain), expected)


@pytest.mark.parametrize("row", [row for row, cells in table(READ_COLUMNS).items() if cells[1] == "directory"])
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_directory_becomes_one_file_where_the_page_says_so(row, kind, run, tmp_path):
    path, expected = READ[row](tmp_path)
    small = listed(run("quantize", path, "-q", "-o", tmp_path / f"one{SUFFIXES[kind]}"))
    assert kind_of(small) == kind
    assert_close(load_file(small), expected)


def test_a_stream_is_read_and_written_as_the_table_says(modelzip, tmp_path):
    row = "standard input (`-`)"
    path, expected = READ[row](tmp_path)
    claimed, *outputs, _ = table(READ_COLUMNS)[row]
    assert outputs == ["stream"] * 3
    assert f"`{modelzip('inspect', '-', '--json', stdin=path.read_bytes()).json['source']['container']}`" == claimed
    small = modelzip("quantize", "-", "-o", "-", stdin=path.read_bytes())
    dense = modelzip("quantize", "-", "-s", "fp16", "--layout", "dense", stdin=path.read_bytes())
    back = modelzip("restore", "-", stdin=small.stdout_bytes)
    for name, done in {"small": small, "dense": dense, "back": back}.items():
        assert done.exit_code == 0, done.stderr
        (tmp_path / name).write_bytes(done.stdout_bytes)
        assert kind_of(tmp_path / name) == "safetensors"
        assert_close(load_file(tmp_path / name), expected)


@pytest.mark.parametrize(
    "row",
    ["torch file, since 1.6 (zip)", "torch file, before 1.6", "compressed file (torch)", "exported program (`.pt2`)"],
)
def test_any_file_may_come_on_standard_input(row, modelzip, tmp_path):
    path, expected = READ[row](tmp_path)
    done = modelzip("quantize", "-", stdin=path.read_bytes())
    assert done.exit_code == 0, done.stderr
    (tmp_path / "out").write_bytes(done.stdout_bytes)
    assert_close(load_file(tmp_path / "out"), expected)


# What is refused: each maker writes the file


def to_bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def script(path: Path) -> None:
    members = torch_members(pickle.dumps({}, 2), {})
    path.write_bytes(zip_of([*members, Member("archive/constants.pkl", b""), Member("archive/code/a.py", b"")]))


def pickled_export(path: Path) -> None:
    makers.exported(path)
    makers.edit_zip(
        path,
        lambda name, data: (
            data.replace(b'"use_pickle": false', b'"use_pickle": true')
            if name.endswith("weights_config.json")
            else data
        ),
    )


def big_endian(path: Path) -> None:
    system = {**makers.SYSTEM, "little_endian": makers.FALSE}
    path.write_bytes(makers.assembled_legacy(mapping({"n": integer(1)}), {}, system=system))


def numpy_file(path: Path, *, archive: bool) -> None:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(3)) if archive else np.save(stream, np.ones(3))
    path.write_bytes(stream.getvalue())


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"
REFUSED: dict[str, Callable[[Path], object]] = {
    "TorchScript": script,
    "object of your own class instead of weights": lambda path: torch_file(
        path, mapping({"model": call("mine.Net", text("w"))})
    ),
    "exported program with pickled weights": pickled_export,
    "exported program from before torch 2.8": to_bytes(
        zip_of([Member("serialized_exported_program.json", b"{}"), Member("serialized_state_dict.pt", b"")])
    ),
    "torch file of a big-endian machine": big_endian,
    "torch 0.1": to_bytes(makers.torch_0_1()),
    "tar": to_bytes(makers.other_tar()),
    "pickle without weights": to_bytes(pickle.dumps({"w": [1, 2, 3]}, 2)),
    "torch file without weights": lambda path: torch_file(path, mapping({"epoch": integer(3)})),
    "GGUF": to_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0)),
    "ONNX": to_bytes(makers.onnx("pytorch")),
    "Keras, HDF5": to_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40)),
    "NumPy `.npz`": lambda path: numpy_file(path, archive=True),
    "NumPy `.npy`": lambda path: numpy_file(path, archive=False),
    "CTranslate2": to_bytes(makers.ctranslate2()),
    "Git LFS pointer": to_bytes(POINTER),
    "HTML page": to_bytes(b"<!DOCTYPE html><html><body>404</body></html>"),
    "gzip, bzip2, xz, zstd, 7z": to_bytes(gzip.compress(b"weights", mtime=0)),
    "JSON": to_bytes(b'{"architectures": ["Net"]}\n'),
    "empty file": to_bytes(b""),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_is_refused_is_refused_with_the_code_and_the_words_of_the_table(row, run, tmp_path):
    code, says = table(REFUSED_COLUMNS)[row]
    words = re.fullmatch(r'"(.+)"', says)
    assert words
    for name in ("model.safetensors", "model.pth"):
        path = tmp_path / name
        REFUSED[row](path)
        for command in ("inspect", "quantize", "restore", "verify"):
            done = run(command, path)
            assert (done.exit_code, done.stderr.count("\n")) == (int(code), 1), done.stderr
            assert words[1] in done.stderr
        path.unlink()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("magic", [b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c"])
def test_every_compression_of_the_table_is_told_to_be_unpacked(magic, run, tmp_path):
    (tmp_path / "model.pth").write_bytes(magic + bytes(60))
    assert "unpack it first" in run("quantize", tmp_path / "model.pth").stderr
