"""Which channels of which tensors are the same channels: unification, as in type inference.

A *space* is a run of channels. An axis of a tensor is a list of segments, each a space whose channels take `repeat`
positions. Where two axes meet (in an addition, or a weight and its input) their lists are made equal: a space becomes
another one, or turns out to consist of several. What is left in the end are the channels that can go alone.

The idea of coupled channels: Fang, Ma, Song, Mi and Wang, DepGraph: Towards Any Structural Pruning, 2023,
arXiv:2301.12900. Spaces that split make slices, concatenations and heads a matter of the same few lines.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """The channels of `space` in order, each `repeat` positions in a row."""

    space: int
    repeat: int = 1


Axis = tuple[Segment, ...]  # one axis of a tensor; () holds no channels: batch, time, height


def repeated(axis: Axis, times: int) -> Axis:
    """`axis` with each position `times` times in a row, as flattening [channels, times] gives it."""
    return tuple(Segment(segment.space, segment.repeat * times) for segment in axis)


class Spaces:
    """The spaces of one graph: how large they are, what they consist of, and why some must stay whole."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._parts: dict[int, Axis] = {}  # what a space turned out to consist of; the others are final
        self._frozen: dict[int, str] = {}

    def new(self, size: int, frozen: str | None = None) -> Axis:
        """A new space of `size` channels as an axis; `frozen`: why it must stay whole, None where it need not."""
        self._sizes.append(size)
        axis = (Segment(len(self._sizes) - 1),)
        if frozen is not None:
            self.freeze(axis, frozen)
        return axis

    def channels(self, space: int) -> int:
        """How many channels a space has."""
        return self._sizes[space]

    def positions(self, axis: Axis) -> int:
        """The length of an axis; 0 for one without channels."""
        return sum(self._sizes[segment.space] * segment.repeat for segment in axis)

    def resolve(self, axis: Axis) -> Axis:
        """The axis in terms of spaces that consist of no others."""
        if not any(segment.space in self._parts for segment in axis):
            return axis
        found: list[Segment] = []
        for segment in axis:
            if segment.space in self._parts:
                self._parts[segment.space] = self.resolve(self._parts[segment.space])
                found.extend(repeated(self._parts[segment.space], segment.repeat))
            else:
                found.append(segment)
        return tuple(found)

    def why_frozen(self, axis: Axis) -> str | None:
        """The reason why all of the axis must stay whole; None where some of it need not."""
        reasons = [self._frozen.get(segment.space) for segment in self.resolve(axis)]
        return reasons[0] if reasons and None not in reasons else None

    def is_free(self, axis: Axis) -> bool:
        """Whether some channels of the axis need not stay."""
        return bool(axis) and self.why_frozen(axis) is None

    def freeze(self, axis: Axis, reason: str) -> None:
        """Keep every channel of the axis. The first reason stays."""
        for segment in self.resolve(axis):
            self._frozen.setdefault(segment.space, reason)

    def unify(self, left: Axis, right: Axis, reason: str) -> None:
        """Make two axes the same channels; where their lists cannot be made equal, freeze both for `reason`."""
        for one, other in ((left, right), (right, left)):
            why = self.why_frozen(one) if one else reason
            if why is not None:
                return self.freeze(other, why)
        while (lists := (self.resolve(left), self.resolve(right)))[0] != lists[1]:
            if self.positions(left) != self.positions(right) or not self._step(*lists):
                self.freeze(left + right, reason)
                return None
        return None

    def split(self, axis: Axis, position: int, reason: str) -> tuple[Axis, Axis]:
        """The axis before and from `position`; where that is within a channel, freeze it for `reason`."""
        before: Axis = ()
        rest = self.resolve(axis)
        while rest and position:
            segment = rest[0]
            length = self.positions(rest[:1])
            if length > position:
                if position % segment.repeat:
                    self.freeze(axis, reason)
                    return before + self.new(position, reason), self.new(self.positions(rest) - position, reason)
                self._cut(segment.space, position // segment.repeat)
                rest = self.resolve(rest)
                continue
            before, rest, position = (*before, segment), rest[1:], position - length
        return before, rest

    def _step(self, left: Axis, right: Axis) -> bool:
        """Make two resolved lists of one length more equal; False where their channels are not cut alike."""
        for one, other in ((left, right), (right, left)):
            if len(one) == 1 and one[0].repeat == 1 and one[0].space not in {segment.space for segment in other}:
                self._bind(one[0].space, other)
                return True
        short, long = next((a, b) for a, b in zip(left, right, strict=False) if a != b)
        if short.repeat > long.repeat:
            short, long = long, short
        if short.space == long.space or long.repeat % short.repeat:
            return False
        ratio = long.repeat // short.repeat
        have, want = self._sizes[short.space], self._sizes[long.space] * ratio
        if have == want:
            self._bind(short.space, (Segment(long.space, ratio),))
        elif have > want:
            self._cut(short.space, want)
        elif have % ratio == 0:
            self._cut(long.space, have // ratio)
        else:
            return False
        return True

    def _cut(self, space: int, channels: int) -> None:
        self._bind(space, self.new(channels) + self.new(self._sizes[space] - channels))

    def _bind(self, space: int, parts: Axis) -> None:
        self._parts[space] = parts
        if space in self._frozen:
            self.freeze(parts, self._frozen[space])
