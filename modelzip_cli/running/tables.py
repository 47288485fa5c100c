"""Tables as data: `.csv`, `.tsv`, `.jsonl`, `.parquet`, `.arrow`, `.feather`: a row is an example.

Its label has a column of its own. A model that takes tokens reads a column of text; for others every other column is a
number, a feature. A column `x` of lists stands for all others: tokens, or numbers of any shape.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.containers.strict_json import NotStrict, parse
from modelzip_cli.errors import BadData, UsageError, did_you_mean, inert
from modelzip_cli.running.arrays import float_examples, show_shape
from modelzip_cli.running.content import Origin, decode_text
from modelzip_cli.running.extras import require
from modelzip_cli.running.inputs import Examples, Wanted, fingerprint
from modelzip_cli.running.labels import number_labels
from modelzip_cli.running.pixels import Preparation
from modelzip_cli.running.text import open_texts
from modelzip_cli.running.tokenizer import Encode

LABELS = ("label", "y", "class")  # the first of them that is there, unless --label-key or --text-key names a column
TEXTS = ("text", "sentence")
LISTS = "x"
SHOWN = 8  # columns in a message
CHUNK = 1024  # rows of an Arrow table that are Python values at a time

Cells = Sequence[object]


class BadCell(ValueError):
    """A cell does not hold what its column should; the message says which, without the row."""


@dataclass(frozen=True)
class Table:
    """Names of columns, and rows as they are read: a number in the file, which counts `unit`s, and the cells."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[int, Cells]]
    unit: str


def open_table(
    content: bytes,
    suffix: str,
    origin: Origin,
    wanted: Wanted,
    images: Preparation,
    encode: Encode | None,
    *,
    label_key: str | None = None,
    text_key: str | None = None,
) -> Examples:
    """The examples of a table, whose bytes are `content` and whose kind is `suffix`.

    Labels are whole numbers, used as they are, or text, numbered as the model does or in alphabetical order. Raises
    BadData, which names line and column, and UsageError for a column that is not there.
    """
    label = origin.label
    if text_key is not None and wanted.kind != "tokens":
        raise UsageError(f"{label}: --text-key, but the model takes numbers, not text")
    table = READERS[suffix](content, label)
    labels_in = _column(table, label, "--label-key", label_key, LABELS)
    text_in = _column(table, label, "--text-key", text_key, TEXTS) if wanted.kind == "tokens" else None
    take = _inputs(table, label, labels_in, text_in, tokens=wanted.kind == "tokens")

    numbers: list[int] = []
    found: list[object] = []
    inputs: list[Any] = []
    for number, cells in table.rows:
        numbers.append(number)
        try:
            inputs.append(take(cells))
        except BadCell as error:
            raise BadData(f"{label}: {table.unit} {number}: {error}") from None
        if labels_in is not None:
            found.append(cells[labels_in])
    if not inputs:
        raise BadData(f"{label}: a header, but no rows")

    origin = replace(origin, name_row=lambda row: f"{label}: {table.unit} {numbers[row]}")
    labels = None
    if labels_in is not None and not (wanted.kind == "tokens" and wanted.positions):
        labels, classes, warnings = number_labels(found, origin.place, wanted.classes)
        origin = replace(origin, classes=classes).warn(*warnings)
    elif labels_in is None and wanted.kind != "tokens":
        origin = origin.warn(f"no column is called {', '.join(LABELS)}, so there are no labels; see --label-key")
    origin = replace(origin, digest=fingerprint(origin.digest, labels_in, text_in, origin.classes))
    if wanted.kind == "tokens":
        return open_texts(inputs, labels, origin, wanted, encode)
    return float_examples(_stacked(inputs, origin), labels, origin, wanted, images)


def _column(table: Table, label: str, option: str, name: str | None, usual: tuple[str, ...]) -> int | None:
    """The place of the column that an option names, else of the first usual one, else None."""
    if name is None:
        return next((table.columns.index(usual_name) for usual_name in usual if usual_name in table.columns), None)
    if name not in table.columns:
        hint = did_you_mean(name, table.columns) or f"; there are {_some(table.columns)}"
        raise UsageError(f"{label}: {option} {name}: no such column{inert(hint)}")
    return table.columns.index(name)


def _inputs(
    table: Table, label: str, labels_in: int | None, text_in: int | None, *, tokens: bool
) -> Callable[[Cells], str | list[int] | NDArray[np.float32]]:
    """How the cells of a row become an input: text, tokens, or numbers."""
    lists_in = table.columns.index(LISTS) if LISTS in table.columns else None
    if tokens:
        if text_in is not None:
            return lambda cells: _text(cells[text_in], table.columns[text_in])
        if lists_in is None:
            raise UsageError(f"{label}: no column is called text; --text-key names one of {_some(table.columns)}")
        return lambda cells: _tokens(cells[lists_in])
    features = [place for place in range(len(table.columns)) if place != labels_in]
    if not features:
        raise BadData(f"{label}: no column beside that of the labels")

    def numbers(cells: Cells) -> NDArray[np.float32]:
        if lists_in is not None and isinstance(cells[lists_in], list):
            return _array(cells[lists_in])
        return _features([cells[place] for place in features], [table.columns[place] for place in features])

    return numbers


def _text(cell: object, column: str) -> str:
    if not isinstance(cell, str):
        raise BadCell(f"column {inert(column)} is {_shown(cell)}, no text")
    return cell


def _tokens(cell: object) -> list[int]:
    if not isinstance(cell, list) or not all(type(token) is int and abs(token) < 1 << 63 for token in cell):
        raise BadCell(f"{LISTS} is {_shown(cell)}, no list of tokens")
    return cell


def _array(cell: object) -> NDArray[np.float32]:
    values = _floats(cell)
    if values is None or not values.size:
        raise BadCell(f"{LISTS} is {_shown(cell)}, no array of finite numbers")
    return values


def _features(cells: Cells, columns: Sequence[str]) -> NDArray[np.float32]:
    """Cells as numbers; the first that is none is named."""
    values = _floats(cells)
    if values is not None and values.shape == (len(cells),):
        return values
    wrong = next(place for place, cell in enumerate(cells) if not _is_number(cell))
    raise BadCell(
        f"column {inert(columns[wrong])} is {_shown(cells[wrong])}, no finite float32; the model takes numbers"
    )


def _floats(value: object) -> NDArray[np.float32] | None:
    """A number, or nested lists of them, as float32; None for what is something else, ragged or not finite."""
    try:
        with np.errstate(over="ignore"):
            floats = np.array(value, np.float32)
    except (TypeError, ValueError, OverflowError):
        return None
    return floats if np.isfinite(floats).all() else None


def _is_number(cell: object) -> bool:
    value = _floats(cell)
    return value is not None and value.ndim == 0


def _stacked(inputs: Sequence[NDArray[np.float32]], origin: Origin) -> NDArray[np.float32]:
    """Inputs of one shape as one array [rows, ...]."""
    first = inputs[0].shape
    odd = next((row for row, values in enumerate(inputs) if values.shape != first), None)
    if odd is not None:
        raise BadData(f"{origin.place(odd)}: {show_shape(inputs[odd].shape)}, but the first is {show_shape(first)}")
    return np.stack(inputs)


def _shown(cell: object) -> str:
    return inert(repr(cell), longest=60)


def _some(columns: Sequence[str]) -> str:
    shown = ", ".join(inert(name, longest=40) for name in columns[:SHOWN])
    return f"{shown}{', ...' if len(columns) > SHOWN else ''}"


def _read_delimited(delimiter: str) -> Callable[[bytes, str], Table]:
    """A reader of text with one row a line, RFC 4180, and a header."""

    def read(content: bytes, label: str) -> Table:
        lines = _lines(content, label, delimiter)
        _, header = next(lines, (0, []))
        if not header:
            raise BadData(f"{label}: no rows")
        if all(map(_is_number, header)):
            raise BadData(f"{label}: the first row holds numbers; it has to name the columns, such as x1,x2,label")

        def rows() -> Iterator[tuple[int, Cells]]:
            for number, cells in lines:
                if len(cells) != len(header):
                    raise BadData(f"{label}: line {number}: {len(cells)} cells, but the header has {len(header)}")
                yield number, cells

        return Table(_unique(header, label), rows(), "line")

    return read


def _lines(content: bytes, label: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Cells of each row that is not blank, and the number of its last line."""
    lines = csv.reader(StringIO(decode_text(content, label), newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in lines:
            if cells:
                yield lines.line_num, cells
    except csv.Error as error:
        raise BadData(f"{label}: line {lines.line_num}: {error}") from None


def _unique(columns: Sequence[str], label: str) -> tuple[str, ...]:
    for place, name in enumerate(columns):
        if name in columns[:place]:
            raise BadData(f"{label}: two columns are called {inert(name)!r}")
    return tuple(columns)


def _read_json_lines(content: bytes, label: str) -> Table:
    """A JSON object a line; the first one names the columns."""
    lines = [(number, line) for number, line in enumerate(decode_text(content, label).split("\n"), 1) if line.strip()]
    if not lines:
        raise BadData(f"{label}: no lines")

    def record(number: int, line: str) -> dict[str, object]:
        try:
            value = parse(line)
        except NotStrict as error:
            raise BadData(f"{label}: line {number}: {inert(str(error), longest=200)}") from None
        if not isinstance(value, dict):
            raise BadData(f"{label}: line {number}: no JSON object")
        return value

    columns = tuple(record(*lines[0]))

    def cells(number: int, line: str) -> Cells:
        found = record(number, line)
        return [found.get(column) for column in columns]

    return Table(columns, ((number, cells(number, line)) for number, line in lines), "line")


def _read_arrow(content: bytes, label: str) -> Table:
    """Parquet, and Arrow files of either framing, by their first bytes. Rows count from 1."""
    require("pyarrow", "tables", label)
    import pyarrow
    from pyarrow import feather, parquet

    with _damage_named(label):
        if content.startswith(b"PAR1"):
            found = parquet.read_table(BytesIO(content))
        elif content.startswith((b"ARROW1", b"FEA1")):
            found = feather.read_table(BytesIO(content))
        else:
            found = pyarrow.ipc.open_stream(content).read_all()
        found.validate(full=True)  # offsets and UTF-8, which reading trusts
        columns = found.column_names

    def rows() -> Iterator[tuple[int, Cells]]:
        number = 0
        for chunk in found.to_batches(max_chunksize=CHUNK):
            with _damage_named(label):
                values = [column.to_pylist() for column in chunk.columns]
            for cells in zip(*values, strict=True):
                number += 1
                yield number, cells

    return Table(_unique(columns, label), rows(), "row")


@contextmanager
def _damage_named(label: str) -> Iterator[None]:
    """Errors of pyarrow as BadData."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: names that are not UTF-8
        reason = inert(str(error).split("\n")[0], longest=200)
        raise BadData(f"{label}: damaged, or no Parquet or Arrow file: {reason}") from None


READERS: dict[str, Callable[[bytes, str], Table]] = {
    ".csv": _read_delimited(","),
    ".tsv": _read_delimited("\t"),
    ".jsonl": _read_json_lines,
    ".parquet": _read_arrow,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}
