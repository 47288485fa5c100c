"""Reading a file that other programs may change: regular files only, by `pread`, and checked again at the end."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol

from modelzip_cli.containers.streams import STANDARD, spool
from modelzip_cli.errors import (
    BrokenCheckpoint,
    FileNotThere,
    ModelzipError,
    SourceChanged,
    UnsupportedCheckpoint,
    UsageError,
    inert,
)


class Readable(Protocol):
    """What a container is read from: a file, or bytes in memory. `label` names it in messages."""

    @property
    def label(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises BrokenCheckpoint when the file ends before."""


class SourceFile:
    """An open regular file. `pread` and not a map: a file cut meanwhile is an error here, not a SIGBUS."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = inert(str(path))
        if path == STANDARD:
            self.label = "standard input"
            self._descriptor = _standard_input()
        else:
            self._descriptor = self._open(path)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise UnsupportedCheckpoint(f"{self.label}: not a regular file; give a checkpoint file")
        self.size = status.st_size
        self._identity = _identity(status)

    def _open(self, path: Path) -> int:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not block before we have seen that it is one
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            raise FileNotThere(f"{self.label}: no such file{_nearest(path)}") from None
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            raise ModelzipError(f"{self.label}: cannot read: {getattr(error, 'strerror', error)}") from error

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises BrokenCheckpoint when the file ends before."""
        pieces = []
        while length:
            try:
                piece = os.pread(self._descriptor, length, offset)
            except OSError as error:
                raise ModelzipError(f"{self.label}: cannot read: {error.strerror}") from error
            if not piece:
                raise BrokenCheckpoint(f"{self.label}: the file ends {length:,} bytes early; download or copy it again")
            pieces.append(piece)
            length, offset = length - len(piece), offset + len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def check_unchanged(self) -> None:
        """Raise SourceChanged when size, time stamp or identity are no longer what they were at the start."""
        try:
            now = _identity(os.fstat(self._descriptor) if self.path == STANDARD else os.stat(self.path))
        except OSError:
            now = None
        if now != self._identity:
            raise SourceChanged(f"{self.label}: changed while it was read; nothing was written, run again")

    def close(self) -> None:
        """Close the file; calling it twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _standard_input() -> int:
    """A descriptor on what comes in: the file itself where one is redirected, else a copy of the stream on disk.

    The copy has no name, so nothing is left of it however the run ends.
    """
    if os.isatty(0):
        raise UsageError("standard input is a terminal; pipe a checkpoint into it")
    if stat.S_ISREG(os.fstat(0).st_mode):
        return os.dup(0)
    return spool(0, "standard input")


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _nearest(path: Path) -> str:
    """Name an existing neighbour that looks like a misspelt `path`."""
    from modelzip_cli.errors import did_you_mean

    try:
        return inert(did_you_mean(path.name, os.listdir(path.parent)))
    except OSError:
        return ""
