"""Fewer layers of an exported graph: blocks that repeat are taken out, and what went into one goes past it.

Every operation of an exported graph knows the module that it came from, such as `blocks.2.fc1`. A block can go where
one value leaves it and a value of the same shape enters it, as in every network with residual connections.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from modelzip_cli.errors import UsageError, inert

STAYS = "changes the shape of what goes through it, has a shortcut around it, or weights that others use"


@dataclass(frozen=True)
class Block:
    """One of the blocks `stack.number`: the value that goes in, and the one that comes out."""

    number: int
    entry: Node
    exit: Node


@dataclass(frozen=True)
class Stack:
    """Blocks that follow each other, `name.0`, `name.1` ...: the `numbers` of all, and those that can be taken out.

    Numbers may have gaps, where a block computes nothing.
    """

    name: str
    numbers: tuple[int, ...]
    blocks: tuple[Block, ...]


def module_path(node: Node) -> str:
    """The dotted path of the module that a node came from; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = [*stack.values()][-1][0] if stack else ""
    return str(path).removeprefix("L['self'].").removeprefix("L__self__").strip(".")


def find_stack(module: GraphModule, label: str) -> Stack:
    """The numbered blocks of the graph of which most can be taken out; of several such stacks the one that does most.

    Raises UsageError where nothing repeats.
    """
    members: dict[str, dict[int, list[Node]]] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        parts = module_path(node).split(".")
        for place, part in enumerate(parts):
            if place and part.isdigit():  # also inside of other blocks, as in stages.2.blocks.0
                members.setdefault(".".join(parts[:place]), {}).setdefault(int(part), []).append(node)
    stacks = [_stack(name, blocks) for name, blocks in members.items() if len(blocks) > 1]
    if not stacks:
        raise UsageError(
            f"{label}: the graph has no repeated blocks, such as layers.0, layers.1: give --student width=S"
        )
    return max(stacks, key=lambda stack: (len(stack.blocks), sum(map(len, members[stack.name].values()))))


def _stack(name: str, blocks: Mapping[int, list[Node]]) -> Stack:
    found = [_block(name, number, nodes) for number, nodes in sorted(blocks.items())]
    return Stack(name, tuple(sorted(blocks)), tuple(block for block in found if block is not None))


def _block(name: str, number: int, nodes: list[Node]) -> Block | None:
    """The block, if it can be taken out: one value in, one of its shape out, and no weights that others use too.

    Nor may what goes in also go around it: it would be counted twice where both are added.
    """
    inside = set(nodes)
    weights = nodes[0].graph.find_nodes(op="get_attr", sort=False)
    own = [node for node in weights if node.target.startswith(f"{name}.{number}.")]
    if any(user not in inside for node in own for user in node.users):
        return None
    exits = [node for node in nodes if any(user not in inside for user in node.users)]
    if len(exits) != 1:
        return None
    entries = {
        entry
        for node in nodes
        for entry in node.all_input_nodes
        if entry not in inside and entry.op != "get_attr" and _shape(entry) == _shape(exits[0])
    }
    if len(entries) != 1:
        return None
    entry = entries.pop()
    if any(user not in inside and _shape(user) is not None for user in entry.users):
        return None
    return Block(number, entry, exits[0])


def _shape(node: Node) -> tuple[str, ...] | None:
    value = node.meta.get("val")
    return (str(value.dtype), *(str(size) for size in value.shape)) if isinstance(value, Tensor) else None


def without(module: GraphModule, stack: Stack, gone: Sequence[int]) -> GraphModule:
    """A copy of `module` without the blocks `gone`; those that are left are numbered anew, in names of weights too."""
    left = copy.deepcopy(module)
    nodes = {node.name: node for node in left.graph.nodes}
    for block in reversed(stack.blocks):  # so that what now ends in the entry of a block follows when that goes too
        if block.number in gone:
            nodes[block.exit.name].replace_all_uses_with(nodes[block.entry.name])
    left.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    _renumber(left, stack, [number for number in stack.numbers if number not in gone])
    left.recompile()
    return left


def _renumber(module: GraphModule, stack: Stack, kept: Sequence[int]) -> None:
    """Call the blocks `kept` 0, 1 ... in the names of weights, in the graph and in module paths; the others go."""
    places = {f"{stack.name}.{number}": f"{stack.name}.{place}" for place, number in enumerate(kept)}

    def renamed(path: str) -> str:
        parts = path.split(".")
        depth = stack.name.count(".") + 2
        block = ".".join(parts[:depth])
        return ".".join([places.get(block, block), *parts[depth:]])

    owner: nn.Module = module
    for folder in stack.name.split("."):
        owner = getattr(owner, folder, nn.Module())
    blocks = {name: owner._modules.pop(name) for name in [*owner._modules] if name.isdigit()}
    for place, number in enumerate(kept):
        if str(number) in blocks:  # else it has no weights
            owner.add_module(str(place), blocks[str(number)])
    for node in module.graph.nodes:
        if node.op == "get_attr":
            node.target = renamed(node.target)
        modules = node.meta.get("nn_module_stack")
        if modules:
            node.meta["nn_module_stack"] = {key: (renamed(path), kind) for key, (path, kind) in modules.items()}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, those of a tie under each of its names, themselves and no copies."""
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return dict(named)


def with_tensors_in(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Register parameters and buffers in `module` by their dotted names; folders that are missing are made."""
    for name, tensor in tensors.items():
        *folders, last = name.split(".")
        owner: nn.Module = module
        for folder in folders:
            if folder not in owner._modules:
                owner.add_module(folder, nn.Module())
            owner = getattr(owner, folder)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(last, tensor)
        elif last not in owner._buffers:
            owner.register_buffer(last, tensor)


def attribute(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of a dotted name."""
    found: object = module
    for part in name.split("."):
        found = getattr(found, part)
    assert isinstance(found, Tensor)
    return found


def choose_layers(
    module: GraphModule, stack: Stack, share: float, loss: Callable[[GraphModule], float], label: str
) -> tuple[int, ...]:
    """The blocks that go so that `share` of them is left: those without which `loss` is least; never the first.

    One evaluation of `loss` a block. Source: ShortGPT (Men et al., 2024, arXiv:2403.03853) drops what matters least;
    measured on small language models, the first block matters most by far.
    """
    count = len(stack.numbers)
    keep = max(1, round(share * count))
    if keep == count:
        raise UsageError(f"{label}: depth={share:g} of {count} layers are all of them")
    able = [block.number for block in stack.blocks if block.number != stack.numbers[0]]
    if len(able) < count - keep:
        raise UsageError(
            f"{label}: of the {count} blocks {inert(stack.name)}.N only {len(able)} can go: the first stays, and what "
            f"{STAYS}"
        )
    cost = {number: loss(without(module, stack, [number])) for number in able}
    return tuple(sorted(sorted(able, key=lambda number: cost[number])[: count - keep]))


def check_layers(stack: Stack, kept: Sequence[int], label: str) -> tuple[int, ...]:
    """The blocks that go where `kept` are named. Raises UsageError for numbers that are not there."""
    name = inert(stack.name)
    for number in kept:
        if number not in stack.numbers:
            raise UsageError(f"{label}: no layer {number}: {name} has {', '.join(map(str, stack.numbers))}")
    gone = tuple(number for number in stack.numbers if number not in kept)
    able = {block.number for block in stack.blocks}
    stuck = [number for number in gone if number not in able]
    if stuck:
        raise UsageError(f"{label}: layer {stuck[0]} of {name} cannot go: it {STAYS}")
    if not gone:
        raise UsageError(f"{label}: layers={','.join(map(str, kept))} are all {len(stack.numbers)} of {name}")
    return gone
