"""How many channels a narrower model keeps, and which."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod
from operator import attrgetter

import torch
from torch import Tensor
from torch.fx import GraphModule

from modelzip_cli.errors import Unreachable
from modelzip_cli.running.channels import Channels, Group

Keep = dict[str, Tensor]  # group -> the channels that stay, int64, ascending

LEAST_NORMALISED = 0.75  # of channels that a LayerNorm runs over: a cut there changes every normalisation at once
STEP, WIDE, WIDE_STEP = 4, 64, 8  # widths are multiples of 4, of 8 from 64 channels up, as kernels like them
HALVINGS = 24  # of the interval in which the width is sought: finer than one channel of any group


def scores(module: GraphModule, group: Group, importance: Mapping[str, Tensor] | None = None) -> Tensor:
    """How much each channel of a group matters, float64 [channels].

    The sum over the weights that make or read the group: each one's importance summed by channel, divided by the mean
    over channels. `importance`: by parameter, of its shape, not negative; the squared weight where it is not given.
    Source of the sum over coupled weights: DepGraph, arXiv:2301.12900, section 3.4.
    """
    given = {id(attrgetter(name)(module)): values for name, values in (importance or {}).items()}  # whatever the tie
    total = torch.zeros(group.channels, dtype=torch.float64)
    for use in group.uses:
        if use.role == "channelwise":
            continue
        weight = attrgetter(use.parameter)(module)
        values = given.get(id(weight), weight.detach().double().square()).movedim(use.axis, 0)
        rows = values[use.offset : use.offset + group.channels * use.repeat]
        by_channel = rows.double().reshape(group.channels, -1).sum(dim=1).cpu()
        if by_channel.any():
            total += by_channel / by_channel.mean()
    return total


def choose(
    module: GraphModule,
    channels: Channels,
    width: float,
    *,
    least_normalised: float = LEAST_NORMALISED,
    importance: Mapping[str, Tensor] | None = None,
) -> Keep:
    """Keep the share `width` of each group that scores best; of those under a LayerNorm `least_normalised` or more.

    The number is a multiple of 4 (8 from 64 channels up), and at least that where there are as many. Heads and other
    channels of several positions count by their positions.
    """
    found: Keep = {}
    for group in channels.groups:
        best = scores(module, group, importance).argsort(descending=True, stable=True)
        kept = kept_channels(group, max(width, least_normalised) if group.normalised else width)
        found[group.name] = best[:kept].sort().values
    return found


def kept_channels(group: Group, width: float) -> int:
    """How many channels of a group a share of `width` comes to: the nearest multiple, never none, all from 1 on."""
    if width >= 1:
        return group.channels
    positions = min(use.repeat for use in group.uses)
    multiple = WIDE_STEP if group.channels * positions >= WIDE else STEP
    step = multiple // gcd(multiple, positions)
    return min(group.channels, step * max(1, round(width * group.channels / step)))


def parameters_at(
    module: GraphModule, channels: Channels, width: float, *, least_normalised: float = LEAST_NORMALISED
) -> int:
    """How many parameters the model has at this width, tied ones counted once. Nothing is cut for it."""
    lengths = {id(parameter): list(parameter.shape) for parameter in module.parameters()}
    gone: dict[tuple[int, int, int], int] = {}  # a tied parameter is used under several names
    for group in channels.groups:
        dropped = group.channels - kept_channels(group, max(width, least_normalised) if group.normalised else width)
        for use in group.uses:
            gone[id(attrgetter(use.parameter)(module)), use.axis, use.offset] = dropped * use.repeat
    for (parameter, axis, _), positions in gone.items():
        if parameter in lengths:  # not a buffer
            lengths[parameter][axis] -= positions
    return sum(map(prod, lengths.values()))


def width_for(
    module: GraphModule,
    channels: Channels,
    parameters: int,
    *,
    label: str = "the model",
    least_normalised: float = LEAST_NORMALISED,
) -> float:
    """The largest width at which the model has at most so many parameters, 1 where it has no more now.

    Raises Unreachable, which says how many are left with the fewest channels.
    """
    low, high = 0.0, 1.0
    if parameters_at(module, channels, high, least_normalised=least_normalised) <= parameters:
        return high
    least = parameters_at(module, channels, low, least_normalised=least_normalised)
    if least > parameters:
        raise Unreachable(
            f"{label}: {parameters:,} parameters cannot be reached by cutting channels; the fewest are {least:,}"
        )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = parameters_at(module, channels, middle, least_normalised=least_normalised) <= parameters
        low, high = (middle, high) if fits else (low, middle)
    return low
