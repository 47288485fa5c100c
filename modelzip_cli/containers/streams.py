"""Standard input and output as files: `-` on the command line. What passes lies in a file without a name meanwhile."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from modelzip_cli.containers.atomic import PIECE, AtomicFile, errors_of, unnamed_file
from modelzip_cli.errors import CannotWrite

STANDARD = Path("-")  # standard input or output


class StandardOutput:
    """Standard output as an output: collected in a file without a name, sent by `commit`, so whole or not at all."""

    def __init__(self) -> None:
        self.path = self.pending = STANDARD
        self._descriptor = unnamed_file()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put `data` at `offset`."""
        view = memoryview(data).cast("B")
        with errors_of("standard output (collected in the temporary folder, TMPDIR)"):
            while view.nbytes:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written

    def sync(self) -> int:
        """Return the size; nothing has to reach a disk."""
        with errors_of("standard output"):
            return os.fstat(self._descriptor).st_size

    def commit(self) -> None:
        """Send everything. Raises BrokenPipeError when the reader went away, CannotWrite when it cannot take more."""
        try:
            self._send()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CannotWrite(f"standard output: cannot write: {error.strerror or error}") from error

    def _send(self) -> None:
        position = 0
        sys.stdout.flush()
        while piece := os.pread(self._descriptor, PIECE, position):
            position += len(piece)
            view = memoryview(piece)
            while view.nbytes:
                view = view[os.write(1, view) :]

    def abort(self) -> None:
        """Let the collected bytes go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_output(path: Path, *, replace: bool) -> AtomicFile | StandardOutput:
    """The output at `path`; `-` is standard output."""
    return StandardOutput() if path == STANDARD else AtomicFile(path, replace=replace)


def spool(descriptor: int, label: str) -> int:
    """Copy what `descriptor` gives to a file without a name; return a descriptor on that."""
    file = unnamed_file()
    with errors_of(f"{label} (a copy of it in the temporary folder, TMPDIR)"):
        while piece := os.read(descriptor, PIECE):
            view = memoryview(piece)
            while view.nbytes:
                view = view[os.write(file, view) :]
    return file
