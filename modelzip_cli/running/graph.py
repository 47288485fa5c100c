"""Training and evaluation mode of a module, also of one that came out of torch.export.

An exported graph holds the mode as constants: `aten.batch_norm(..., training=False)`. `train()` and `eval()` raise on
it, so the constants are changed. Source: PyTorch 2.13, torch/export/exported_program.py (`module`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from modelzip_cli.errors import UnsupportedCheckpoint

SWITCHES = {"training", "train", "use_input_stats"}  # what the schemas call a bool argument that says the mode
STATISTICS, ATTENTION_DROPOUT = "running_mean", "dropout_p"
COUNTERS = (torch.ops.aten.add_.Tensor, torch.ops.aten.add.Tensor)  # of batches, in a graph exported in training mode
COUNTER = "num_batches_tracked"
CHANCE = {"bernoulli", "bernoulli_"}
DECOMPOSED = "_native_batch_norm_legit"
IN_TRAINING = "modelzip_in_training"  # key of `Node.meta`: a constant's value in training mode


def set_training(module: nn.Module, training: bool) -> None:
    """Put `module` into training or evaluation mode, whole; afterwards `module.training` says which.

    In an exported graph: batch norm and dropout are switched, the dropout of attention is 0 in evaluation and what the
    file said in training, and counters of batches stand still in evaluation. A graph that was exported in evaluation
    mode has no counters, and its attention no dropout: nothing in it says how much there was; nor does anything say
    that a batch norm was frozen on purpose.
    Raises UnsupportedCheckpoint for training a graph that `check_trainable` refuses.
    """
    if not isinstance(module, GraphModule):
        module.train(training)
        return
    if training:
        check_trainable(module)
    for part in module.modules():
        part.training = training
        if isinstance(part, GraphModule):
            for node in part.graph.nodes:
                _set_node(node, training)
            part.recompile()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` into evaluation mode for a while; afterwards every part is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    set_training(module, False)
    try:
        yield
    finally:
        if isinstance(module, GraphModule):
            set_training(module, modes[0][1])
        for part, mode in modes:
            part.training = mode


def check_trainable(module: nn.Module) -> None:
    """Raise UnsupportedCheckpoint for a graph whose batch norm was taken apart: its mode can no longer be changed."""
    for node in _calls(module):
        if _name(node).startswith(DECOMPOSED):
            raise UnsupportedCheckpoint(
                "exported for inference only; export the model with torch.export.export and save it before decomposing"
            )


def check_evaluable(module: nn.Module) -> None:
    """Raise UnsupportedCheckpoint for a graph with stochastic depth that was exported in training mode.

    It leaves out blocks by chance, with nothing in the graph that could be switched.
    """
    for node in _calls(module):
        if _name(node) in CHANCE:
            raise UnsupportedCheckpoint(
                f"exported in training mode with random numbers that cannot be switched off (aten.{_name(node)}): "
                "export model.eval()"
            )


def _calls(module: nn.Module) -> Iterator[Node]:
    for part in module.modules():
        if isinstance(part, GraphModule):
            yield from (node for node in part.graph.nodes if node.op == "call_function")


def _name(node: Node) -> str:
    """The name of an operator of aten, such as `batch_norm`, or nothing."""
    return node.target._schema.name.split("::")[1] if isinstance(node.target, torch._ops.OpOverload) else ""


def _set_node(node: Node, training: bool) -> None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return
    places = {argument.name: place for place, argument in enumerate(node.target._schema.arguments)}
    if _has_two_modes(node, places):
        for name in SWITCHES & places.keys():
            _set_argument(node, places[name], name, training)
    if ATTENTION_DROPOUT in places:
        _set_constant(node, places[ATTENTION_DROPOUT], ATTENTION_DROPOUT, training)
    if node.target in COUNTERS and _is_counter(node.args[0]):
        _set_constant(node, 1, "other", training)


def _has_two_modes(node: Node, places: dict[str, int]) -> bool:
    """Whether an operator may be switched: a norm without running statistics takes those of the batch in both modes."""
    if "no_stats" in str(node.target):
        return False
    return STATISTICS not in places or isinstance(_argument(node, places[STATISTICS], STATISTICS), Node)


def _is_counter(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "get_attr" and str(node.target).rpartition(".")[2] == COUNTER


def _argument(node: Node, place: int, name: str) -> Any:
    return node.args[place] if place < len(node.args) else node.kwargs.get(name)


def _set_argument(node: Node, place: int, name: str, value: Any) -> None:
    if place < len(node.args):
        node.update_arg(place, value)
    else:
        node.update_kwarg(name, value)


def _set_constant(node: Node, place: int, name: str, training: bool) -> None:
    """Give a number its own value in training and 0 in evaluation; what the graph computes stays."""
    now = _argument(node, place, name)
    if isinstance(now, (int, float)):
        original = node.meta.setdefault(IN_TRAINING, now)
        _set_argument(node, place, name, original if training else type(original)(0))
