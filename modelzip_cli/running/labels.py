"""Labels of examples: numbers for names, and whether a model can be held against them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.errors import BadData, inert
from modelzip_cli.running.inputs import IGNORED, Examples

SHOWN = 3  # names in a message


def number_classes(found: Iterable[str], known: tuple[str, ...] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of classes by number, and warnings: as the model numbers them where it `known`s all, else sorted."""
    names = tuple(sorted(set(found)))
    if known is None:
        return names, ()
    if len(set(known)) == len(known) and set(names) <= set(known):  # ImageNet has two classes called "crane"
        return known, ()
    numbers = ", ".join(f"{number} = {inert(name, longest=40)}" for number, name in enumerate(names[:SHOWN]))
    return names, (
        f"the classes are not called as in the model ({_some(known)}); they are numbered in alphabetical "
        f"order: {numbers}{', ...' if len(names) > SHOWN else ''}",
    )


def number_labels(
    found: Sequence[object], place: Callable[[int], str], known: tuple[str, ...] | None
) -> tuple[NDArray[np.int64], tuple[str, ...] | None, tuple[str, ...]]:
    """Labels of a table, text or whole numbers, as int64 [rows]; the classes, where they are text; and warnings.

    `place`: where a row is, for messages. Raises BadData for a label that is missing, broken, or text among numbers.
    """
    numbers = [_whole(value) for value in found]
    kinds = [_kind(value, number) for value, number in zip(found, numbers, strict=True)]
    odd = next((row for row, kind in enumerate(kinds) if kind is None or kind != kinds[0]), None)
    if odd is not None:
        value = inert(repr(found[odd]), longest=60)
        raise BadData(f"{place(odd)}: the label is {value}; labels are all whole numbers or all text")
    if "text" not in kinds:
        return np.array(numbers, np.int64), None, ()
    names = [str(value) for value in found]
    classes, warnings = number_classes(names, known)
    number_of = {name: number for number, name in enumerate(classes)}
    return np.array([number_of[name] for name in names], np.int64), classes, warnings


def _whole(value: object) -> int | None:
    """The whole number that a cell or a JSON value stands for, or None."""
    if isinstance(value, str):
        try:
            value = float(value) if "." in value else int(value)  # "3.0": a column of integers that once had a gap
        except ValueError:
            return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return int(value) if isinstance(value, int) and abs(value) < 1 << 63 else None


def _kind(value: object, number: int | None) -> str | None:
    """What a label is: a whole number, text, or None for neither, such as a fraction or a gap."""
    if number is not None:
        return "number"
    return "text" if isinstance(value, str) and value and not _is_fraction(value) else None


def _is_fraction(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return any(map(str.isdigit, text))  # "nan" and "infinity" may be names


def check_labels(examples: Examples, outputs: int) -> None:
    """Refuse labels that a model with `outputs` outputs cannot be held against, where they are known beforehand.

    Raises BadData for one example, one class alone, or a label that no output stands for; it names the first.
    """
    if len(examples) < 2 and not examples.a_label_a_position:
        raise BadData(f"{examples.label}: one example only; figures and learning need more")
    labels = examples.labels
    if labels is None:
        return
    check_range(labels, outputs, examples)
    if not examples.a_label_a_position and labels.min() == labels.max():
        raise BadData(
            f"{examples.label}: all {len(labels):,} examples have the label {_named(labels[0], examples)}; one class "
            "alone says nothing; give data of all classes"
        )


def check_range(labels: NDArray[Any], outputs: int, examples: Examples, rows: Sequence[int] | None = None) -> None:
    """Raise BadData for the first of `labels`, of the examples at `rows` (None: all), outside 0 .. outputs - 1.

    IGNORED is a label of positions. Call it on each batch where `Examples.labels` is None.
    """
    counted = labels != IGNORED if examples.a_label_a_position else np.ones(labels.shape, np.bool_)
    wrong = counted & ((labels < 0) | (labels >= outputs))
    if not wrong.any():
        return
    row = int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)))
    value = labels[row][np.argmax(wrong[row])] if labels.ndim > 1 else labels[row]
    place = examples.place(row if rows is None else int(rows[row]))
    hint = "; labels start at 1? Subtract 1" if labels[counted].min() == 1 and labels[counted].max() == outputs else ""
    raise BadData(
        f"{place}: the label is {_named(value, examples)}, but the model has {outputs} outputs: labels are 0 to "
        f"{outputs - 1}{hint}"
    )


def _named(label: int, examples: Examples) -> str:
    """A label with the name of its class."""
    names = examples.classes or ()
    return f"{label} ({inert(names[label], longest=40)})" if 0 <= label < len(names) else f"{label}"


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(inert(name, longest=40) for name in names[:SHOWN])
    return f"{shown}{', ...' if len(names) > SHOWN else ''}"
