"""A network told from shapes alone: linear layers that chain, `[100, 64]`, `[50, 100]`, `[10, 50]`.

What stands between them is not in the file. Where data have labels, the activation with the lowest cross-entropy is the
right one; without labels, or for any other shape of network, nothing is guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzip_cli.errors import NoModel
from modelzip_cli.running.inputs import Examples, Rows
from modelzip_cli.running.labels import check_range
from modelzip_cli.running.layers import with_tensors_in
from modelzip_cli.running.model import Model

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "ReLU": F.relu,
    "tanh": torch.tanh,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "sigmoid": torch.sigmoid,
}
TRIED = 2000  # labelled examples
LEAST_GAIN = 0.1  # share of the entropy of the labels that a network explains; weights read wrongly reach 0.015


class Perceptron(nn.Module):
    """Linear layers with one activation between them; the weights have the names that they have in the file."""

    def __init__(self, layers: tuple[str, ...], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layers_in_order = layers
        self.activation = "ReLU"
        with_tensors_in(self, {name: nn.Parameter(tensor.float()) for name, tensor in tensors.items()})

    @property
    def outputs(self) -> int:
        """How many classes it tells apart."""
        return len(self.get_parameter(f"{self.layers_in_order[-1]}.weight"))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] -> scores [batch, classes]; all but the batch is flattened."""
        hidden = x.flatten(1)
        named = dict(self.named_parameters())
        for place, layer in enumerate(self.layers_in_order):
            if place:
                hidden = ACTIVATIONS[self.activation](hidden)
            hidden = F.linear(hidden, named[f"{layer}.weight"], named.get(f"{layer}.bias"))
        return hidden


def find_chain(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...] | None:
    """The layers of a perceptron, if that is all that the tensors can be: each takes what the one before it gives.

    In the order of the file, or, since safetensors sorts names as text, in that of the numbers in them.
    """
    weights = [name for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2]
    layers = [name.removesuffix(".weight") for name in weights]
    biases = {f"{layer}.bias": (shapes[f"{layer}.weight"][0],) for layer in layers if f"{layer}.bias" in shapes}
    known = {*weights, *biases}
    if len(layers) < 2 or known != set(shapes) or any(shapes[name] != shape for name, shape in biases.items()):
        return None
    for ordered in (layers, sorted(layers, key=_numbers_as_numbers)):
        if all(shapes[f"{b}.weight"][1] == shapes[f"{a}.weight"][0] for a, b in pairwise(ordered)):
            return tuple(ordered)
    return None


def _numbers_as_numbers(name: str) -> list[str | int]:
    """A key by which `layers.10` comes after `layers.9`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


def settled(model: Model, examples: Examples, rows: Rows) -> Model:
    """A perceptron with the activation that has the lowest cross-entropy on labelled examples; another model as it is.

    Raises NoModel without labels, or where no activation does clearly better than the frequencies of the labels.
    """
    if not isinstance(model.module, Perceptron):
        return model
    if not examples.labelled or examples.a_label_a_position:
        raise NoModel(
            f"{model.label} holds weights of linear layers, but not what stands between them; data with labels could "
            "tell: or give --arch file.py:Net"
        )
    batch = examples.batch(rows[:TRIED])
    assert batch.labels is not None
    check_range(batch.labels.numpy(), model.module.outputs, examples, rows[:TRIED].tolist())
    losses = _losses(model.module, batch.inputs, batch.labels)
    best = min(losses, key=lambda name: losses[name])
    if not losses[best] < (1 - LEAST_GAIN) * _entropy(batch.labels):
        raise NoModel(
            f"{model.label} holds weights of linear layers, but no activation between them makes them fit the labels: "
            "give --arch file.py:Net"
        )
    model.module.activation = best
    return replace(model, rung=f"{model.rung}, {best} between them (of {', '.join(ACTIVATIONS)} the best)")


def _losses(module: Perceptron, inputs: tuple[Tensor, ...], labels: Tensor) -> dict[str, float]:
    """Cross-entropy in nats by activation; infinite where it is no number."""
    losses = {}
    with torch.inference_mode():
        for name in ACTIVATIONS:
            module.activation = name
            losses[name] = float(F.cross_entropy(module(*inputs), labels).nan_to_num(nan=math.inf))
    return losses


def _entropy(labels: Tensor) -> float:
    """Cross-entropy in nats of their frequencies alone."""
    counts = torch.bincount(labels).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())
