"""What happens inside two networks that share operations: a student that was cut from its teacher's graph."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from modelzip_cli.errors import ModelzipError, UsageError
from modelzip_cli.running.graph import set_training
from modelzip_cli.running.layers import find_stack
from modelzip_cli.running.losses import features_loss

MOST = 8  # features that are matched, evenly spaced
ACTIVATIONS = ("relu", "gelu", "silu", "hardswish", "tanh", "sigmoid", "leaky_relu", "elu", "mish")


class Features:
    """Pairs of inner values of teacher and student, and a linear map a pair where the student has fewer channels.

    The maps are trained with the student and forgotten after it. Raises UsageError where the two share no operation.
    """

    def __init__(
        self, teacher: GraphModule, student: GraphModule, inputs: tuple[Tensor, ...], label: str, seed: int
    ) -> None:
        inside = {node.name for node in student.graph.nodes}
        names = [name for name in _names(teacher, label) if name in inside]
        if not names:
            raise UsageError(f"{label}: --loss features: teacher and student share no operation to compare")
        self._teacher, self._student = _giving(teacher, names), _giving(student, names)
        torch.manual_seed(seed)
        with torch.no_grad():
            theirs, ours = self._teacher(*inputs)[1:], self._student(*inputs)[1:]
        self._maps = nn.ModuleList(_map(a, b) for a, b in zip(ours, theirs, strict=True))
        set_training(self._student, True)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the maps."""
        return self._maps.parameters()

    def run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """The student's scores in training mode, the teacher's, and the distance of their inner values, a scalar."""
        with torch.no_grad():
            wanted, *theirs = self._teacher(*inputs)
        scores, *ours = self._student(*inputs)
        mapped = [_apply(layer, x) for layer, x in zip(self._maps, ours, strict=True)]
        return scores.float(), wanted.float(), features_loss(mapped, theirs)


def _names(module: GraphModule, label: str) -> list[str]:
    """Operations worth comparing: the ends of blocks, else activations."""
    try:
        found = [block.exit.name for block in find_stack(module, label).blocks]
    except ModelzipError:
        found = []
    if len(found) < 2:
        found = [node.name for node in module.graph.nodes if any(node.name.startswith(op) for op in ACTIVATIONS)]
    step = max(1, -(-len(found) // MOST))
    return found[::-1][::step][::-1]


def _giving(module: GraphModule, names: list[str]) -> GraphModule:
    """A module on the same weights that gives its scores and then the values of `names`."""
    graph = copy.deepcopy(module.graph)
    nodes: dict[str, Node] = {node.name: node for node in graph.nodes}
    end = next(node for node in graph.nodes if node.op == "output")
    (output,) = end.args
    scores = output if isinstance(output, Node) else output[0]
    end.args = ((scores, *(nodes[name] for name in names)),)
    return GraphModule(module, graph, class_name=type(module).__name__)


def _axis(x: Tensor) -> int:
    """Where the channels are: second of pictures and vectors, last of sequences."""
    return -1 if x.ndim == 3 else 1


def _map(ours: Tensor, theirs: Tensor) -> nn.Module:
    inputs, outputs = ours.shape[_axis(ours)], theirs.shape[_axis(theirs)]
    return nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs, bias=False)


def _apply(layer: nn.Module, x: Tensor) -> Tensor:
    axis = _axis(x)
    mapped: Tensor = layer(x.movedim(axis, -1))
    return mapped.movedim(-1, axis)
