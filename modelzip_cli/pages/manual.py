"""The schemes and the default rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from modelzip_cli.render import Block, Heading, Prose, Table

if TYPE_CHECKING:
    from modelzip_cli.schemes.listing import SchemeLine


def scheme_list_blocks(lines: Sequence[SchemeLine]) -> list[Block]:
    """All schemes."""
    rows = [
        (line.name, "-" if line.bits_per_weight is None else f"{line.bits_per_weight:.2f}", line.summary, line.example)
        for line in lines
    ]
    return [
        Table(("scheme", "bits a weight", "what it is", "example"), "lrll", tuple(rows)),
        Prose("Bits a weight are those of the example, scales included. `modelzip schemes int` explains one."),
    ]


def scheme_blocks(manual: Mapping[str, str]) -> list[Block]:
    """One scheme: its docstring and that of its module."""
    return [Heading(manual["canonical"]), Prose(f"\n{manual['manual']}\n\n{manual['about']}")]


def default_blocks(rules: Iterable[tuple[str, str, str]]) -> list[Block]:
    """What is kept by default."""
    return [
        Table(("what", "recognised by (globs: a component of the name)", "then"), "lll", tuple(rules)),
        Prose(
            "--set GLOB=SCHEME overrides what follows from names, --set NAME=SCHEME also rank and size; "
            "--only and --skip add to them."
        ),
    ]
