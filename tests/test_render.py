"""Tables on a terminal: figures are never cut off."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from modelzip_cli.render import Table, write_blocks

NAMES = tuple(f"figure {place}" for place in range(9))
WIDE = Table(("model", *NAMES), "l" + "r" * 9, (("teacher", *["123.45 ms"] * 9), ("student", *["67.89 ms"] * 9)))


def on_a_terminal(table: Table, monkeypatch: pytest.MonkeyPatch, columns: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    write_blocks([table], "rich", stream)
    return stream.getvalue().strip().splitlines()


def test_a_table_that_turns_has_its_rows_as_columns_where_it_is_too_wide(monkeypatch):
    lines = on_a_terminal(replace(WIDE, turns=True), monkeypatch, 80)
    assert lines[0].split() == ["model", "teacher", "student"]
    assert [line.split() for line in lines[1:]] == [[*name.split(), "123.45", "ms", "67.89", "ms"] for name in NAMES]


def test_it_stays_as_it_is_where_there_is_room(monkeypatch):
    assert len(on_a_terminal(replace(WIDE, turns=True), monkeypatch, 160)) == 3
