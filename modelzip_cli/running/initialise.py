"""Fresh weights for the graph of another model: each parameter as the layer that uses it would begin.

Source: torch.nn as of 2.13 for linear and convolution layers (He et al., 2015, arXiv:1502.01852, with a = sqrt 5) and
norms; embeddings and what is added to activations N(0, 0.02), as GPT-2 begins (Radford et al., 2019).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from modelzip_cli.running.layers import attribute, state_of

SMALL = 0.02
MATRICES = {"linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
MATRICES |= {"addmm", "matmul", "mm"}
NORMS = {"batch_norm": 1, "instance_norm": 1, "layer_norm": 2, "group_norm": 2, "rms_norm": 2}  # the weight's place

Use = tuple[str, int]  # an operation, and the place among its arguments


def initialise(module: GraphModule, seed: int) -> None:
    """Draw every parameter of `module` anew, and reset running statistics. The same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors, uses = state_of(module), _uses(module)
    used: dict[int, set[Use]] = {}  # by identity: a tied tensor is used under several names
    for name, tensor in tensors.items():
        used.setdefault(id(tensor), set()).update(uses.get(name, ()))
    inputs = {name.rpartition(".")[0]: tensor[0].numel() for name, tensor in tensors.items() if tensor.ndim >= 2}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                if id(tensor) in used:
                    fan_in = tensor[0].numel() if tensor.ndim >= 2 else inputs.get(name.rpartition(".")[0], 0)
                    _draw(tensor, used.pop(id(tensor)), fan_in, generator)
            elif name.endswith("running_var"):
                tensor.fill_(1)
            elif name.endswith(("running_mean", "num_batches_tracked")):
                tensor.zero_()
        for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default):
            if len(node.args) > 2 and node.args[2] >= 0:  # the row of padding is never trained
                attribute(module, str(node.args[0].target))[node.args[2]] = 0


def _draw(tensor: Tensor, uses: set[Use], fan_in: int, generator: torch.Generator) -> None:
    operations = {operation for operation, _ in uses}
    if operations & NORMS.keys():
        tensor.fill_(1.0 if any(NORMS.get(operation) == place for operation, place in uses) else 0.0)
    elif "embedding" not in operations and operations & MATRICES:
        bound = 1 / math.sqrt(max(1, fan_in))  # what kaiming_uniform_(a=sqrt 5) comes to, and the bias beside it
        tensor.uniform_(-bound, bound, generator=generator)
    elif tensor.ndim == 1 and "mul" in operations:  # a norm that is written out
        tensor.fill_(1.0)
    else:
        tensor.normal_(0, SMALL, generator=generator)


def _uses(module: GraphModule) -> dict[str, list[Use]]:
    """What is done with each tensor, by its name."""
    found: dict[str, list[Use]] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        operation = str(getattr(node.target, "_schema", node.target)).partition("(")[0].rpartition("::")[2]
        for place, argument in enumerate(node.args):
            if isinstance(argument, Node) and argument.op == "get_attr":
                found.setdefault(str(argument.target), []).append((operation.partition(".")[0], place))
    return found
