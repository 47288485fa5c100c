"""Fresh weights for the graph of another model: each parameter as the layer that uses it would begin.

Source: torch.nn as of 2.13 for linear and convolution layers (He et al., 2015, arXiv:1502.01852, with a = sqrt 5) and
norms; embeddings and what is added to activations N(0, 0.02), as GPT-2 begins (Radford et al., 2019).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from modelzip_cli.running.layers import state_of

SMALL = 0.02
aten = torch.ops.aten
MATRICES = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "addmm", "matmul", "mm")
NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")


def initialise(module: GraphModule, seed: int) -> None:
    """Draw every parameter of `module` anew, and reset running statistics. The same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    users = _users(module)
    done: set[int] = set()
    fan_in: dict[str, int] = {}
    with torch.no_grad():
        tensors = state_of(module)
        for name, tensor in tensors.items():
            if tensor.ndim >= 2:
                fan_in[name.rpartition(".")[0]] = tensor[0].numel()
        for name, tensor in tensors.items():
            if id(tensor) in done:
                continue
            done.add(id(tensor))
            names = [other for other, same in tensors.items() if same is tensor]
            ops = {op for other in names for op in users.get(other, ())}
            if isinstance(tensor, nn.Parameter):
                _draw(tensor, ops, fan_in.get(name.rpartition(".")[0], 0), generator)
            elif name.endswith("running_var"):
                tensor.fill_(1)
            elif name.endswith(("running_mean", "num_batches_tracked")):
                tensor.zero_()


def _draw(tensor: Tensor, ops: set[tuple[str, int]], fan_in: int, generator: torch.Generator) -> None:
    kinds = {op for op, _ in ops}
    if kinds & set(NORMS):
        is_weight = any(op in NORMS and place in (1, 2) for op, place in ops if _is_weight(op, place))
        tensor.fill_(1.0 if is_weight else 0.0)
    elif "embedding" in kinds or not kinds & set(MATRICES):
        tensor.normal_(0, SMALL, generator=generator)
    else:
        inputs = tensor[0].numel() if tensor.ndim >= 2 else fan_in
        bound = 1 / math.sqrt(max(1, inputs))  # kaiming_uniform_(a=sqrt 5) comes to the same as the bias
        tensor.uniform_(-bound, bound, generator=generator)


def _is_weight(op: str, place: int) -> bool:
    """Whether the argument at `place` of a norm is its weight: after the input, and after the shape or the groups."""
    return place == (1 if op in ("batch_norm", "instance_norm") else 2)


def _users(module: GraphModule) -> dict[str, list[tuple[str, int]]]:
    """Name of a tensor -> (operation, place among its arguments) for each use."""
    found: dict[str, list[tuple[str, int]]] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        op = str(getattr(node.target, "_schema", node.target)).partition("(")[0].rpartition("::")[2].partition(".")[0]
        for place, argument in enumerate(node.args):
            if isinstance(argument, Node) and argument.op == "get_attr":
                found.setdefault(str(argument.target), []).append((op, place))
    return found
