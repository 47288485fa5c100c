"""Bytes by module as nested rectangles: what belongs together lies together, and area is bytes.

Source: Bruls, Huizing, van Wijk, Squarified Treemaps, 2000. The order is that of the bytes before, in every map, so
that a module is found in about the same place before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod, sqrt

from modelzip_cli.report import TensorRow

MOST_MODULES = 160
DEEPEST = 8  # components of a name that are looked at


@dataclass(frozen=True)
class Box:
    """A rectangle, in units of the picture."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Module:
    """The tensors whose names begin with `parts`; tied tensors count once."""

    parts: tuple[str, ...]
    before: int
    after: int
    weights: int
    tensors: int
    dropped: bool  # all of them

    @property
    def name(self) -> str:
        """The shared start of the names."""
        return ".".join(self.parts)


Entry = tuple[tuple[str, ...], Module]  # the parts below the current node


def modules(rows: Sequence[TensorRow], most: int = MOST_MODULES) -> list[Module]:
    """Gather tensors by module, as deep as `most` of them allow; the largest first.

    Where even the first components are more than that, the smallest are one module called (others).
    """
    owners = [tuple(row.name.split(".")[:-1][:DEEPEST]) or (row.name,) for row in rows]
    depth = max((d for d in range(1, DEEPEST + 1) if len({parts[:d] for parts in owners}) <= most), default=1)
    members: dict[tuple[str, ...], list[TensorRow]] = {}
    for parts, row in zip(owners, rows, strict=True):
        if row.bytes_before or row.bytes_after:
            members.setdefault(parts[:depth], []).append(row)
    found = sorted(members.items(), key=lambda item: -sum(row.bytes_before for row in item[1]))
    if len(found) > most:
        rest = [row for _, inside in found[most - 1 :] for row in inside]
        found = [*found[: most - 1], (("(others)",), rest)]
    return [_module(parts, inside) for parts, inside in found]


def _module(parts: tuple[str, ...], rows: Sequence[TensorRow]) -> Module:
    return Module(
        parts,
        sum(row.bytes_before for row in rows),
        sum(row.bytes_after for row in rows),
        sum(prod(row.shape) for row in rows),
        len(rows),
        all(row.status == "dropped" for row in rows),
    )


def layout(
    found: Sequence[Module], size_of: Callable[[Module], int], box: Box
) -> tuple[list[tuple[Module, Box]], list[Box]]:
    """Place the modules that have a size in `box`. Returns them with their boxes, and the frames of their parents."""
    leaves: list[tuple[Module, Box]] = []
    frames: list[Box] = []

    def place(entries: Sequence[Entry], inside: Box) -> None:
        entries = _below_shared(entries)
        if len(entries) == 1:
            leaves.append((entries[0][1], inside))
            return
        children: dict[str | int, list[Entry]] = {}
        for number, (parts, module) in enumerate(entries):
            children.setdefault(parts[0] if parts else number, []).append((parts[1:], module))
        ordered = sorted(children.values(), key=lambda child: -sum(module.before for _, module in child))
        sizes = [sum(size_of(module) for _, module in child) for child in ordered]
        for child, part in zip(ordered, squarify(sizes, inside), strict=True):
            if len(child) > 1:
                frames.append(part)
            place(child, part)

    shown = [(module.parts, module) for module in found if size_of(module) > 0]
    if shown:
        place(shown, box)
    return leaves, frames


def _below_shared(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Drop the components that all names of several entries begin with."""
    while len(entries) > 1 and all(parts for parts, _ in entries) and len({parts[0] for parts, _ in entries}) == 1:
        entries = [(parts[1:], module) for parts, module in entries]
    return entries


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Cut `box` into boxes with areas as `sizes`, all positive, in their order and as square as rows of them can be."""
    boxes: list[Box] = []
    scale = box.width * box.height / sum(sizes)
    areas = [size * scale for size in sizes]
    x, y, width, height = box.x, box.y, box.width, box.height
    start = 0
    while start < len(areas):
        side = min(width, height)
        end, total = start + 1, areas[start]
        least = most = areas[start]
        while end < len(areas):
            area = areas[end]
            now = _worst(total, least, most, side)
            if _worst(total + area, min(least, area), max(most, area), side) > now:
                break
            total, least, most, end = total + area, min(least, area), max(most, area), end + 1
        thick = total / side if side else 0.0
        along = 0.0
        for area in areas[start:end]:
            length = area / thick if thick else 0.0
            upright = width >= height
            boxes.append(Box(x, y + along, thick, length) if upright else Box(x + along, y, length, thick))
            along += length
        if width >= height:
            x, width = x + thick, max(width - thick, 0.0)
        else:
            y, height = y + thick, max(height - thick, 0.0)
        start = end
    return boxes


def _worst(total: float, least: float, most: float, side: float) -> float:
    """The largest ratio of the sides in a row of boxes that fills `side`."""
    square = total * total
    return max(side * side * most / square, square / (side * side * least)) if side else 0.0


def at_same_scale(before: int, after: int, width: float, height: float) -> tuple[Box, Box]:
    """Two boxes of one shape, with areas as bytes; the larger one fills `width` x `height`."""
    largest = max(before, after, 1)
    sides = [sqrt(value / largest) for value in (before, after)]
    first, second = (Box(0.0, 0.0, width * side, height * side) for side in sides)
    return first, second
