"""Networks told from shapes: which chains are found, and which activation is between them."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from modelzip_cli.errors import BadData, NoModel
from modelzip_cli.running.arrays import ArrayExamples, as_floats, as_tokens
from modelzip_cli.running.content import Origin
from modelzip_cli.running.inputs import Wanted
from modelzip_cli.running.model import Model
from modelzip_cli.running.perceptron import ACTIVATIONS, Perceptron, find_chain, settled

FEATURES, CLASSES = 8, 3


def chain(*widths: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """The shapes of `layers.N` of these widths."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        shapes[f"layers.{place}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"layers.{place}.bias"] = (outputs,)
    return shapes


def test_layers_that_chain_are_found():
    assert find_chain(chain(64, 100, 50, 10)) == ("layers.0", "layers.1", "layers.2")
    assert find_chain(chain(64, 100, 10, bias=False)) == ("layers.0", "layers.1")


def test_layers_whose_names_were_sorted_as_text_are_put_in_order():
    shapes = chain(9, *range(20, 30), 3)  # layers.10 comes before layers.2, as safetensors writes it
    assert find_chain({name: shapes[name] for name in sorted(shapes)}) == tuple(f"layers.{n}" for n in range(11))


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        chain(64, 10),
        chain(64, 32, 10) | {"norm.weight": (32,), "norm.bias": (32,)},
        chain(64, 32, 10) | {"scale": (1,)},
        chain(64, 32, 10) | {"layers.1.bias": (32,)},
        {"tok.weight": (100, 16), "fc.weight": (16, 16), "head.weight": (10, 16)},
        {"conv.weight": (8, 1, 3, 3), "fc.weight": (10, 8)},
        {"gate.weight": (32, 16), "up.weight": (32, 16), "down.weight": (16, 32)},
        {"hidden.weight": (32, 32), "head.weight": (10, 32), "input.weight": (32, 64)},
    ],
    ids=["nothing", "one layer", "norm", "scalar", "wrong bias", "embedding", "convolution", "gated", "other order"],
)
def test_what_is_more_than_a_chain_is_none(shapes):
    assert find_chain(shapes) is None


@given(st.lists(st.integers(1, 9), min_size=3, max_size=14), st.booleans())
def test_every_chain_is_found_in_its_order(widths, bias):
    shapes = chain(*widths, bias=bias)
    assert find_chain(shapes) == tuple(f"layers.{place}" for place in range(len(widths) - 1))


@cache
def problem() -> tuple[Tensor, Tensor]:
    """Three classes in 8 dimensions, which no linear network tells apart: the number of coordinates above 0, by 3."""
    x = torch.randn(400, FEATURES, generator=torch.Generator().manual_seed(5))
    return x, (x[:, :4] > 0).sum(dim=1) % CLASSES


def data_of(x: Tensor, y: Tensor | None) -> ArrayExamples:
    """Examples in memory."""
    labels = None if y is None else y.numpy()
    return ArrayExamples(Origin("data.npz", ""), x.numpy(), labels, as_tokens if x.dtype == torch.int64 else as_floats)


def network(activation: nn.Module) -> nn.Sequential:
    """A network with one activation, trained for a moment."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(FEATURES, 24), activation, nn.Linear(24, 16), activation, nn.Linear(16, CLASSES))
    x, y = problem()
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def perceptron(tensors: dict[str, Tensor]) -> Model:
    """The model that `open_model` would make of a file with these."""
    layers = find_chain({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    assert layers is not None
    return Model(Perceptron(layers, tensors).eval(), "net.pth", "perceptron", Wanted(shape=(FEATURES,)), 0)


@pytest.mark.parametrize(
    ("name", "activation"),
    [("ReLU", nn.ReLU()), ("tanh", nn.Tanh()), ("GELU", nn.GELU()), ("SiLU", nn.SiLU()), ("sigmoid", nn.Sigmoid())],
)
def test_the_activation_is_the_one_that_the_network_was_trained_with(name, activation):
    net, (x, y) = network(activation), problem()
    examples = data_of(x, y)
    model = settled(perceptron(dict(net.state_dict())), examples, np.arange(len(x)))
    assert model.module.activation == name
    assert f"{name} between them" in model.rung
    with torch.no_grad():
        assert torch.allclose(model.module(x), net(x), atol=1e-6)


def test_all_but_the_batch_is_flattened():
    tensors = dict(network(nn.ReLU()).state_dict())
    x = problem()[0]
    module = perceptron(tensors).module
    assert torch.equal(module(x.reshape(-1, 2, 4)), module(x))


def test_half_precision_is_computed_in_float32():
    tensors = {name: tensor.half() for name, tensor in network(nn.ReLU()).state_dict().items()}
    assert perceptron(tensors).module(problem()[0]).dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "y"), [(problem()[0], None), (torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64))]
)
def test_without_a_label_an_example_nothing_is_guessed(x, y):
    model = perceptron(dict(network(nn.ReLU()).state_dict()))
    with pytest.raises(NoModel, match=r"net.pth holds weights of linear layers, .* or give --arch file.py:Net"):
        settled(model, data_of(x, y), np.arange(3))


def refused(tensors: dict[str, Tensor], y: Tensor) -> bool:
    """Whether no activation makes the weights fit the labels."""
    with pytest.raises(NoModel, match=r"no activation between them makes them fit the labels: give --arch file.py:Net"):
        settled(perceptron(tensors), data_of(problem()[0], y), np.arange(len(y)))
    return True


def test_labels_that_the_weights_do_not_fit_are_a_refusal():
    tensors, y = dict(network(nn.ReLU()).state_dict()), problem()[1]
    assert refused(tensors, y[torch.randperm(len(y))])
    assert refused(tensors, torch.zeros_like(y))  # one class alone is no evidence


def test_weights_that_are_no_numbers_fit_no_labels():
    tensors = dict(network(nn.ReLU()).state_dict())
    assert refused(tensors | {"0.weight": torch.full((24, FEATURES), torch.nan)}, problem()[1])


class Gated(nn.Module):
    """Two parallel layers of the width of their input, whose product goes on: by shapes alone it is a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.down = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(4 * torch.sigmoid(4 * self.gate(x)) * self.up(x))


@pytest.mark.parametrize("seed", range(6))
def test_a_gated_network_is_refused_though_its_shapes_chain(seed):
    torch.manual_seed(seed)
    net, x = Gated(), problem()[0]
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    assert refused(dict(net.state_dict()), y)


def test_a_label_that_no_output_stands_for_is_named():
    y = problem()[1].clone()
    y[7] = CLASSES
    with pytest.raises(BadData, match=r"data.npz: example 7 .*the label is 3, but the model has 3 outputs"):
        settled(perceptron(dict(network(nn.ReLU()).state_dict())), data_of(problem()[0], y), np.arange(20))


def test_other_models_are_left_as_they_are():
    model = Model(nn.Linear(2, 2), "net.pth", "net.py:Net", Wanted(), 0)
    assert settled(model, data_of(problem()[0], None), np.arange(3)) is model


def test_the_activations_are_those_of_torch():
    x = torch.linspace(-4, 4, 50)
    modules = {"ReLU": nn.ReLU(), "tanh": nn.Tanh(), "GELU": nn.GELU(), "SiLU": nn.SiLU(), "sigmoid": nn.Sigmoid()}
    assert ACTIVATIONS.keys() == modules.keys()
    assert all(torch.equal(activation(x), modules[name](x)) for name, activation in ACTIVATIONS.items())
