"""Fewer layers of an exported graph: blocks that repeat are taken out, and what went into one goes past it.

Every operation of an exported graph knows the module that it came from, such as `blocks.2.fc1`. A block can go where
one value leaves it and a value of the same shape enters it, as in every network with residual connections.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from modelzip_cli.errors import UsageError


@dataclass(frozen=True)
class Block:
    """One of the blocks `stack.number`: the value that goes in, and the one that comes out."""

    number: int
    entry: Node
    exit: Node


@dataclass(frozen=True)
class Stack:
    """Blocks that follow each other, `name.0`, `name.1` ...; those that cannot be taken out are not in `blocks`."""

    name: str
    count: int
    blocks: tuple[Block, ...]


def module_path(node: Node) -> str:
    """The dotted path of the module that a node came from; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = [*stack.values()][-1][0] if stack else ""
    return str(path).removeprefix("L['self'].").removeprefix("L__self__").strip(".")


def find_stack(module: GraphModule, label: str) -> Stack:
    """The longest run of numbered blocks in the graph. Raises UsageError where nothing repeats."""
    members: dict[str, dict[int, list[Node]]] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        parts = module_path(node).split(".")
        place = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
        if place:
            members.setdefault(".".join(parts[:place]), {}).setdefault(int(parts[place]), []).append(node)
    stacks = {name: blocks for name, blocks in members.items() if len(blocks) > 1}
    if not stacks:
        raise UsageError(
            f"{label}: the graph has no repeated blocks, such as layers.0, layers.1: give --student width=S"
        )
    name, blocks = max(stacks.items(), key=lambda item: sum(map(len, item[1].values())))
    found = [_block(number, nodes, module) for number, nodes in sorted(blocks.items())]
    return Stack(name, len(blocks), tuple(block for block in found if block is not None))


def _block(number: int, nodes: list[Node], module: GraphModule) -> Block | None:
    inside = set(nodes)
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
    return Block(number, entries.pop(), exits[0])


def _shape(node: Node) -> tuple[str, ...] | None:
    value = node.meta.get("val")
    return (str(value.dtype), *(str(size) for size in value.shape)) if isinstance(value, Tensor) else None


def without(module: GraphModule, stack: Stack, gone: Sequence[int]) -> GraphModule:
    """A copy of `module` without the blocks `gone`; those that are left are numbered anew, in names of weights too."""
    graph_module = copy.deepcopy(module)
    nodes = {node.name: node for node in graph_module.graph.nodes}
    for block in reversed(stack.blocks):  # so that what now ends in the entry of a block follows when that goes too
        if block.number in gone:
            nodes[block.exit.name].replace_all_uses_with(nodes[block.entry.name])
    graph_module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    left = [number for number in range(stack.count) if number not in gone]
    return _renumbered(graph_module, stack.name, {old: new for new, old in enumerate(left)})


def _renumbered(module: GraphModule, stack: str, numbers: dict[int, int]) -> GraphModule:
    """Rename `stack.OLD.rest` to `stack.NEW.rest` in weights, graph and module paths; blocks without a number go."""

    def renamed(path: str) -> str | None:
        number, separator, rest = path.removeprefix(f"{stack}.").partition(".")
        if not path.startswith(f"{stack}.") or not number.isdigit():
            return path
        return f"{stack}.{numbers[int(number)]}{separator}{rest}" if int(number) in numbers else None

    for node in module.graph.nodes:
        if node.op == "get_attr":
            node.target = renamed(str(node.target))
        stack_of = node.meta.get("nn_module_stack")
        if stack_of:
            node.meta["nn_module_stack"] = {key: (renamed(path), kind) for key, (path, kind) in stack_of.items()}
    return with_tensors(
        module.graph, {new: tensor for name, tensor in state_of(module).items() if (new := renamed(name)) is not None}
    )


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, those of a tie under each of its names, themselves and no copies."""
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return dict(named)


def with_tensors(graph: Graph, tensors: Mapping[str, Tensor]) -> GraphModule:
    """A module that runs `graph` on `tensors`, by dotted name; those that the graph does not use are there as well."""
    root = nn.Module()
    with_tensors_in(root, tensors)
    made = GraphModule(root, graph)
    with_tensors_in(made, tensors)  # a graph module takes over only what its graph names
    return made


def with_tensors_in(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Register parameters and buffers in `module` by their dotted names; folders that are missing are made."""
    for name, tensor in tensors.items():
        *folders, last = name.split(".")
        owner = module
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
    keep = max(1, round(share * stack.count))
    if keep >= stack.count:
        raise UsageError(f"{label}: depth={share:g} of {stack.count} layers are all of them")
    able = [block.number for block in stack.blocks if block.number != 0]
    if len(able) < stack.count - keep:
        raise UsageError(
            f"{label}: of the {stack.count} blocks {stack.name}.N only {len(able)} can be taken out: the others change "
            "the shape of what goes through them"
        )
    cost = {number: loss(without(module, stack, [number])) for number in able}
    return tuple(sorted(sorted(able, key=lambda number: cost[number])[: stack.count - keep]))


def check_layers(stack: Stack, kept: Sequence[int], label: str) -> tuple[int, ...]:
    """The blocks that go where `kept` are named. Raises UsageError for numbers that are not there."""
    for number in kept:
        if not 0 <= number < stack.count:
            raise UsageError(f"{label}: no layer {number}: {stack.name} has 0 to {stack.count - 1}")
    gone = tuple(number for number in range(stack.count) if number not in kept)
    able = {block.number for block in stack.blocks}
    stuck = [number for number in gone if number not in able]
    if stuck:
        raise UsageError(
            f"{label}: layer {stuck[0]} of {stack.name} cannot go: it changes the shape of what goes through it"
        )
    if not gone:
        raise UsageError(f"{label}: layers={','.join(map(str, kept))} are all {stack.count} of {stack.name}")
    return gone


def count_parameters(module: nn.Module) -> int:
    """How many weights, those of a tie once."""
    return sum(parameter.numel() for parameter in module.parameters())
