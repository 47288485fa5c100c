"""The journal of a batch: one line of JSON for each file that was done or failed, in `modelzip.jsonl`.

It is a log for people, and what lets the same command line go on where it was stopped: a file is done when its line
names the same source, recipe and output, none of them changed since. The line is there before the output is: however a
run ends, no output is without its line, and a line without its output counts for nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from modelzip_cli import __version__
from modelzip_cli.containers.atomic import append_text
from modelzip_cli.containers.hf_directory import list_model
from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.errors import ModelzipError
from modelzip_cli.report import SCHEMA_VERSION

NAME = "modelzip.jsonl"
MOST_BYTES = 256 << 20


class Journal:
    """The journal in `folder`, for runs of one command with one recipe. Paths in it are relative to the folder."""

    def __init__(self, folder: Path, command: str, recipe: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        self._asked = {"command": command, "recipe": dict(recipe), "modelzip": __version__}
        self._done = self._read()
        self._lock = Lock()

    def begin(self) -> None:
        """Make the journal, or see that lines can be added to it. Raises CannotWrite."""
        append_text(self.path, "")

    def is_done(self, source: Path, output: Path) -> bool:
        """Whether `output` was made of `source` before, by the same recipe, and neither changed since."""
        line = self._done.get(self._relative(output))
        return (
            line is not None
            and line.get("source") == self._describe(source)
            and line.get("output") == self._describe(output)
            and all(line.get(key) == value for key, value in self._asked.items())
        )

    def made(self, path: Path) -> bool:
        """Whether `path` is the output of a run before, unchanged since."""
        line = self._done.get(self._relative(path))
        return line is not None and line["output"] == self._describe(path)

    def note_done(self, source: Path, output: Path, pending: Path, more: Mapping[str, Any]) -> None:
        """Append that `output` is done; until it appears, it lies at `pending`. Raises CannotWrite."""
        self._note("ok", source, {"output": self._describe(output, pending), **more})

    def note_failed(self, source: Path, error: Mapping[str, Any]) -> None:
        """Append that nothing came of `source`. Raises CannotWrite."""
        self._note("failed", source, {"output": None, "error": error})

    def _note(self, status: str, source: Path, more: Mapping[str, Any]) -> None:
        described = {"schema_version": SCHEMA_VERSION, "status": status, **self._asked}
        line = {**described, "source": self._describe(source), **more}
        with self._lock:
            append_text(self.path, json.dumps(line, allow_nan=False) + "\n")

    def _read(self) -> dict[str, dict[str, Any]]:
        """The last line of every output. Lines that are cut or not of a journal are passed over."""
        done: dict[str, dict[str, Any]] = {}
        try:
            file = SourceFile(self.path)  # not a pipe or a device, which have no end
        except ModelzipError:
            return {}
        try:
            raw = file.read(0, file.size if file.size <= MOST_BYTES else 0)
        except ModelzipError:
            return {}
        finally:
            file.close()
        for line in raw.splitlines():
            try:
                entry = json.loads(line)
                if entry["status"] == "ok":
                    done[entry["output"]["path"]] = entry
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return done

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self.path.parent)

    def _describe(self, path: Path, pending: Path | None = None) -> dict[str, Any] | None:
        """Path, size and time stamp of a checkpoint; those of a directory are of the files with its weights.

        What is not there yet lies at `pending`.
        """
        place = pending or path
        try:
            files = [place / name for name in list_model(place).shards] if place.is_dir() else [place]
            found = [file.stat() for file in files]
        except (OSError, ModelzipError):
            return None
        size, newest = sum(one.st_size for one in found), max(one.st_mtime_ns for one in found)
        return {"path": self._relative(path), "bytes": size, "mtime_ns": newest}
