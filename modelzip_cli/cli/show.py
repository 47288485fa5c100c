"""Print what a command found, in the form that was asked for."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from modelzip_cli.render import Block


def form_for(form: str, stream: TextIO) -> str:
    """auto: rich on a terminal, plain in a pipe."""
    if form != "auto":
        return form
    return "rich" if stream.isatty() else "plain"


def to_null(descriptor: int) -> None:
    """Point a standard stream at /dev/null, so that the interpreter's last flush cannot fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def show(
    form: str, values: Callable[[], Any], blocks: Callable[[], Sequence[Block]], stream: TextIO | None = None
) -> None:
    """Print JSON values or blocks, on standard output if no `stream` is given; only what is asked for is made."""
    stream = stream or sys.stdout
    form = form_for(form, stream)
    if form in ("json", "jsonl"):
        print(json.dumps(values(), allow_nan=False, indent=None if form == "jsonl" else 1), file=stream)
        return
    from modelzip_cli.render import write_blocks

    write_blocks(blocks(), form, stream)


def write_reports(
    files: Sequence[Path],
    values: Callable[[], Any],
    blocks: Callable[[], Sequence[Block]],
    html: Callable[[], str] | None = None,
) -> None:
    """Write the report to each of `files`, in the form that its suffix says. Raises CannotWrite."""
    from modelzip_cli.containers.atomic import write_text

    for path in files:
        if path.suffix == ".json":
            text = json.dumps(values(), allow_nan=False, indent=1) + "\n"
        elif path.suffix == ".html":
            assert html is not None
            text = html()
        else:
            from modelzip_cli.render import write_blocks

            stream = io.StringIO()
            write_blocks(blocks(), "md", stream)
            text = stream.getvalue()
        write_text(path, text, replace=True)
