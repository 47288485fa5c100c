"""Layers are told their inputs as rows: times the weight, these are the layer's outputs."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from modelzip_cli.running import watching as module
from modelzip_cli.running.calibrate import watched
from modelzip_cli.running.inputs import Batch, Wanted
from modelzip_cli.running.model import Model
from modelzip_cli.running.watching import Watch
from tests.running.graphs import graph_of
from tests.running.networks import Net, noise


def seen_by(network: nn.Module, *inputs: Tensor, names: Iterable[str] | None = None, mask: Tensor | None = None):
    """What the weights of a network are told when it runs on `inputs`, and what it gives."""
    found: dict[str, list[Tensor]] = {}
    wanted = [name for name, _ in network.named_parameters()] if names is None else names
    watch = Watch(network, {name: name for name in wanted}, lambda name, rows: found.setdefault(name, []).append(rows))
    watch.counted = mask
    with torch.no_grad(), watch:
        output = network(*inputs)
    return {name: torch.cat(rows) for name, rows in found.items()}, output


def of_rows(rows: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, channels: int = 1) -> bool:
    """Whether rows @ weight.T + bias are a layer's outputs, whose axis of channels is `channels`."""
    ours = rows @ weight.detach().flatten(1).T + (0 if bias is None else bias.detach())
    theirs = output.movedim(channels, -1).reshape(-1, len(weight))
    return torch.allclose(ours, theirs, atol=1e-5)


def exact(layer: nn.Module, x: Tensor, *, network: nn.Module | None = None, name: str = "weight") -> bool:
    """Whether a layer is told the rows that its outputs come from; `network`: what runs it."""
    found, output = seen_by(network or layer, x)
    batched = output if isinstance(layer, nn.Linear) or output.ndim == layer.weight.ndim else output[None]
    channels = -1 if isinstance(layer, nn.Linear) else 1
    return list(found) == [name] and of_rows(found[name], layer.weight, layer.bias, batched, channels)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 2, 3, 5)])
def test_rows_of_linear(shape):
    assert exact(nn.Linear(5, 4), noise(*shape))
    assert exact(nn.Linear(5, 4, bias=False), noise(*shape))


CONVOLUTIONS = [
    (nn.Conv1d, {}),
    (nn.Conv1d, {"stride": 2, "padding": 3}),
    (nn.Conv1d, {"dilation": 2, "padding": "same"}),
    (nn.Conv1d, {"padding": 1, "padding_mode": "circular"}),
    (nn.Conv2d, {}),
    (nn.Conv2d, {"stride": (1, 2), "padding": (2, 1), "dilation": (1, 2)}),
    (nn.Conv2d, {"padding": "same", "bias": False}),
    (nn.Conv2d, {"padding": "same", "kernel_size": (2, 4), "dilation": 2}),
    (nn.Conv2d, {"padding": "valid", "kernel_size": (1, 3)}),
    (nn.Conv2d, {"padding": 1, "padding_mode": "reflect"}),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("kind", "options"), CONVOLUTIONS)
def test_rows_of_convolutions(kind, options):
    layer = kind(2, 4, **{"kernel_size": 3} | options)
    shape = (2, 9) if kind is nn.Conv1d else (2, 9, 8)
    assert exact(layer, noise(3, *shape))
    assert exact(layer, noise(*shape))  # without a batch


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 3) | st.just("same"),
    st.sampled_from([nn.Conv1d, nn.Conv2d]),
)
def test_rows_of_any_convolution(kernel, stride, dilation, padding, kind):
    layer = kind(2, 3, kernel, stride if padding != "same" else 1, padding, dilation)
    assert exact(layer, noise(2, 2, *(10, 11)[: layer.weight.ndim - 2]))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 4), (2, 5)),
        (nn.Conv1d(2, 3, 3, 2, 1), (2, 2, 9)),
        (nn.Conv1d(2, 3, 2, padding="same"), (2, 2, 9)),
        (nn.Conv2d(2, 3, 3, (2, 1), (0, 1), 2), (2, 2, 9, 9)),
        (nn.Conv2d(2, 3, (3, 2), padding="same"), (2, 2, 9, 9)),
    ],
)
def test_an_exported_graph_tells_the_same(layer, shape):
    graph = graph_of(nn.Sequential(layer), noise(*shape))
    assert exact(layer, noise(*shape), network=graph, name="0.weight")
    ours, theirs = seen_by(graph, noise(*shape))[0], seen_by(layer, noise(*shape))[0]
    assert torch.equal(ours["0.weight"], theirs["weight"])


def test_functions_are_called_with_names_too():
    net = Net(lambda net, x: F.linear(input=F.linear(x, weight=net.one), weight=net.two, bias=net.three))
    net.one, net.two = nn.Parameter(noise(4, 5)), nn.Parameter(noise(3, 4))
    net.three = nn.Parameter(noise(3))
    found, output = seen_by(net, noise(2, 5))
    assert list(found) == ["one", "two"]
    assert of_rows(found["two"], net.two, net.three, output, -1)


def test_a_large_picture_comes_in_parts(monkeypatch):
    layer, x = nn.Conv2d(2, 3, 3), noise(7, 2, 8, 8)
    sizes: list[int] = []
    monkeypatch.setattr(module, "CHUNK", 3 * x[0].numel() * 9)
    with torch.no_grad(), Watch(layer, {"weight": "w"}, lambda name, rows: sizes.append(len(rows))):
        layer(x)
    assert sizes == [3 * 36, 3 * 36, 36]
    assert exact(layer, x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 6, 6)),
        (nn.Conv2d(4, 6, 3, groups=2, padding="same"), (2, 4, 6, 6)),
        (nn.Conv1d(4, 4, 3, groups=2), (2, 4, 6)),
        (nn.Conv3d(1, 2, 2), (2, 1, 4, 4, 4)),
        (nn.ConvTranspose2d(2, 2, 3), (2, 2, 4, 4)),
    ],
)
def test_layers_whose_rows_have_different_inputs_are_left_out(layer, shape):
    assert seen_by(layer, noise(*shape))[0] == {}
    assert seen_by(graph_of(nn.Sequential(layer), noise(*shape)), noise(*shape))[0] == {}


def test_only_what_is_wanted_is_told():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert list(seen_by(net, noise(2, 4), names=["1.weight"])[0]) == ["1.weight"]


def test_a_weight_of_two_names_is_found_by_either():
    net = Net(lambda net, x: net.head(net.tok(x)), tok=nn.Embedding(7, 4), head=nn.Linear(4, 7, bias=False))
    net.head.weight = net.tok.weight
    names = ["tok.weight", "head.weight"]
    for wanted in (names[:1], names[1:], names):
        found, _ = seen_by(net, torch.arange(5)[None], names=wanted)
        assert list(found) == wanted
        assert all(torch.equal(rows, net.tok.weight[:5]) for rows in found.values())


def test_rows_of_attention():
    """The second projection's inputs are inside of a function of torch; so they are found where it computes."""
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), noise(2, 3, 8)
    found, (output, _) = seen_by(Net(lambda net, x: net.layer(x, x, x), layer=layer), x)
    assert sorted(found) == ["layer.in_proj_weight", "layer.out_proj.weight"]
    assert torch.equal(found["layer.in_proj_weight"], x.transpose(0, 1).reshape(-1, 8))  # time is the first axis there
    rows, weight, bias = found["layer.out_proj.weight"], layer.out_proj.weight, layer.out_proj.bias
    assert of_rows(rows, weight, bias, output.transpose(0, 1), -1)


def encoder() -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()


def test_rows_of_an_encoder_are_those_of_its_parts():
    layer, x = encoder(), noise(2, 3, 8)
    model = Model(layer, "encoder", "a test", Wanted(), 0)
    found: dict[str, Tensor] = {}
    names = {name: name.upper() for name, _ in layer.named_parameters()}
    with watched(model, names, lambda name, rows: found.update({name: rows})) as run:
        run(Batch((x,), None))
    after = layer.norm1(x + layer.self_attn(x, x, x)[0])
    assert sorted(found) == [
        "LINEAR1.WEIGHT",
        "LINEAR2.WEIGHT",
        "SELF_ATTN.IN_PROJ_WEIGHT",
        "SELF_ATTN.OUT_PROJ.WEIGHT",
    ]
    torch.testing.assert_close(found["LINEAR1.WEIGHT"], after.reshape(-1, 8))
    torch.testing.assert_close(found["LINEAR2.WEIGHT"], layer.linear1(after).relu().reshape(-1, 16))


@pytest.mark.parametrize("fast", [True, False])
def test_the_fast_path_is_as_it_was(fast):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        with (
            pytest.raises(KeyError),
            watched(Model(encoder(), "encoder", "a test", Wanted(), 0), {}, lambda name, rows: None),
        ):
            assert not torch.backends.mha.get_fastpath_enabled()
            raise KeyError
        assert torch.backends.mha.get_fastpath_enabled() == fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("time", [2, 5])  # as many as there are texts: axes must not be mistaken for each other
def test_padding_is_left_out(time):
    layer, x = encoder(), noise(2, time, 8)
    mask = torch.arange(time) < torch.tensor([[time], [1]])
    net = Net(lambda net, x, mask: net.layer(x, src_key_padding_mask=~mask), layer=layer)
    padded, _ = seen_by(net, x, mask, mask=mask)
    alone = [seen_by(layer, text[counted][None])[0] for text, counted in zip(x, mask, strict=True)]
    assert len(padded) == 4
    for name, rows in padded.items():
        whole = torch.cat([each[name.removeprefix("layer.")] for each in alone])
        assert rows.shape == whole.shape
        torch.testing.assert_close(rows.sum(0), whole.sum(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rows.T @ rows, whole.T @ whole, atol=1e-5, rtol=1e-5)


def test_padding_of_a_flattened_text_is_left_out_and_pooled_ones_have_none():
    net = Net(lambda net, x: net.pooled(net.flat(x.flatten(0, 1)).view(2, 3, 4)[:, 0]))
    net.flat, net.pooled = nn.Linear(4, 4), nn.Linear(4, 2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x = noise(2, 3, 4)
    found, _ = seen_by(net, x, mask=mask)
    assert torch.equal(found["flat.weight"], x[mask])
    assert len(found["pooled.weight"]) == 2
