"""An output appears whole or not at all. The only module that opens a path for writing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

from modelzip_cli.errors import CannotWrite, ModelzipError, OutputExists, inert

PIECE = 1 << 20
PREFIX, SUFFIX = ".modelzip-", ".tmp"
TEMPORARY = re.compile(re.escape(PREFIX) + r"(\d{1,9})-[0-9a-f]{16}" + re.escape(SUFFIX))
FLUSH_BYTES = 32 << 20  # written bytes that are worth bringing to the disk while others are still encoded

_live: set[Path] = set()  # temporaries of this process, for a second signal that does not let `abort` run


class AtomicFile:
    """A file that is written under a temporary name in its folder and renamed when `commit` is called.

    The temporary is created exclusively, holds an advisory lock while it lives, and is removed by `abort`. A killed
    process leaves one behind; the next output to that folder removes those whose lock is free. Every failing call
    raises CannotWrite with the path of the output and the reason.
    """

    def __init__(self, path: Path, *, replace: bool) -> None:
        self.path = path
        self._replace = replace
        self._flusher: _Flusher | None = None
        self._flushed = 0
        target = Path(os.path.realpath(path)) if path.is_symlink() else path  # a link keeps pointing where it did
        self._target = target
        remove_stale(target.parent)
        self._temporary = target.parent / _temporary_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor: int | None = None
        try:
            with self._errors():
                self._descriptor = os.open(self._temporary, flags, 0o666)
                _live.add(self._temporary)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:  # no lock to be had, or a signal: nobody else could clean up
            self.abort()
            raise

    @property
    def pending(self) -> Path:
        """Where the file lies before the commit."""
        return self._temporary

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return errors_of(inert(str(self.path)))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put `data` at `offset` of the file; short writes and interrupts are continued."""
        assert self._descriptor is not None
        view = memoryview(data).cast("B")
        with self._errors():
            while view.nbytes:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written
        if offset >= self._flushed + FLUSH_BYTES:
            self._flusher = self._flusher or _Flusher(self._descriptor)
            self._flusher.wake()
            self._flushed = offset

    def sync(self) -> int:
        """Bring the bytes to the disk; return the size of the file."""
        assert self._descriptor is not None
        with self._errors():
            if failed := self._stop_flusher():
                raise failed
            os.fsync(self._descriptor)
            return os.fstat(self._descriptor).st_size

    def _stop_flusher(self) -> OSError | None:
        flusher, self._flusher = self._flusher, None
        if flusher is None:
            return None
        flusher.stop()
        return flusher.error

    def commit(self) -> None:
        """Give the file, synced before, its name."""
        assert self._descriptor is not None
        with self._errors():
            if self._replace and self._target.exists():
                mode = self._target.stat().st_mode & 0o777
                os.fchmod(self._descriptor, mode & os.fstat(self._descriptor).st_mode)  # a narrower mode stays narrow
            self._rename()
            descriptor, self._descriptor = self._descriptor, None
            _live.discard(self._temporary)
            os.close(descriptor)
            _sync_folder(self._target.parent)

    def _rename(self) -> None:
        if self._replace:
            os.rename(self._temporary, self._target)
            return
        try:
            os.link(self._temporary, self._target)  # fails where the name was taken meanwhile: two runs cannot both win
        except FileExistsError:
            raise OutputExists(f"{inert(str(self.path))} was created by another program; -f replaces it") from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            if self._target.exists():  # a file system without hard links
                raise OutputExists(f"{inert(str(self.path))} was created by another program; -f replaces it") from None
            os.rename(self._temporary, self._target)
            return
        os.unlink(self._temporary)

    def abort(self) -> None:
        """Remove the temporary; does nothing after `commit`."""
        if self._descriptor is None:
            return
        self._stop_flusher()
        descriptor, self._descriptor = self._descriptor, None
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)
        _live.discard(self._temporary)
        with contextlib.suppress(OSError):
            os.close(descriptor)


class AtomicFolder:
    """A folder that is filled under a temporary name and renamed when `commit` is called.

    Replacing one that exists takes two renames: a crash between them leaves the old one as `.NAME.replaced-...`.
    """

    def __init__(self, path: Path, *, replace: bool) -> None:
        self.path = path
        self._replace = replace
        parent = Path(os.path.realpath(path.parent))
        self._target = parent / path.name
        remove_stale(parent)
        self._temporary = parent / _temporary_name()
        self._descriptor: int | None = None
        try:
            with self._errors():
                os.mkdir(self._temporary)
                _live.add(self._temporary)
                self._descriptor = os.open(self._temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.abort()
            raise

    @property
    def pending(self) -> Path:
        """Where the folder lies before the commit."""
        return self._temporary

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return errors_of(inert(str(self.path)))

    def inside(self, name: str) -> Path:
        """Where a file of the folder is written before the commit."""
        return self._temporary / name

    def copy(self, source: Path, name: str) -> None:
        """Copy the file at `source` to `name`, a path inside the folder; subfolders are made."""
        target = self._temporary / name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        reading = _open_regular(source)
        try:
            with self._errors():
                os.makedirs(target.parent, exist_ok=True)
                writing = os.open(target, flags, 0o666)
                try:
                    while piece := _read_piece(reading, source):
                        view = memoryview(piece)
                        while view.nbytes:
                            view = view[os.write(writing, view) :]
                    os.fsync(writing)
                finally:
                    os.close(writing)
        finally:
            with contextlib.suppress(OSError):
                os.close(reading)

    def commit(self) -> None:
        """Give the folder its name."""
        assert self._descriptor is not None
        with self._errors():
            os.fsync(self._descriptor)
            if self._replace and self._target.exists():
                old = self._target.with_name(f".{self._target.name}.replaced-{secrets.token_hex(4)}")
                try:
                    os.rename(self._target, old)
                    os.rename(self._temporary, self._target)
                finally:
                    if self._target.exists():
                        remove_tree(old)
                    else:  # the new one did not get there: the old one is better than none
                        with contextlib.suppress(OSError):
                            os.rename(old, self._target)
            else:
                taken = OutputExists(f"{inert(str(self.path))} was created by another program; -f replaces it")
                if self._target.exists():
                    raise taken
                try:
                    os.rename(self._temporary, self._target)
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise taken from None
                    raise
            self._forget()
            _sync_folder(self._target.parent)

    def _forget(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        _live.discard(self._temporary)
        if descriptor is not None:
            os.close(descriptor)

    def abort(self) -> None:
        """Remove the temporary folder; does nothing after `commit`."""
        if self._temporary not in _live:
            return
        remove_tree(self._temporary)
        with contextlib.suppress(OSError):
            self._forget()


def _open_regular(path: Path) -> int:
    """A descriptor to read a file beside the weights, which may have become a pipe since it was found."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        raise ModelzipError(f"{inert(str(path))}: cannot read: {error.strerror}") from error
    raise ModelzipError(f"{inert(str(path))}: cannot read: no longer a regular file")


def _read_piece(descriptor: int, path: Path) -> bytes:
    try:
        return os.read(descriptor, PIECE)
    except OSError as error:
        raise ModelzipError(f"{inert(str(path))}: cannot read: {error.strerror}") from error


def _temporary_name() -> str:
    return f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}{SUFFIX}"


def remove_tree(path: Path) -> None:
    """Remove a temporary, be it a file or a folder; what cannot be removed stays."""
    import shutil

    with contextlib.suppress(OSError):
        os.unlink(path)
        return
    shutil.rmtree(path, ignore_errors=True)


def unnamed_file() -> int:
    """A descriptor on a new file in the temporary folder (TMPDIR) that has no name, so nothing is left of it."""
    import tempfile

    try:
        with tempfile.TemporaryFile(prefix="modelzip-") as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise CannotWrite(f"cannot make a temporary file (TMPDIR says where): {error.strerror or error}") from error


@contextlib.contextmanager
def errors_of(label: str) -> Iterator[None]:
    """Raise a failing call of the system as CannotWrite that names `label`."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(f"{label}: cannot write: {error.strerror or error}") from error


def remove_live() -> None:
    """Remove the temporaries of this process at once: the last act before it exits without cleaning up."""
    for path in [*_live]:
        with contextlib.suppress(OSError):
            remove_tree(path)


def write_text(path: Path, text: str, *, replace: bool) -> None:
    """Write a small text file, whole or not at all. Raises CannotWrite and OutputExists."""
    write_bytes(path, text.encode(), replace=replace)


def write_bytes(path: Path, data: bytes | memoryview, *, replace: bool) -> None:
    """Write a file that is in memory, whole or not at all. Raises CannotWrite and OutputExists."""
    if not replace and path.exists():
        raise OutputExists(f"{inert(str(path))} exists; -f replaces it")
    output = AtomicFile(path, replace=replace)
    try:
        output.write(0, data)
        output.sync()
        output.commit()
    finally:
        output.abort()


def append_text(path: Path, text: str) -> None:
    """Add lines to the end of a log, in one call of the system; a line that was cut there is ended first.

    Raises CannotWrite, also for what is no regular file: a link could lead to any file of the user.
    """
    if path.is_symlink():
        raise CannotWrite(f"{inert(str(path))}: cannot write: it is a link; remove it")
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with errors_of(inert(str(path))):
        descriptor = os.open(path, flags, 0o666)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CannotWrite(f"{inert(str(path))}: cannot write: it is not a regular file; remove it")
            is_cut = status.st_size > 0 and os.pread(descriptor, 1, status.st_size - 1) != b"\n"
            view = memoryview(("\n" * is_cut + text).encode("utf-8", "backslashreplace"))
            while view.nbytes:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)


def remove_stale(folder: Path) -> None:
    """Remove temporaries in `folder` that a killed process left: it is gone, and nobody holds their lock.

    The number of the process alone would be wrong where several machines share a folder, the lock alone in the moment
    between making a temporary and locking it.
    """
    try:
        found = [match for name in os.listdir(folder) if (match := TEMPORARY.fullmatch(name))]
    except OSError:
        return  # creating the output will say what is wrong with the folder
    for name in (match[0] for match in found if not _is_running(int(match[1]))):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(folder / name)
            finally:
                os.close(descriptor)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # of another user
    return True


class _Flusher:
    """Brings written bytes to the disk on a thread of its own while slabs are encoded.

    The sync at the end then finds little left to do: a gigabyte written in 1.3 s is on the disk 0.2 s later, not 1.1
    (docs/decisions.md). A failure is kept for that sync, because the system reports it only once.
    """

    def __init__(self, descriptor: int) -> None:
        self.error: OSError | None = None
        self._descriptor, self._wake, self._stopped = descriptor, Event(), False
        self._thread = Thread(target=self._run, name="modelzip-flusher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        sync = getattr(os, "fdatasync", os.fsync)
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopped:
                return
            try:
                sync(self._descriptor)
            except OSError as error:
                self.error = error
                return

    def wake(self) -> None:
        """There is something to bring to the disk."""
        self._wake.set()

    def stop(self) -> None:
        """Wait until the thread no longer uses the descriptor."""
        self._stopped = True
        self._wake.set()
        self._thread.join()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
