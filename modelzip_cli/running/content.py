"""Where examples come from: the bytes of a file, its text, and what is known of it beside the examples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.errors import BadData


@dataclass(frozen=True)
class Origin:
    """What all kinds of examples have in common.

    `label`: the path, for messages; `digest`: SHA-256 of the content; `classes`: names by number; `warnings`;
    `name_row`: how messages call an example, where its number says too little.
    """

    label: str
    digest: str
    classes: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()
    name_row: Callable[[int], str] | None = None

    def warn(self, *warnings: str) -> Origin:
        """The same, with `warnings` about this path."""
        return replace(self, warnings=(*self.warnings, *(f"{self.label}: {warning}" for warning in warnings)))

    def place(self, row: int) -> str:
        """How messages call an example."""
        return f"{self.label}: example {row} (counted from 0)" if self.name_row is None else self.name_row(row)


def read_file(path: Path) -> tuple[bytes, Origin]:
    """The bytes of a file. Raises FileNotThere, and BadData for an empty file."""
    file = SourceFile(path)
    try:
        if not file.size:
            raise BadData(f"{file.label}: the file is empty")
        content = file.read(0, file.size)
    finally:
        file.close()
    return content, Origin(file.label, hashlib.sha256(content).hexdigest())


def decode_text(content: bytes, label: str) -> str:
    """UTF-8 text, with or without a byte order mark. Raises BadData that says where it is none."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(
            f"{label}: not UTF-8 (byte {error.start:,}); if it is Latin-1, `iconv -f latin1 -t utf-8` converts it"
        ) from None
