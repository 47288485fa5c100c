"""Sources that change under the reader, and paths that are no files: one error at once, and no output."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modelzip_cli.errors import BrokenCheckpoint, FileNotThere, ModelzipError, SourceChanged, UnsupportedCheckpoint
from modelzip_cli.recipe import Recipe
from modelzip_cli.single import Settings, compress_file
from modelzip_cli.source import open_source


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def swap(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [cut, empty, lengthen, touch, swap, remove])
@pytest.mark.parametrize("container", ["safetensors", "torch", "native-safetensors"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_source_that_changes_during_the_run_is_one_error_and_no_output(change, container, suffix, honest, tmp_path):
    source = tmp_path / honest[container].name
    source.write_bytes(honest[container].read_bytes())

    def after_planning(label: str, total: int) -> Callable[[int], None]:
        change(source)
        return lambda done: None

    output = tmp_path / "folder" / f"out{suffix}"
    output.parent.mkdir()
    with pytest.raises((SourceChanged, BrokenCheckpoint)) as caught:
        compress_file(source, output, Recipe(), Settings(begin=after_planning), command="quantize")
    assert str(caught.value).startswith(f"{source}: ")
    assert [*output.parent.iterdir()] == []


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(UnsupportedCheckpoint, match="not a regular file"):
        open_source(tmp_path / "pipe.pth")


def test_a_device_is_refused(tmp_path):
    os.symlink("/dev/zero", tmp_path / "zero.safetensors")
    with pytest.raises(UnsupportedCheckpoint, match="not a regular file"):
        open_source(tmp_path / "zero.safetensors")


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotThere, match=r"did you mean 'model\.safetensors'"):
        open_source(tmp_path / "modle.safetensors")


@pytest.mark.parametrize("path", ["a\0b.pth", "x" * 300 + ".pth", "file/below.pth", "loop.pth"])
def test_a_path_that_cannot_be_is_refused(path, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    os.symlink("loop.pth", tmp_path / "loop.pth")
    with pytest.raises(ModelzipError):
        open_source(tmp_path / path)


def test_a_symbolic_link_that_the_user_names_is_followed(honest, tmp_path):
    os.symlink(honest["torch"], tmp_path / "link.pth")
    source = open_source(tmp_path / "link.pth")
    source.close()
    assert "layer.weight" in source.specs


def test_a_refused_file_is_closed(tmp_path):
    path = tmp_path / "broken.pth"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(ModelzipError):
            open_source(path)
    assert len(os.listdir("/proc/self/fd")) == before
