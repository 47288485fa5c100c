"""Print what a command found, in the form that was asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelzip_cli.render import Block


def form_for(form: str) -> str:
    """auto: rich on a terminal, plain in a pipe."""
    if form != "auto":
        return form
    return "rich" if sys.stdout.isatty() else "plain"


def show(form: str, values: Callable[[], Any], blocks: Callable[[], Sequence[Block]]) -> None:
    """Print JSON values or blocks; only what is asked for is made."""
    form = form_for(form)
    if form in ("json", "jsonl"):
        print(json.dumps(values(), allow_nan=False, indent=None if form == "jsonl" else 1))
        return
    from modelzip_cli.render import write_blocks

    write_blocks(blocks(), form, sys.stdout)
