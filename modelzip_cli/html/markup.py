"""The small parts of a page. Whatever comes from a file passes through `safe` or `safe_json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from modelzip_cli.errors import inert

LONGEST = 500  # characters of a name
Cell = tuple[str, str] | str  # HTML, and the attributes of its cell


def safe(value: str, longest: int | None = None) -> str:
    """Text in which nothing can act: neither as HTML nor as control characters."""
    return escape(inert(value, longest=longest))


def safe_name(value: str) -> str:
    """A tensor name or a path in which lines may break, after dots and slashes first."""
    return safe(value, LONGEST).replace(".", ".<wbr>").replace("/", "/<wbr>")


def safe_json(value: object) -> str:
    """JSON that is inert inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def times(value: float | int | None) -> str:
    """How many times smaller, or a dash."""
    return "-" if value is None else f"{value:.2f}x"


def plural(number: int, word: str) -> str:
    """1 tensor, 2 tensors."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def section(level: int, title: str, body: str, note: str = "") -> str:
    """A section with its heading; nothing where it has no body."""
    intro = f'<p class="note">{note}</p>\n' if note else ""
    return f"<section>\n<h{level}>{title}</h{level}>\n{intro}{body}</section>\n" if body else ""


def table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[Cell]], label: str) -> str:
    """A table in a container of its own that scrolls; `columns`: title and class."""
    head = "".join(f'<th scope="col" class="{kind}">{title}</th>' for title, kind in columns)
    lines = []
    for row in rows:
        cells = [(cell, "") if isinstance(cell, str) else cell for cell in row]
        pairs = zip(cells, columns, strict=True)
        lines.append(
            "<tr>" + "".join(f'<td class="{kind}"{more}>{text}</td>' for (text, more), (_, kind) in pairs) + "</tr>"
        )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead>\n'
        "<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>\n"
    )


def code_block(label: str, text: str) -> str:
    """Code, which is HTML already, under its label and with a button that copies it."""
    return (
        f'<div class="code"><div class="bar"><span>{label}</span>'
        f'<button type="button" class="copy" hidden aria-label="Copy {label}">Copy</button></div>'
        f'<pre tabindex="0"><code>{text}</code></pre></div>\n'
    )


def tile_list(tiles: Iterable[tuple[str, str, str]]) -> str:
    """Figures in boxes: title, value and a note each, HTML already."""
    lines = [f"<div><dt>{title}</dt><dd>{value}<small>{note}</small></dd></div>\n" for title, value, note in tiles]
    return f'<dl class="tiles">\n{"".join(lines)}</dl>\n'


def words(command_line: str) -> str:
    """A command line that breaks between its words, not at their hyphens."""
    return " ".join(f"<span>{safe(word)}</span>" for word in command_line.split(" "))


def file_name(path: str) -> str:
    """The last part of a path."""
    return path.rstrip("/").rpartition("/")[2] or path


def sortable_head(columns: Sequence[tuple[str, str]]) -> str:
    """The head of a table that the script sorts; `columns`: title and kind of the figures."""
    return "".join(
        f'<th scope="col" class="{_side(kind)}" data-kind="{kind}" aria-sort="none"><button type="button">{title}'
        '<span class="arrow" aria-hidden="true"></span></button></th>'
        for title, kind in columns
    )


def _side(kind: str) -> str:
    return kind if kind in ("name", "reason") else "" if kind in ("word", "message") else "n"
