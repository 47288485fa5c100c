"""The channels of an exported model that can go, and all that goes with each.

A channel is what one filter of a convolution or one row of a linear layer gives. To remove it, its bias, its place in
normalisations and its column in every layer that reads it have to go too, and so for every channel that it is added to:
these are a group. Source: Fang, Ma, Song, Mi and Wang, DepGraph: Towards Any Structural Pruning, 2023,
arXiv:2301.12900; here groups come from the graph that `torch.export` writes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import GraphModule

from modelzip_cli.running.channel_rules import RULES
from modelzip_cli.running.channel_spaces import Axis, Segment
from modelzip_cli.running.channel_trace import Role, Trace

CHANNELWISE: tuple[Role, ...] = ("channelwise",)


@dataclass(frozen=True)
class Use:
    """Where a parameter or buffer holds a group: along `axis`, from `offset` on, `repeat` positions a channel.

    `role`: the weight that makes the channels, one that reads them, or what is a factor or a term of each channel.
    """

    parameter: str
    axis: int
    offset: int
    repeat: int
    role: Role


@dataclass(frozen=True)
class Count:
    """An integer in the graph that counts a group, `repeat` for each channel: an argument of `node`, or its element.

    `value`: what it is with all channels of all groups.
    """

    node: str
    argument: str
    item: int | None
    value: int
    repeat: int


@dataclass(frozen=True)
class Group:
    """Channels that go together, for example all that a residual stream adds up.

    `name`: the parameter that makes them first, as in `layers.0.weight`, or `layers.0.weight[0:64]` where it makes
    others too. `normalised`: a LayerNorm runs over them, so that without one the others change.
    """

    name: str
    channels: int
    uses: tuple[Use, ...]
    counts: tuple[Count, ...]
    normalised: bool


@dataclass(frozen=True)
class Frozen:
    """Channels that must stay, and why: `blocks.3.attn: reshape splits the channels`."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True)
class Channels:
    """All channels that weights of a model make, in the order of the graph."""

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]


def find_channels(module: GraphModule) -> Channels:
    """The channels of an exported graph in eval mode, whose nodes still say which shapes the export recorded.

    Whatever the table of operators does not know freezes the channels that go through it.
    """
    trace = Trace(module, RULES)
    uses, counts = _uses(trace), _counts(trace)
    normalised = {space for axis in trace.normalised for space, _, _ in _segments(trace, axis)}
    groups: list[Group] = []
    frozen: list[Frozen] = []
    for space, name in _names(trace, uses).items():
        channels = trace.spaces.channels(space)
        reason = trace.spaces.why_frozen((Segment(space),)) or ("it is a single channel" if channels == 1 else None)
        if reason:
            frozen.append(Frozen(name, channels, reason))
        else:
            groups.append(Group(name, channels, tuple(uses[space]), tuple(counts[space]), space in normalised))
    return Channels(tuple(groups), tuple(frozen))


def _uses(trace: Trace) -> dict[int, list[Use]]:
    found: dict[int, list[Use]] = defaultdict(list)
    for name, axes in trace.parameters.items():
        for number, axis in enumerate(axes):
            for role in trace.roles.get((name, number), CHANNELWISE):
                for space, offset, repeat in _segments(trace, axis):
                    found[space].append(Use(name, number, offset, repeat, role))
    return found


def _counts(trace: Trace) -> dict[int, list[Count]]:
    found: dict[int, list[Count]] = defaultdict(list)
    for counted in trace.counted:
        for space, _, repeat in _segments(trace, counted.axis):
            found[space].append(Count(counted.node, counted.argument, counted.item, counted.value, repeat))
    return found


def _segments(trace: Trace, axis: Axis) -> Iterator[tuple[int, int, int]]:
    """Space, offset and repeat of what an axis consists of."""
    offset = 0
    for segment in trace.spaces.resolve(axis):
        yield segment.space, offset, segment.repeat
        offset += trace.spaces.positions((segment,))


def _names(trace: Trace, uses: dict[int, list[Use]]) -> dict[int, str]:
    """A name for each space that a weight makes: that of its first, with the place in it where it makes several."""
    makers: dict[int, Use] = {}
    for space, found in uses.items():
        for use in found:
            if use.role == "producer":
                makers.setdefault(space, use)
    makes = Counter(use.parameter for use in makers.values())
    return {
        space: use.parameter if makes[use.parameter] == 1 else _place(use, trace.spaces.channels(space))
        for space, use in makers.items()
    }


def _place(use: Use, channels: int) -> str:
    return f"{use.parameter}[{':, ' * use.axis}{use.offset}:{use.offset + channels * use.repeat}]"
