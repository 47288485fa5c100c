"""The journal of a batch: one line of JSON for each file that was done or failed, in `modelzip.jsonl`.

It is a log for people, and what lets the same command line go on where it was stopped: a file is done when its line
names the same source, recipe and output, none of them changed since.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelzip_cli import __version__
from modelzip_cli.containers.atomic import append_text
from modelzip_cli.containers.hf_directory import list_model
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

    def is_done(self, source: Path, output: Path) -> bool:
        """Whether `output` was made of `source` before, by the same recipe, and neither changed since."""
        line = self._done.get(self._relative(output))
        return (
            line is not None
            and line.get("source") == self._describe(source)
            and line.get("output") == self._describe(output)
            and all(line.get(key) == value for key, value in self._asked.items())
        )

    def note(self, source: Path, output: Path, status: str, more: Mapping[str, Any]) -> None:
        """Append what became of a file: `status` is ok or failed. Raises CannotWrite."""
        described = {"source": self._describe(source), "output": self._describe(output) if status == "ok" else None}
        line = {"schema_version": SCHEMA_VERSION, "status": status, **self._asked, **described, **more}
        append_text(self.path, json.dumps(line, allow_nan=False) + "\n")

    def _read(self) -> dict[str, dict[str, Any]]:
        """The last line of every output. Lines that are cut or not of a journal are passed over."""
        done: dict[str, dict[str, Any]] = {}
        try:
            if self.path.stat().st_size > MOST_BYTES:
                return {}
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return {}
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                if entry["status"] == "ok":
                    done[entry["output"]["path"]] = entry
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return done

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self.path.parent)

    def _describe(self, path: Path) -> dict[str, Any] | None:
        """Path, size and time stamp of a checkpoint; those of a directory are of the files with its weights."""
        try:
            files = [path / name for name in list_model(path).shards] if path.is_dir() else [path]
            found = [file.stat() for file in files]
        except (OSError, ModelzipError):
            return None
        size, newest = sum(one.st_size for one in found), max(one.st_mtime_ns for one in found)
        return {"path": self._relative(path), "bytes": size, "mtime_ns": newest}
