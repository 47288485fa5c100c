"""Tensor names in groups that a person can read: 995 names become 13 rows.

1. Numbers between dots become index sets: `layers.{0..31}.mlp.up`. A layer that differs in shape, dtype or fate is a
   row of its own, never averaged away.
2. Siblings that are alike in everything but one component merge: `{q,o}_proj`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

MOST_ROWS = 24
COVERED = 0.99  # the rows shown cover this share of the bytes; the rest is one row


@dataclass(frozen=True)
class Group:
    """Names under one label; `members` are positions in the list that was grouped."""

    parts: tuple[str, ...]
    key: Hashable
    members: tuple[int, ...]

    @property
    def label(self) -> str:
        """The name as it is shown."""
        return ".".join(self.parts)


def group(names: Sequence[str], keys: Sequence[Hashable]) -> list[Group]:
    """Group `names`, whose `keys` say what must be equal inside a group; in order of first appearance."""
    found: dict[tuple[tuple[str | None, ...], Hashable], list[int]] = {}
    for place, (name, key) in enumerate(zip(names, keys, strict=True)):
        pattern = tuple(None if is_number(part) else part for part in name.split("."))
        found.setdefault((pattern, key), []).append(place)
    groups = []
    for (pattern, key), members in found.items():
        split = [names[place].split(".") for place in members]
        parts = tuple(
            index_set(int(parts[depth]) for parts in split) if part is None else part
            for depth, part in enumerate(pattern)
        )
        groups.append(Group(parts, key, tuple(members)))
    return _merge_siblings(groups)


def is_number(part: str) -> bool:
    """Whether a component of a name is an index: ASCII digits, not too many for one."""
    return part.isascii() and part.isdigit() and len(part) <= 9


def index_set(numbers: Iterable[int]) -> str:
    """Write numbers as `7`, `{0..31}` or `{0,5..7}`."""
    ordered = sorted(set(numbers))
    ranges: list[list[int]] = []
    for number in ordered:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    if len(ordered) == 1:
        return str(ordered[0])
    return "{" + ",".join(str(a) if a == b else f"{a},{b}" if b == a + 1 else f"{a}..{b}" for a, b in ranges) + "}"


def most_of(groups: list[Group], sizes: Sequence[int]) -> tuple[list[Group], list[Group]]:
    """The fewest groups, largest first, that cover nearly all bytes; and the rest, unless that is a single one."""
    total, covered = sum(sizes), 0
    for number, found in enumerate(groups):
        if number >= MOST_ROWS or (covered >= COVERED * total and number >= 8 and len(groups) - number > 1):
            return groups[:number], groups[number:]
        covered += sum(sizes[place] for place in found.members)
    return groups, []


def _merge_siblings(groups: list[Group]) -> list[Group]:
    deepest = max((len(found.parts) for found in groups), default=0)
    for depth in reversed(range(deepest)):
        alike: dict[Hashable, list[Group]] = {}
        for found in groups:
            others: Hashable
            if depth < len(found.parts) and "{" not in found.parts[depth] and not is_number(found.parts[depth]):
                others = (found.parts[:depth], found.parts[depth + 1 :], found.key, len(found.members))
            else:
                others = id(found)
            alike.setdefault(others, []).append(found)
        groups = [_merged(siblings, depth) if len(siblings) > 1 else siblings[0] for siblings in alike.values()]
    return groups


def _merged(siblings: list[Group], depth: int) -> Group:
    first = siblings[0]
    words = [found.parts[depth] for found in siblings]
    part = braces(words)
    members = tuple(sorted(place for found in siblings for place in found.members))
    return Group((*first.parts[:depth], part, *first.parts[depth + 1 :]), first.key, members)


def braces(words: Sequence[str]) -> str:
    """Write words by what they share: q_proj, o_proj -> {q,o}_proj."""
    start = _shared(words)
    rest = [word[start:] for word in words]
    end = _shared([word[::-1] for word in rest])
    middle = [word[: len(word) - end] for word in rest]
    return f"{words[0][:start]}{{{','.join(middle)}}}{words[0][len(words[0]) - end :] if end else ''}"


def _shared(words: Sequence[str]) -> int:
    """How many first characters all words have in common."""
    lowest, highest = min(words), max(words)
    differing = (place for place, pair in enumerate(zip(lowest, highest, strict=False)) if pair[0] != pair[1])
    return next(differing, min(len(lowest), len(highest)))


@dataclass
class Node:
    """A node of the tree of names: one component, or several joined where there is only one way down."""

    name: str
    children: list[Node]
    group: Group | None
    size: int  # bytes below
    count: int  # tensors below


def tree(groups: Sequence[Group], sizes: Sequence[int]) -> list[Node]:
    """Arrange groups by their shared prefixes; `sizes` are bytes a member. The largest child comes first."""
    return _level([(found.parts, found) for found in groups], sizes)


def _level(entries: list[tuple[tuple[str, ...], Group]], sizes: Sequence[int]) -> list[Node]:
    below: dict[str, list[tuple[tuple[str, ...], Group]]] = {}
    for parts, found in entries:
        below.setdefault(parts[0], []).append((parts[1:], found))
    nodes = []
    for name, inside in below.items():
        for found in [found for parts, found in inside if not parts]:
            size = sum(sizes[place] for place in found.members)
            nodes.append(Node(name, [], found, size, len(found.members)))
        deeper = [entry for entry in inside if entry[0]]
        if not deeper:
            continue
        children = _level(deeper, sizes)
        if len(children) == 1:
            only = children[0]
            nodes.append(Node(f"{name}.{only.name}", only.children, only.group, only.size, only.count))
        else:
            nodes.append(Node(name, children, None, sum(c.size for c in children), sum(c.count for c in children)))
    return sorted(nodes, key=lambda node: -node.size)
