"""What operators that change shapes do to channels: axes move, merge, part, join and are cut.

These are rules as `channel_rules.py` describes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch.fx import Node

from modelzip_cli.running.channel_spaces import Axis, repeated
from modelzip_cli.running.channel_trace import DYNAMIC, Axes, Call, Refused

PICKS = "picks some of the channels"
MERGES = "merges the channels with another axis"
DIVIDES = "splits the channels"


def moved(call: Call) -> Axes:
    """`permute` and its like, and `unsqueeze`: run on a tensor whose lengths tell its axes apart."""
    axes, operator = call.first, call.node.target
    assert callable(operator)
    lengths = torch.empty(tuple(range(2, len(axes) + 2)), device="meta")
    shape = operator(lengths, *call.node.args[1:], **call.node.kwargs).shape
    return tuple(() if length == 1 else axes[length - 2] for length in shape)


def expand(call: Call) -> Axes:
    """Axes of length 1 are repeated; those with channels keep their length, which `size` may state."""
    new = len(call.shape) - len(call.first)
    lengths = zip(call.first, call.sizes("self"), call.shape[new:], strict=True)
    return _stated(call, ((),) * new + tuple(axis if before == after else () for axis, before, after in lengths))


def reshape(call: Call) -> Axes:
    """Axes are merged and divided, block by block of axes that hold the same elements before and after."""
    before, after = call.sizes("self"), call.shape
    found: list[Axis] = []
    for old, new in _blocks(before, after):
        merged = _merge(call, call.first[old], before[old])
        found.extend(_divide(call, merged, after[new]))
    return _stated(call, tuple(found), first=call.dim() if call.name == "unflatten" else 0)


def _stated(call: Call, axes: Axes, first: int = 0) -> Axes:
    """`axes`, whose lengths from axis `first` on are numbers in the graph, or those of another tensor."""
    for argument in ("size", "shape", "sizes"):
        for item, length in enumerate(call[argument] or ()):
            if isinstance(length, int) and length > 0:
                call.count(axes[first + item], argument, item)
    if call["other"]:  # expand_as, view_as
        return tuple(map(call.unify, axes, call.axes("other")))
    return axes


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Cut two shapes of as many elements into the shortest pieces that have as many elements."""
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = slice(i, i + 1), slice(j, j + 1)
        while (a := prod(before[old])) != (b := prod(after[new])) and (old.stop < len(before) or new.stop < len(after)):
            if a < b and old.stop < len(before):
                old = slice(i, old.stop + 1)
            else:
                new = slice(j, new.stop + 1)
        yield old, new
        i, j = old.stop, new.stop


def _merge(call: Call, axes: Sequence[Axis], shape: Sequence[int]) -> Axis:
    """One axis out of several. Channels that come first are repeated; behind another axis they have no order."""
    long = [(axis, length) for axis, length in zip(axes, shape, strict=True) if length != 1]
    inner = prod(length for _, length in long[1:])
    if any(call.spaces.is_free(axis) for axis, _ in long[1:]) or inner >= DYNAMIC:
        for axis, _ in long:
            call.freeze(axis, MERGES)
    return repeated(long[0][0], inner) if long and inner < DYNAMIC else ()


def _divide(call: Call, axis: Axis, shape: Sequence[int]) -> Axes:
    """Several axes out of one. The first gets the channels, each of which goes with all that it has on the others:
    [heads, features], [channels, height, width]. In [3, heads, features] it is the second: a head goes from all three.
    """
    long = [place for place, length in enumerate(shape) if length != 1]
    if not axis or not long or max(shape) >= DYNAMIC:
        call.freeze(axis, DIVIDES)
        return ((),) * len(shape)
    stacked = len(long) > 2 and shape[long[0]] in (2, 3)  # queries, keys and values, or the last two of them
    place, rest = long[stacked], long[stacked + 1 :]
    part = axis
    if len(long) > 1:
        part = call.spaces.new(shape[place])
        whole = repeated(part, prod(shape[other] for other in rest)) * prod(shape[other] for other in long[:stacked])
        call.unify(axis, whole, why=DIVIDES)
    return tuple(part if other == place else () for other in range(len(shape)))


def concatenation(call: Call) -> Axes:
    """Along the channels their lists are joined; the other axes are the same in all."""
    parts = [call.trace.axes(node) for node in call["tensors"]]
    dim = call.dim(len(parts[0]))
    found = [call.unify(*axes) if place != dim else () for place, axes in enumerate(zip(*parts, strict=True))]
    joined = [axes[dim] for axes in parts]
    if () not in joined:
        found[dim] = sum(joined, ())
    for axis in joined if () in joined else ():
        call.freeze(axis, "joins the channels with an axis that has none")
    return tuple(found)


def stack(call: Call) -> Axes:
    """A new axis; the others are the same in all."""
    found = [call.unify(*axes) for axes in zip(*map(call.trace.axes, call["tensors"]), strict=True)]
    found.insert(call.dim(len(found) + 1), ())
    return tuple(found)


def sliced(call: Call) -> Axes:
    """`slice`: the positions from `start` to `end`."""
    dim = call.dim()
    axis, length, kept = call.first[dim], call.sizes("self")[dim], call.shape[dim]
    if kept == length:
        return call.first  # an `end` that is past the end does no harm
    if not axis:
        return call.replaced(dim, ())
    start = call["start"] or 0
    if call["step"] != 1 or not isinstance(start, int) or isinstance(call["end"], Node):
        raise Refused(PICKS)
    before, rest = call.split(axis, start if start >= 0 else max(start + length, 0))
    taken, after = call.split(rest, kept)
    call.count(before, "start")
    if after:
        call.count(before + taken, "end")
    return call.replaced(dim, taken)


def pieces(call: Call) -> list[Axes]:
    """`split` and `chunk`. Where one number cuts all pieces they must stay of one length: the same channels go."""
    dim = call.dim()
    rest, found = call.first[dim], []
    for shape in call.trace.shapes(call.node):
        piece, rest = call.split(rest, shape[dim])
        found.append(piece)
    argument = "split_sizes" if call["split_sizes"] else "split_size"
    if isinstance(call[argument], (list, tuple)):
        for item, piece in enumerate(found):
            call.count(piece, argument, item)
    else:
        call.unify(*found, why="cuts the channels into pieces that must stay equal")
        if call[argument] is not None:  # chunk says how many pieces, not how long they are
            call.count(found[0], argument)
    return [call.replaced(dim, piece) for piece in found]


def glu(call: Call) -> Axes:
    """The first half times a function of the second: both lose the same channels."""
    dim = call.dim()
    halves = call.split(call.first[dim], call.shape[dim])
    return call.replaced(dim, call.unify(*halves))


def picked(call: Call) -> Axes:
    """`select` and `unbind`: one place of an axis, which is gone."""
    dim = call.dim()
    call.freeze(call.first[dim], PICKS)
    return call.replaced(dim)


def index(call: Call) -> Axes:
    """One axis is looked up in a tensor of numbers, whose axes take its place."""
    given = [(dim, node) for dim, node in enumerate(call["indices"]) if node is not None]
    if len(given) != 1:
        raise Refused(PICKS)
    ((dim, numbers),) = given
    call.freeze(call.first[dim], PICKS)
    return call.replaced(dim, *((),) * len(call.trace.axes(numbers)))
