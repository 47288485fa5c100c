"""How reports are shown: blocks of text on a terminal (rich), in a pipe (plain) or as Markdown.

Text from files has passed through `inert` before; nothing is ever read as rich markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

BAR_WIDTH = 40
EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Heading:
    """The first line: a title, and something for the right margin."""

    text: str
    right: str = ""


@dataclass(frozen=True)
class Bars:
    """Sizes on one scale: (label, value, text)."""

    rows: tuple[tuple[str, float, str], ...]


@dataclass(frozen=True)
class Table:
    """Rows of text. `align`: l or r, a letter a column. `turns`: on too narrow a terminal, rows become columns."""

    columns: tuple[str, ...]
    align: str
    rows: tuple[tuple[str, ...], ...]
    dim: frozenset[int] = frozenset()
    turns: bool = False

    def turned(self) -> Table:
        """The same with rows and columns exchanged."""
        head, *lines = zip(self.columns, *self.rows, strict=True)
        return Table(head, "l" + "r" * len(self.rows), tuple(lines))


@dataclass(frozen=True)
class Pairs:
    """A label and a line of text each; `style` by label: good, bad, warn."""

    rows: tuple[tuple[str, str], ...]
    styles: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Prose:
    """Text as it is."""

    text: str


Block = Heading | Bars | Table | Pairs | Prose


def write_blocks(blocks: Sequence[Block], form: str, stream: IO[str]) -> None:
    """Write blocks to `stream`: rich, plain or md."""
    if form == "rich":
        _write_rich(blocks, stream)
        return
    text = _markdown(blocks) if form == "md" else _plain(blocks)
    stream.write(_ascii(text) if not _takes_unicode(stream) else text)


def _takes_unicode(stream: IO[str]) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") in ("utf8", "utf16", "utf32")


ASCII = str.maketrans(
    {"█": "#", "▏": "|", "├": "|", "└": "`", "─": "-", "│": "|", "…": "~"}
    | dict.fromkeys("▎▍▌▋▊▉", "|")
    | dict(zip("▁▂▃▄▅▆▇", ".:-=+*%", strict=True))
)


def _ascii(text: str) -> str:
    return text.translate(ASCII).encode("ascii", "backslashreplace").decode()


def bar(share: float, width: int) -> str:
    """A bar of `share` of `width` characters, in eighths of one."""
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")


def _bar_lines(bars: Bars) -> list[tuple[str, str, str]]:
    largest = max((value for _, value, _ in bars.rows), default=0) or 1
    return [(label, bar(value / largest, BAR_WIDTH), text) for label, value, text in bars.rows]


def _plain(blocks: Sequence[Block]) -> str:
    out: list[str] = []
    for block in blocks:
        if isinstance(block, Heading):
            out += [f"{block.text}   {block.right}".rstrip()]
        elif isinstance(block, Bars):
            labels = max(len(label) for label, _, _ in block.rows)
            out += [f"{label:<{labels}}  {line:<{BAR_WIDTH}}  {text}" for label, line, text in _bar_lines(block)]
        elif isinstance(block, Table):
            above = [""] if out[-1:] != [""] else []  # one blank line between two tables
            out += [*above, *_aligned([block.columns, *block.rows], block.align), ""]
        elif isinstance(block, Prose):
            out += [block.text]
        else:
            labels = max(9, *(len(label) for label, _ in block.rows))
            out += [f"{label:<{labels}}  {text}" for label, text in block.rows]
    return "\n".join(out) + "\n"


def _aligned(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(align))]
    return [
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, align, strict=True)
        ).rstrip()
        for row in rows
    ]


def _markdown(blocks: Sequence[Block]) -> str:
    def cell(text: str) -> str:
        for special in "\\|`*_<>[]":
            text = text.replace(special, f"\\{special}")
        return text

    out: list[str] = []
    for block in blocks:
        if isinstance(block, Heading):
            out += [f"### {cell(block.text)}", ""]
        elif isinstance(block, Bars):
            out += [f"- {cell(label)}: {cell(text)}" for label, _, text in block.rows]
        elif isinstance(block, Table):
            out += ["", "| " + " | ".join(block.columns) + " |"]
            out += ["| " + " | ".join("---:" if side == "r" else "---" for side in block.align) + " |"]
            out += ["| " + " | ".join(map(cell, row)) + " |" for row in block.rows]
            out += [""]
        elif isinstance(block, Prose):
            out += [block.text]
        else:
            out += [f"- **{cell(label)}**: {cell(text)}" for label, text in block.rows]
    return "\n".join(out) + "\n"


STYLES = {"good": "green", "bad": "bold red", "warn": "yellow"}


def _write_rich(blocks: Sequence[Block], stream: IO[str]) -> None:
    from rich.console import Console

    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    for block in blocks:
        _print_rich(block, console)


def _widths(table: Table) -> list[int]:
    """The longest cell of each column."""
    return [max(map(len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]


def _print_rich(block: Block, console: Console) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    grid: Any
    if isinstance(block, Heading):
        console.print(Text(block.text, "bold"), Text(block.right, "dim"), sep="  ")
    elif isinstance(block, Bars):
        grid = RichTable.grid(padding=(0, 2))
        for label, line, text in _bar_lines(block):
            grid.add_row(Text(label, "dim"), Text(line, "cyan"), Text(text))
        console.print(grid)
    elif isinstance(block, Table):
        grid = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        if block.turns and sum(_widths(block)) + 2 * len(block.columns) > console.width:
            block = block.turned()
        widths = _widths(block)
        is_wide = sum(widths[:-1]) + 2 * len(widths) > console.width  # rather a name on two lines than half a figure
        for place, (column, side) in enumerate(zip(block.columns, block.align, strict=True)):
            folds = place == len(block.columns) - 1 or (place == 0 and is_wide)
            justify: Any = "right" if side == "r" else "left"
            grid.add_column(Text(column), justify=justify, no_wrap=not folds, overflow="fold" if folds else "ellipsis")
        for number, row in enumerate(block.rows):
            grid.add_row(*(Text(cell, "dim" if number in block.dim else "") for cell in row))
        console.print()
        console.print(grid)
        console.print()
    elif isinstance(block, Prose):
        console.print(Text(block.text))
    else:
        grid = RichTable.grid(padding=(0, 2))
        styles = dict(block.styles)
        for label, text in block.rows:
            grid.add_row(Text(label, "dim"), Text(text, STYLES.get(styles.get(label, ""), "")))
        console.print(grid)
