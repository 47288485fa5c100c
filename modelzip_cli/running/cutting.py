"""A narrower model out of a wide one: the weights of the channels that stay, in a graph that fits them.

What is cut is checked: the wide model with the dropped channels zeroed wherever they are read must give the same, up to
rounding. Under a LayerNorm it does not, for what is zero still counts there; such a cut must run and give numbers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves

from modelzip_cli.errors import ModelzipError, inert
from modelzip_cli.running.channel_trace import arguments
from modelzip_cli.running.channels import Channels, Frozen, Group, Use
from modelzip_cli.running.widths import Keep

TOLERANCE = 1e-6  # of the largest output: float64 leaves 1e-15, constants that a graph has in float32 5e-8


class CannotCut(ModelzipError):
    """A cut model does not run, or gives no numbers."""


@dataclass(frozen=True)
class Cut:
    """A narrower model that was run.

    `keep`: the channels that it has. `difference`: to the wide model with the others zeroed, as a share of the largest
    output. `exact`: whether this holds for all of it; else some channels are under a LayerNorm. `channels`: as it was
    found, without the groups that turned out not to be cut; those have a reason now.
    """

    module: GraphModule
    keep: Keep
    difference: float
    exact: bool
    channels: Channels


def cut(module: GraphModule, channels: Channels, keep: Keep) -> GraphModule:
    """A new module that has only the channels `keep` of the groups that it names, and all of the others.

    Names, ties, buffers and `requires_grad` are as they were. `module` is untouched and shares no memory with the new
    one. The shapes that its graph had recorded are gone: export it again to save it, or to cut it again.
    """
    narrow = _copy_with(module, _without(module, channels, keep))
    nodes = {node.name: node for node in narrow.graph.nodes}
    values: dict[tuple[str, str, int | None], int] = {}
    for group, gone in _dropped(channels, keep):
        for count in group.counts:
            place = count.node, count.argument, count.item
            values[place] = values.get(place, count.value) - count.repeat * len(gone)
    for (name, argument, item), value in values.items():
        _set_argument(nodes[name], argument, item, value)
    for node in narrow.graph.nodes:
        if node.op not in ("placeholder", "output"):
            node.meta.pop("val", None)
    narrow.recompile()
    return narrow


def masked(module: GraphModule, channels: Channels, keep: Keep) -> GraphModule:
    """A copy of `module` that makes all channels, and in which those not in `keep` are zero in every weight that reads
    them: of groups without a LayerNorm it must give what the cut model gives."""
    zeroed: dict[Tensor, Tensor] = {}
    for group, gone in _dropped(channels, keep):
        for use in group.uses:
            if use.role == "consumer":
                weight = attrgetter(use.parameter)(module)
                new = zeroed.setdefault(weight, weight.detach().clone())
                new.index_fill_(use.axis, _positions(use, gone).to(new.device), 0)
    return _copy_with(module, zeroed)


def _dropped(channels: Channels, keep: Keep) -> Iterator[tuple[Group, Tensor]]:
    """Each group of `keep` with the channels that go, int64."""
    for group in channels.groups:
        if group.name in keep:
            goes = torch.ones(group.channels, dtype=torch.bool)
            goes[keep[group.name]] = False
            yield group, goes.nonzero().flatten()


def _positions(use: Use, channels: Tensor) -> Tensor:
    """Where in its parameter some channels of a group are, int64."""
    return (use.offset + channels[:, None] * use.repeat + torch.arange(use.repeat)).flatten()


def _without(module: GraphModule, channels: Channels, keep: Keep) -> dict[Tensor, Tensor]:
    """What parameters and buffers become that lose channels."""
    stays: dict[Tensor, dict[int, Tensor]] = {}  # tensors are keys by identity: tied ones lose their channels once
    for group, gone in _dropped(channels, keep):
        for use in group.uses:
            tensor = attrgetter(use.parameter)(module)
            axes = stays.setdefault(tensor, {})
            mask = axes.setdefault(use.axis, torch.ones(tensor.shape[use.axis], dtype=torch.bool))
            mask[_positions(use, gone)] = False
    found: dict[Tensor, Tensor] = {}
    for tensor, axes in stays.items():
        new = tensor.detach()
        for axis, mask in axes.items():
            new = new.index_select(axis, mask.nonzero().flatten().to(new.device))
        found[tensor] = new
    return found


def _copy_with(module: GraphModule, tensors: Mapping[Tensor, Tensor]) -> GraphModule:
    """A deep copy of `module` with other tensors in place of some of its parameters and buffers."""
    memo = {  # copy.deepcopy takes what stands here for an object's id as its copy
        id(tensor): nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        for tensor, new in tensors.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about its own tree specs
        return copy.deepcopy(module, memo)


def _set_argument(node: Node, argument: str, item: int | None, value: int) -> None:
    """Change a constant of a call, or one element of a list."""
    new: Any = value
    if item is not None:
        new = list(arguments(node)[argument])
        new[item] = value
    place = list(arguments(node)).index(argument)
    if argument in node.kwargs or place >= len(node.args):
        node.update_kwarg(argument, new)
    else:
        node.update_arg(place, new)


def check(module: GraphModule, channels: Channels, keep: Keep, inputs: Sequence[Any]) -> float:
    """The largest difference between the outputs of the cut model and the masked one, as a share of the largest output.

    In float64 where the device has it, so that what differs is a mistake and no rounding. Groups under a LayerNorm are
    left out of the comparison; with them the cut model is run once more, as it is. `inputs`: a batch, on the device of
    the model. Raises CannotCut where the cut model does not run, or either gives NaN or infinity.
    """
    exact = {group.name: keep[group.name] for group in channels.groups if group.name in keep and not group.normalised}
    precise = True
    try:
        expected = _outputs(masked(module, channels, exact), inputs, precise)
    except (RuntimeError, TypeError):  # Apple's GPUs have no float64
        precise = False
        expected = _outputs(masked(module, channels, exact), inputs, precise)
    given = _outputs_of_cut(cut(module, channels, exact), inputs, precise)
    if len(exact) < len(keep):
        _outputs_of_cut(cut(module, channels, keep), inputs, precise=False)
    pairs = [(a, b) for a, b in zip(expected, given, strict=True) if a.numel()]
    largest = max((float(a.abs().max()) for a, _ in pairs), default=0.0)
    apart = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
    return apart / largest if largest else apart


def _outputs_of_cut(narrow: GraphModule, inputs: Sequence[Any], precise: bool) -> list[Tensor]:
    try:
        return _outputs(narrow, inputs, precise)
    except (RuntimeError, IndexError) as error:
        line = inert(str(error).splitlines()[0], longest=120)
        raise CannotCut(f"the model does not run without some of them: {line}") from error


def _outputs(module: GraphModule, inputs: Sequence[Any], precise: bool) -> list[Tensor]:
    """The floating-point outputs of a model, which turns to float64 for good where `precise`."""
    if precise:
        module.double()
        for node in module.graph.nodes:
            node.args, node.kwargs = map_aggregate(node.args, _double), map_aggregate(node.kwargs, _double)
        module.recompile()
        inputs = [_double(given) for given in inputs]
    with torch.no_grad():
        given = tree_leaves(module(*inputs))
    found = [output for output in given if isinstance(output, Tensor) and output.is_floating_point()]
    if not all(bool(output.isfinite().all()) for output in found):
        raise CannotCut("the model gives NaN or infinity")
    return found


def _double(value: Any) -> Any:
    """A floating-point tensor or dtype in float64; anything else as it is."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def cut_checked(
    module: GraphModule, channels: Channels, keep: Keep, inputs: Sequence[Any], *, tolerance: float = TOLERANCE
) -> Cut:
    """Cut what can be cut of `keep`; what comes back was run on `inputs` and passed `check`.

    Where the whole does not pass, halves of the groups are tried, down to those that are to blame. They keep all their
    channels, and a reason. Raises CannotCut where the model gives no numbers even before the cut.
    """
    passed: Keep = {}
    failed: dict[str, str] = {}
    difference = check(module, channels, passed, inputs)
    waiting = [list(keep)]
    while waiting:
        names = waiting.pop()
        tried = passed | {name: keep[name] for name in names}
        try:
            found = check(module, channels, tried, inputs)
            why = f"without some of them the outputs are off by {found:.1g} of the largest"
        except CannotCut as error:
            found, why = inf, str(error)
        if found <= tolerance:
            passed, difference = tried, found
        elif len(names) == 1:
            failed[names[0]] = why
        else:
            waiting += [names[len(names) // 2 :], names[: len(names) // 2]]
    cuttable = tuple(group for group in channels.groups if group.name not in failed)
    blamed = tuple(
        Frozen(group.name, group.channels, failed[group.name]) for group in channels.groups if group.name in failed
    )
    exact = not any(group.normalised for group in cuttable if group.name in passed)
    left = Channels(cuttable, channels.frozen + blamed)
    return Cut(cut(module, channels, passed), passed, difference, exact, left)
