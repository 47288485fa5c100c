"""What happens inside two networks that share operations: a student that was cut from its teacher's graph."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from modelzip_cli.errors import ModelzipError, UsageError
from modelzip_cli.running.graph import set_training
from modelzip_cli.running.layers import find_stack
from modelzip_cli.running.losses import features_loss

MOST = 8  # features that are matched, evenly spaced
ACTIVATIONS = ("relu", "gelu", "silu", "hardswish", "tanh", "sigmoid", "leaky_relu", "elu", "mish")


class Map(nn.Module):
    """A linear map from the student's channels to the teacher's; nothing where a value has the same shape in both."""

    def __init__(self, ours: torch.Size, theirs: torch.Size) -> None:
        super().__init__()
        self._axis = next((axis for axis, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), 0)
        inputs, outputs = ours[self._axis], theirs[self._axis]
        self._linear = nn.Linear(inputs, outputs, bias=False) if self._axis else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ..., channels, ...] -> the same with the teacher's channels."""
        mapped: Tensor = self._linear(x.movedim(self._axis, -1))
        return mapped.movedim(-1, self._axis)


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
        self._maps = nn.ModuleList(Map(a.shape, b.shape) for a, b in zip(ours, theirs, strict=True))
        set_training(self._student, True)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the maps."""
        return self._maps.parameters()

    def run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """The student's scores in training mode, the teacher's, and the distance of their inner values, a scalar."""
        with torch.no_grad():
            wanted, *theirs = self._teacher(*inputs)
        scores, *ours = self._student(*inputs)
        mapped = [layer(x) for layer, x in zip(self._maps, ours, strict=True)]
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
    graph.set_codegen(CodeGen())  # that of an export packs the outputs that there were
    return GraphModule(module, graph, class_name=type(module).__name__)
