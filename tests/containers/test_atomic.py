"""Failing disks: an output appears whole or not at all, whatever call fails, and nothing else is touched.

The k-th call of a kind is made to fail for k = 1, 2, ... until a run gets through: no call is left out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from modelzip_cli.containers import atomic
from modelzip_cli.containers.atomic import TEMPORARY, AtomicFile, write_text
from modelzip_cli.errors import CannotWrite, ModelzipError, OutputExists
from modelzip_cli.recipe import Recipe
from modelzip_cli.single import Settings, compress_file
from tests.hostile.conftest import HONEST_RULES

RECIPE = Recipe(rules=HONEST_RULES)
OUTPUTS = ("out.safetensors", "out.pth")


def compress(source: Path, output: Path, *, force: bool = False) -> None:
    compress_file(source, output, RECIPE, Settings(jobs=2, force=force), command="quantize")


class FaultyOs:
    """The `os` of atomic.py, in which the `at`-th call of `function` fails with `fault`, an errno or "short"."""

    def __init__(self, function: str, fault: int | str, at: int) -> None:
        self.function, self.fault, self.at = function, fault, at
        self.calls = 0

    def __getattr__(self, attribute: str) -> object:
        found = getattr(os, attribute)
        return self.failing(found) if attribute == self.function else found

    def failing(self, call: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: object, **keywords: object) -> object:
            self.calls += 1
            if self.calls != self.at:
                return call(*arguments, **keywords)
            if self.fault == "short":
                descriptor, data, offset = arguments
                return call(descriptor, data[: max(1, len(data) // 2)], offset)
            if self.function == "close":
                call(*arguments)  # the descriptor is gone, as after a real failure
            assert isinstance(self.fault, int)
            raise OSError(self.fault, os.strerror(self.fault))

        return called


FAULTS = [
    ("pwrite", errno.ENOSPC),
    ("pwrite", errno.EIO),
    ("pwrite", errno.EDQUOT),
    ("pwrite", errno.EFBIG),
    ("pwrite", errno.EINTR),
    ("pwrite", "short"),
    ("open", errno.EACCES),
    ("open", errno.ENOSPC),
    ("open", errno.EMFILE),
    ("fsync", errno.EIO),
    ("fsync", errno.ENOSPC),
    ("fstat", errno.EIO),
    ("fchmod", errno.EPERM),
    ("link", errno.EIO),
    ("link", errno.EPERM),  # a file system without hard links: renamed instead
    ("link", errno.ENOSPC),
    ("rename", errno.EIO),
    ("rename", errno.EXDEV),
    ("unlink", errno.EIO),
    ("close", errno.EIO),
    ("close", errno.ENOSPC),
]


@pytest.fixture(scope="module")
def whole(honest, tmp_path_factory) -> dict[str, bytes]:
    """The bytes of a good run, by the name of the output."""
    folder = tmp_path_factory.mktemp("whole")
    for name in OUTPUTS:
        compress(honest["torch"], folder / name)
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def faults() -> Iterator[Any]:
    """The first fault of each function with every output, new and replacing; further ones with half of these, in
    turns."""
    seen: set[str] = set()
    for number, (function, fault) in enumerate(FAULTS):
        for place, (name, existing) in enumerate(product(OUTPUTS, (False, True))):
            if function not in seen or number % 2 == (place in (1, 2)):
                kind = "replacing" if existing else "new"
                label = f"{function}-{errno.errorcode.get(fault, fault)}-{name}-{kind}"
                yield pytest.param(function, fault, name, existing, id=label)
        seen.add(function)


@pytest.mark.parametrize(("function", "fault", "name", "existing"), list(faults()))
def test_whichever_call_fails_the_output_is_whole_or_as_it_was(
    function, fault, name, existing, honest, whole, tmp_path, monkeypatch
):
    source, output = honest["torch"], tmp_path / name
    before = source.read_bytes()
    for at in range(1, 200):
        if existing:
            output.write_bytes(b"precious")
        faulty = FaultyOs(function, fault, at)
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "os", faulty)
            try:
                compress(source, output, force=existing)
                failed = False
            except ModelzipError as error:
                assert isinstance(error, CannotWrite)
                assert (error.exit_code, str(error).startswith(f"{output}: cannot write: ")) == (1, True)
                failed = True
        assert source.read_bytes() == before
        found = output.read_bytes() if output.exists() else None
        assert found == whole[name] or (failed and found == (b"precious" if existing else None))
        if function == "unlink":  # what cannot be removed now is removed by the next run
            compress(source, output, force=output.exists())
        assert [path for path in tmp_path.iterdir() if path != output] == []
        output.unlink(missing_ok=True)
        if faulty.calls < at:
            assert found == whole[name]  # after all these failures
            return
    pytest.fail("the run never got through")


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_lock_that_cannot_be_had_leaves_nothing(name, honest, tmp_path, monkeypatch):
    def no_lock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(atomic.fcntl, "flock", no_lock)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
    with pytest.raises(CannotWrite):
        compress(honest["torch"], tmp_path / name)
    assert [*tmp_path.iterdir()] == []
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_killed_run_leaves_only_a_temporary_which_the_next_run_removes(name, honest, whole, tmp_path):
    output = tmp_path / name
    for at in killed_writes(honest["torch"], output):
        left = [path.name for path in tmp_path.iterdir()]
        assert len(left) == 1
        assert TEMPORARY.fullmatch(left[0])
        if at % 4 == 1:  # a write in the middle is like the next one
            compress(honest["torch"], output)
            assert [path.name for path in tmp_path.iterdir()] == [name]
            assert output.read_bytes() == whole[name]
        for path in tmp_path.iterdir():
            path.unlink()


def killed_writes(source: Path, output: Path) -> Iterator[int]:
    """Run in child processes that end without a word at the first, second, ... write, until one gets through."""
    for at in range(1, 200):
        child = os.fork()
        if child == 0:
            die_at(source, output, at)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            assert output.exists()
            output.unlink()
            return
        assert os.waitstatus_to_exitcode(status) == 9
        yield at
    pytest.fail("the run never got through")


def die_at(source: Path, output: Path, at: int) -> None:
    """Compress in this process, which ends at the `at`-th write; never returns."""
    code = 1
    try:
        faulty = FaultyOs("pwrite", 0, at)
        write = os.pwrite

        def pwrite(*arguments: object) -> int:
            faulty.calls += 1
            return write(*arguments) if faulty.calls < at else os._exit(9)

        faulty.pwrite = pwrite
        atomic.os = faulty
        compress_file(source, output, RECIPE, Settings(jobs=1), command="quantize")
        code = 0
    finally:
        os._exit(code)


# One file


def test_the_file_appears_under_its_name_at_the_commit_and_not_before(tmp_path):
    output = AtomicFile(tmp_path / "a", replace=False)
    output.write(2, b"cd")
    output.write(0, b"ab")
    assert output.sync() == 4
    assert not (tmp_path / "a").exists()
    output.commit()
    assert (tmp_path / "a").read_bytes() == b"abcd"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_bytes_are_on_the_disk_before_they_have_their_name_and_the_name_after(tmp_path, monkeypatch):
    path, asked = tmp_path / "a", []

    def fsync(descriptor: int) -> None:
        asked.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "text", replace=False)
    assert asked == [(False, False), (True, True)]


def test_an_abort_leaves_nothing_and_can_be_repeated(tmp_path):
    output = AtomicFile(tmp_path / "a", replace=False)
    output.write(0, b"ab")
    output.abort()
    output.abort()
    assert [*tmp_path.iterdir()] == []


def test_of_two_writers_of_one_name_the_first_to_commit_wins(tmp_path):
    first, second = (AtomicFile(tmp_path / "a", replace=False) for _ in range(2))
    for output, text in ((first, b"first"), (second, b"second")):
        output.write(0, text)
        output.sync()
    first.commit()
    with pytest.raises(OutputExists):
        second.commit()
    second.abort()
    assert (tmp_path / "a").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_running_writer_keeps_its_temporary_from_the_next_one(tmp_path):
    running = AtomicFile(tmp_path / "a", replace=False)
    running.write(0, b"a")
    AtomicFile(tmp_path / "b", replace=False).abort()
    running.sync()
    running.commit()
    assert (tmp_path / "a").read_bytes() == b"a"


def test_only_temporaries_of_ours_are_removed(tmp_path):
    others = [".modelzip-1-x.tmp", ".modelzip-12-0123456789abcdef.tmp.bak", "model.tmp", ".modelzip-"]
    for name in [*others, ".modelzip-12-0123456789abcdef.tmp"]:
        (tmp_path / name).write_bytes(b"")
    os.symlink(tmp_path / "model.tmp", tmp_path / ".modelzip-13-0123456789abcdef.tmp")
    AtomicFile(tmp_path / "a", replace=False).abort()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*others, ".modelzip-13-0123456789abcdef.tmp"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_is_that_of_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "text", replace=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_narrower_mode_of_a_replaced_file_is_kept(tmp_path):
    (tmp_path / "a").write_bytes(b"secret")
    (tmp_path / "a").chmod(0o600)
    write_text(tmp_path / "a", "text", replace=True)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_symbolic_link_keeps_pointing_where_it_did(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"old")
    os.symlink(Path("real", "a"), tmp_path / "link")
    write_text(tmp_path / "link", "new", replace=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "new"


def test_nothing_but_this_module_opens_a_path_for_writing():
    package = Path(atomic.__file__).parents[1]
    suspicious = (
        ".write_bytes(",
        ".write_text(",
        "O_WRONLY",
        "O_RDWR",
        "O_CREAT",
        '"wb"',
        '"w"',
        '"r+b"',
        "os.rename",
        "os.replace",
    )
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in package.rglob("*.py")
        if path.name != "atomic.py"
        for line in path.read_text().splitlines()
        if any(word in line for word in suspicious) and "devnull" not in line and "closefd=False" not in line
    ]
    assert found == []
