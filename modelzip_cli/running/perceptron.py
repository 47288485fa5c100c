"""A network told from shapes alone: linear layers that chain, `[100, 64]`, `[50, 100]`, `[10, 50]`.

What stands between them is not in the file. Where data have labels, the activation with the lowest cross-entropy is the
right one; without labels, or for any other shape of network, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzip_cli.errors import NoModel
from modelzip_cli.running.inputs import Examples, Rows
from modelzip_cli.running.layers import with_tensors_in

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "ReLU": F.relu,
    "tanh": torch.tanh,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "sigmoid": torch.sigmoid,
}
TRIED = 2000  # labelled examples


class Perceptron(nn.Module):
    """Linear layers with one activation between them; the weights have the names that they have in the file."""

    def __init__(self, layers: tuple[str, ...], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layers_in_order = layers
        self.activation = "ReLU"
        with_tensors_in(self, {name: nn.Parameter(tensor.float()) for name, tensor in tensors.items()})

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
    """The layers of a perceptron, if that is all that the tensors can be: each takes what the one before it gives."""
    weights = [name for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2]
    layers = tuple(name.removesuffix(".weight") for name in weights)
    biases = {f"{layer}.bias": (shapes[f"{layer}.weight"][0],) for layer in layers if f"{layer}.bias" in shapes}
    known = {*weights, *biases}
    if len(layers) < 2 or known != set(shapes) or any(shapes[name] != shape for name, shape in biases.items()):
        return None
    chained = all(shapes[later][1] == shapes[earlier][0] for earlier, later in pairwise(weights))
    return layers if chained else None


def settle(module: nn.Module, examples: Examples, rows: Rows, label: str) -> str | None:
    """Choose the activation of a `Perceptron` by its cross-entropy on labelled examples; None for other networks.

    Raises NoModel without labels, or where no activation beats the most frequent label.
    """
    if not isinstance(module, Perceptron):
        return None
    if not examples.labelled or examples.a_label_a_position:
        raise NoModel(
            f"{label} holds weights of linear layers, but not what stands between them; data with labels could tell: "
            "or give --arch file.py:Net"
        )
    batch = examples.batch(rows[:TRIED])
    assert batch.labels is not None
    losses = {}
    with torch.inference_mode():
        for name in ACTIVATIONS:
            module.activation = name
            losses[name] = float(F.cross_entropy(module(*batch.inputs), batch.labels))
    best = min(losses, key=lambda name: losses[name])
    counts = torch.bincount(batch.labels).double()
    shares = counts[counts > 0] / counts.sum()
    if losses[best] >= float(-(shares * shares.log()).sum()):
        raise NoModel(
            f"{label} holds weights of linear layers, but with no activation do they fit the labels (cross-entropy "
            f"{losses[best]:.2f} nats at best): give --arch file.py:Net"
        )
    module.activation = best
    return best
