"""Failing disks under directories and streams: the output is whole or as it was, whichever call of the system fails.

As in test_atomic.py, the k-th call of a kind fails for k = 1, 2, ... until a run gets through.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelzip_cli.containers import atomic, streams
from modelzip_cli.containers.atomic import AtomicFolder
from modelzip_cli.errors import CannotWrite, ModelzipError, OutputExists
from modelzip_cli.recipe import Recipe, Rule
from modelzip_cli.single import Settings, compress_file
from tests.checkpoints import plain_safetensors
from tests.conftest import GIVE_UP, PROGRAM
from tests.containers.test_atomic import FaultyOs
from tests.hostile.makers import entry, safetensors_of
from tests.hostile.test_directories import SHARDS, model

RECIPE = Recipe(scheme="keep", rules=(Rule("a", "int8"),))
TEMPORARIES = (".modelzip-*", ".*.replaced-*")
Content = dict[str, bytes]


def content(folder: Path) -> Content | None:
    """The files of a directory, None where there is none."""
    if not folder.exists():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def compress(source: Path, output: Path, *, force: bool = False) -> None:
    compress_file(source, output, RECIPE, Settings(jobs=1, force=force), command="quantize")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Two shards, an index, and files beside them in two folders."""
    folder = model(tmp_path_factory.mktemp("source") / "model")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> Content:
    """What a good run makes of it."""
    output = tmp_path_factory.mktemp("whole") / "out"
    compress(source, output)
    found = content(output)
    assert found is not None
    return found


FAULTS = [
    *(("pwrite", fault) for fault in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR, "short")),
    *(("write", fault) for fault in (errno.ENOSPC, errno.EIO)),
    ("read", errno.EIO),
    *(("open", fault) for fault in (errno.EACCES, errno.ENOSPC, errno.EMFILE)),
    *(("fsync", fault) for fault in (errno.EIO, errno.ENOSPC)),
    ("fstat", errno.EIO),
    *(("mkdir", fault) for fault in (errno.EACCES, errno.ENOSPC, errno.EDQUOT)),
    *(("makedirs", fault) for fault in (errno.ENOSPC,)),
    *(("link", fault) for fault in (errno.EIO, errno.EPERM)),
    *(("rename", fault) for fault in (errno.EIO, errno.EXDEV, errno.ENOSPC)),
    ("unlink", errno.EIO),
    *(("close", fault) for fault in (errno.EIO, errno.ENOSPC)),
]


@pytest.mark.parametrize("existing", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize(("function", "fault"), FAULTS, ids=lambda value: errno.errorcode.get(value, value))
def test_whichever_call_fails_a_directory_is_whole_or_as_it_was(
    function, fault, existing, source, whole, tmp_path, monkeypatch
):
    output, before = tmp_path / "out", content(source)
    old = {"config.json": b"{}", "precious": b"old"} if existing else None
    for at in range(1, 200):
        if existing:
            output.mkdir()
            for name, data in old.items():
                (output / name).write_bytes(data)
        faulty = FaultyOs(function, fault, at)
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "os", faulty)
            try:
                compress(source, output, force=existing)
                failed = False
            except ModelzipError as error:
                assert error.exit_code == 1
                assert "\n" not in str(error)
                if isinstance(error, CannotWrite):
                    assert str(error).startswith(f"{tmp_path}{os.sep}")
                else:  # a file beside the weights could not be read
                    assert str(error).startswith(f"{source}{os.sep}")
                failed = True
        assert content(source) == before
        assert content(output) == whole or (failed and content(output) == old)
        assert [path.name for path in tmp_path.iterdir() if path != output] == []
        if faulty.calls < at:
            assert content(output) == whole  # after all these failures
            return
        if output.exists():
            shutil.rmtree(output)
    pytest.fail("the run never got through")


def test_a_lock_that_cannot_be_had_leaves_no_directory(source, tmp_path, monkeypatch):
    def no_lock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(atomic.fcntl, "flock", no_lock)
    with pytest.raises(CannotWrite):
        compress(source, tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_a_run_killed_at_any_write_leaves_one_temporary_which_the_next_run_removes(source, whole, tmp_path):
    output = tmp_path / "out"
    for at in range(1, 100):
        child = os.fork()
        if child == 0:
            die_at(source, output, at)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            assert content(output) == whole
            return
        left = [path.name for path in tmp_path.iterdir()]
        assert len(left) == 1
        assert atomic.TEMPORARY.fullmatch(left[0])
        if at % 4 == 1:
            compress(source, output)
            assert [path.name for path in tmp_path.iterdir()] == ["out"]
            assert content(output) == whole
        for path in tmp_path.iterdir():
            shutil.rmtree(path)
    pytest.fail("the run never got through")


def die_at(source: Path, output: Path, at: int) -> None:
    """Compress in this process, which ends at the `at`-th write; never returns."""
    code = 1
    try:
        faulty = FaultyOs("none", 0, at)

        def dying(call: Callable[..., int]) -> Callable[..., int]:
            def called(*arguments: object) -> int:
                faulty.calls += 1
                return call(*arguments) if faulty.calls < at else os._exit(9)

            return called

        faulty.pwrite, faulty.write = dying(os.pwrite), dying(os.write)
        atomic.os = faulty
        compress(source, output)
        code = 0
    finally:
        os._exit(code)


# Two runs


def filled(path: Path, text: str, *, replace: bool) -> AtomicFolder:
    folder = AtomicFolder(path, replace=replace)
    folder.inside("a").write_text(text)
    return folder


def test_of_two_writers_of_one_directory_the_first_to_commit_wins(tmp_path):
    first, second = (filled(tmp_path / "out", text, replace=False) for text in ("first", "second"))
    first.commit()
    with pytest.raises(OutputExists):
        second.commit()
    second.abort()
    assert content(tmp_path / "out") == {"a": b"first"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_two_writers_that_replace_a_directory_the_last_wins(tmp_path):
    filled(tmp_path / "out", "old", replace=False).commit()
    writers = [filled(tmp_path / "out", text, replace=True) for text in ("first", "second")]
    for writer in writers:
        writer.commit()
        writer.abort()
    assert content(tmp_path / "out") == {"a": b"second"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_running_writer_keeps_its_folder_from_the_next_one(tmp_path):
    running = filled(tmp_path / "a", "a", replace=False)
    filled(tmp_path / "b", "b", replace=False).abort()
    running.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_appears_while_another_is_written_is_kept(tmp_path, monkeypatch):
    writer = filled(tmp_path / "out", "mine", replace=False)
    real = os.rename

    def late(old: Path, new: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("theirs")
        real(old, new)

    faulty = FaultyOs("none", 0, 0)
    faulty.rename = late
    monkeypatch.setattr(atomic, "os", faulty)
    with pytest.raises(OutputExists):
        writer.commit()
    writer.abort()
    assert content(tmp_path / "out") == {"theirs": b"theirs"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_of_three_programs_that_write_one_directory_what_is_left_is_whole(force, source, tmp_path, environment):
    expected = tmp_path / "expected"
    command = [PROGRAM, "quantize", source, "-q", "-s", "int8"]
    subprocess.run([*command, "-o", expected], env=environment, check=True, timeout=GIVE_UP)
    flags = ["-f"] if force else []
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": environment}
    runs = [subprocess.Popen([*command, "-o", tmp_path / "out", *flags], **quiet) for _ in range(3)]
    errors = [run.communicate(timeout=GIVE_UP)[1].decode() for run in runs]
    assert 0 in [run.returncode for run in runs]
    assert all(error.count("\n") <= 1 for error in errors)
    assert all(run.returncode in (0, 1, 2) for run in runs)
    assert content(tmp_path / "out") == content(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]


# Signals


@pytest.fixture
def large(tmp_path) -> Path:
    """A directory that takes seconds to compress: 192 MB of zeros, most of them a hole in one of its shards."""
    folder, size = model(tmp_path / "model"), 2 << 20
    names = [f"w{number}" for number in range(96)]
    header = {name: entry([1024, size // 4096], n * size, (n + 1) * size) for n, name in enumerate(names)}
    with (folder / SHARDS[1]).open("wb") as file:
        file.write(safetensors_of(header))
        file.truncate(file.tell() + 96 * size)
    index = {"weight_map": {"a": SHARDS[0]} | dict.fromkeys(names, SHARDS[1])}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def begun(folder: Path, environment: dict[str, str], *options: str) -> subprocess.Popen:
    """A run on a large directory that has written something of its output."""
    process = subprocess.Popen(
        [PROGRAM, "quantize", folder, "-o", "out", "-j", "1", "--coder", "bitpack", *options],
        cwd=folder.parent,
        env=environment | {"MODELZIP_KERNELS": "numpy"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    give_up = time.monotonic() + GIVE_UP
    while not [path for path in folder.parent.glob(".modelzip-*/.modelzip-*") if path.stat().st_size > 1 << 20]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.002)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("existing", [False, True], ids=["new", "replacing"])
def test_a_signal_leaves_a_directory_as_it_was(number, existing, large, environment, tmp_path):
    if existing:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("old")
    process = begun(large, environment, *(["-f"] if existing else []))
    process.send_signal(number)
    _, stderr = process.communicate(timeout=GIVE_UP)
    assert (process.returncode, stderr.count(b"\n")) == (128 + number, 1)
    assert content(tmp_path / "out") == ({"config.json": b"old"} if existing else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["model", "out"] if existing else ["model"])


def test_a_second_signal_leaves_no_directory(large, environment, tmp_path):
    process = begun(large, environment)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=GIVE_UP)
    assert process.returncode in (130, 143)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_killed_run_leaves_a_folder_that_the_next_run_removes(large, source, modelzip, environment, tmp_path):
    process = begun(large, environment)
    process.kill()
    process.communicate(timeout=GIVE_UP)
    assert len([*tmp_path.glob(".modelzip-*")]) == 1
    assert modelzip("quantize", source, "-o", tmp_path / "out").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


# Streams


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        *(("pwrite", fault) for fault in (errno.ENOSPC, errno.EIO, errno.EDQUOT, "short")),
        *(("write", fault) for fault in (errno.ENOSPC, errno.EIO)),
        ("pread", errno.EIO),
        ("dup", errno.EMFILE),
        ("fstat", errno.EIO),
    ],
    ids=lambda value: errno.errorcode.get(value, value),
)
def test_whichever_call_fails_a_stream_is_whole_or_an_error(function, fault, tmp_path, monkeypatch, capfdbinary):
    source = plain_safetensors(tmp_path / "model.safetensors")
    before = source.read_bytes()

    def stream() -> None:
        compress_file(source, Path("-"), Recipe(scheme="int8"), Settings(), command="quantize")

    stream()
    expected = capfdbinary.readouterr().out
    for at in range(1, 200):
        faulty = FaultyOs(function, fault, at)
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "os", faulty)
            patch.setattr(streams, "os", faulty)
            try:
                stream()
                failed = False
            except ModelzipError as error:
                assert error.exit_code == 1
                failed = True
        found = capfdbinary.readouterr().out
        assert found == expected or (failed and expected.startswith(found))
        assert found in (b"", expected) or function in ("write", "pread")  # what went out cannot be called back
        assert source.read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == [source.name]
        if faulty.calls < at:
            return
    pytest.fail("the run never got through")


@pytest.mark.parametrize("line", ["quantize model.safetensors -o -", "quantize - -o -"])
@pytest.mark.parametrize("size", [0, 8])
def test_a_full_temporary_folder_is_one_line_that_names_it_and_an_empty_stream(line, size, tmp_path, environment):
    source = plain_safetensors(tmp_path / "model.safetensors")
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        ["sh", "-c", f'ulimit -f {size}; cat model.safetensors | "$0" {line}', PROGRAM],
        cwd=tmp_path,
        env=environment | {"TMPDIR": str(tmp_path / "tmp"), "MODELZIP_KERNELS": "numpy"},
        capture_output=True,
        check=False,
        timeout=GIVE_UP,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"TMPDIR" in done.stderr
    assert [*(tmp_path / "tmp").iterdir()] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, "tmp"]


def test_a_temporary_folder_that_is_not_there_is_one_line(tmp_path, environment):
    plain_safetensors(tmp_path / "model.safetensors")
    done = subprocess.run(
        [PROGRAM, "quantize", "model.safetensors", "-o", "-", "-q"],
        cwd=tmp_path,
        env=environment | {"TMPDIR": str(tmp_path / "nowhere")},
        capture_output=True,
        check=False,
        timeout=GIVE_UP,
    )
    assert done.returncode in (0, 1)  # Python falls back on /tmp, where there is one
    assert done.stderr.count(b"\n") <= 1
