"""Models that lost channels: they are whole models, they give what was promised, and what does not work is left out."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modelzip_cli.running import channel_rules
from modelzip_cli.running.channel_trace import Call
from modelzip_cli.running.channels import find_channels
from modelzip_cli.running.cutting import CannotCut, check, cut, cut_checked, masked
from modelzip_cli.running.widths import choose
from tests.running.networks import Net, exported, holds, noise, two_thirds

IMAGE, ROWS = noise(4, 3, 8, 8), noise(4, 3)


def block() -> nn.Module:
    """Two convolutions with a shortcut, a depthwise one, a linear layer."""
    layers = {
        "stem": nn.Conv2d(3, 12, 3, padding=1),
        "a": nn.Sequential(nn.Conv2d(12, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        "depthwise": nn.Conv2d(16, 16, 3, padding=1, groups=16),
        "b": nn.Sequential(nn.Conv2d(16, 12, 1, bias=False), nn.BatchNorm2d(12)),
        "head": nn.Linear(12 * 4, 5),
    }
    return Net(
        lambda net, x: net.head(
            F.adaptive_avg_pool2d((y := net.stem(x)) + net.b(net.depthwise(net.a(y))), 2).flatten(1)
        ),
        **layers,
    )


@pytest.fixture(scope="module")
def network():
    return exported(block(), IMAGE)


def test_the_cut_model_has_the_weights_that_stay_under_their_names(network):
    network.get_parameter("head.weight").requires_grad_(False)
    channels = find_channels(network)
    keep = {"a.0.weight": torch.tensor([0, 3, 4, 15])}
    narrow = cut(network, channels, keep)

    before, after = network.state_dict(), narrow.state_dict()
    assert list(after) == list(before)
    kept = keep["a.0.weight"]
    assert after["a.0.weight"].equal(before["a.0.weight"][kept])
    assert after["a.1.running_var"].equal(before["a.1.running_var"][kept])
    assert after["b.0.weight"].equal(before["b.0.weight"][:, kept])
    assert after["stem.weight"].equal(before["stem.weight"])
    assert [name for name, _ in narrow.named_buffers()] == [name for name, _ in network.named_buffers()]
    trained = {name for name, weight in narrow.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in network.named_parameters()} - {"head.weight"}
    network.get_parameter("head.weight").requires_grad_(True)


def test_the_original_is_untouched_and_shares_no_memory(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    output = network(IMAGE)
    channels = find_channels(network)
    for other in (cut(network, channels, two_thirds(channels)), masked(network, channels, two_thirds(channels))):
        with torch.no_grad():
            for tensor in (*other.parameters(), *other.buffers()):
                tensor.fill_(7)
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())
    assert network(IMAGE).equal(output)
    assert find_channels(network) == channels


def test_gradients_reach_every_weight_of_the_cut_model(network):
    channels = find_channels(network)
    narrow = cut(network, channels, choose(network, channels, 0.5))
    narrow(IMAGE).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in narrow.parameters())


def test_the_cut_model_can_be_saved_and_cut_again(network):
    channels = find_channels(network)
    narrow = cut(network, channels, choose(network, channels, 0.75))
    file = io.BytesIO()
    torch.export.save(torch.export.export(narrow, (IMAGE,), dynamic_shapes=({0: torch.export.Dim("batch")},)), file)
    loaded = torch.export.load(file).module(check_guards=False)

    assert list(loaded.state_dict()) == list(narrow.state_dict())
    assert loaded(IMAGE[:3]).equal(narrow(IMAGE[:3]))
    again = find_channels(loaded)
    assert [group.name for group in again.groups] == [group.name for group in channels.groups]
    assert cut_checked(loaded, again, choose(loaded, again, 0.5), (IMAGE,)).exact


def tied() -> nn.Module:
    """An embedding that is the last layer too."""
    model = Net(
        lambda net, x: net.head(net.hidden(net.embedding(x)).relu()),
        embedding=nn.Embedding(11, 8),
        hidden=nn.Linear(8, 8),
        head=nn.Linear(8, 11, bias=False),
    )
    model.head.weight = model.embedding.weight
    return model


@pytest.mark.parametrize("loaded", [False, True], ids=["in memory", "tied again after loading"])
def test_a_tied_weight_is_cut_once_and_stays_tied(loaded):
    tokens = torch.arange(10).reshape(2, 5)
    module = exported(tied(), tokens)
    if loaded:  # a file gives two parameters, one for each name
        file = io.BytesIO()
        torch.export.save(torch.export.export(tied(), (tokens,)), file)
        module = torch.export.load(file).module(check_guards=False)
        module.embedding.weight = module.head.weight
    (group,) = find_channels(module).groups
    assert group.channels == 8  # hidden layer and embedding are read by one matrix
    narrow = cut(module, find_channels(module), choose(module, find_channels(module), 0.5))

    assert narrow.embedding.weight is narrow.head.weight
    assert narrow.head.weight.shape == (11, 4)
    assert narrow.hidden.weight.shape == (4, 4)
    assert holds(module, tokens)


def test_without_a_group_nothing_changes(network):
    narrow = cut(network, find_channels(network), {})
    assert narrow(IMAGE).equal(network(IMAGE))


def test_other_floating_point_types_are_cut_as_they_are(network):
    half = exported(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).to(torch.bfloat16), ROWS.bfloat16())
    channels = find_channels(half)
    found = cut_checked(half, channels, choose(half, channels, 0.5), (ROWS.bfloat16(),))
    assert {weight.dtype for weight in found.module.parameters()} == {torch.bfloat16}
    assert found.difference < 1e-12  # compared in float64


JOINS = {
    "plain": lambda x, y: y,
    "depthwise": lambda x, y: y,
    "residual": lambda x, y: x + y,
    "gate": lambda x, y: x * y.sigmoid(),
    "dense": lambda x, y: torch.cat([x, y], 1),
}


@st.composite
def networks(draw):
    """A few layers, joined in several ways, and a linear one at the end."""
    kinds = draw(st.lists(st.sampled_from(sorted(JOINS)), min_size=1, max_size=4))
    width = draw(st.integers(2, 6))
    layers: dict[str, nn.Module] = {"stem": nn.Conv2d(3, width, 1)}
    for number, kind in enumerate(kinds):
        out = draw(st.integers(2, 6)) if kind in ("plain", "dense") else width
        convolution = nn.Conv2d(width, out, 3, padding=1, groups=width if kind == "depthwise" else 1)
        norm, activation = draw(st.booleans()), draw(st.sampled_from([nn.ReLU(), nn.SiLU()]))
        layers[f"layer{number}"] = nn.Sequential(
            convolution, nn.BatchNorm2d(out) if norm else nn.Identity(), activation
        )
        width = width + out if kind == "dense" else out
    flat = draw(st.booleans())
    layers["head"] = nn.Linear(width * (16 if flat else 1), 3)

    def forward(net, x):
        x = net.stem(x)
        for number, kind in enumerate(kinds):
            x = JOINS[kind](x, getattr(net, f"layer{number}")(x))
        return net.head(x.flatten(1) if flat else x.mean((2, 3)))

    return Net(forward, **layers)


@settings(max_examples=max(10, settings().max_examples // 5))  # an export each
@given(networks())
def test_the_cut_model_equals_the_masked_one_whatever_its_layers(model):
    image = IMAGE[..., :4, :4]
    module = exported(model, image)
    channels = find_channels(module)
    assert [found.name for found in channels.frozen] == ["head.weight"]
    assert check(module, channels, two_thirds(channels), (image,)) < 1e-12


def mixed() -> nn.Module:
    """Three layers; the channels of the second are mixed before they are read."""
    return Net(
        lambda net, x: net.d(net.c(net.b(net.a(x).relu()).softmax(1)).relu()),
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 12),
        c=nn.Linear(12, 8),
        d=nn.Linear(8, 2),
    )


def test_a_wrong_rule_costs_the_group_that_it_is_wrong_about(monkeypatch):
    monkeypatch.setitem(channel_rules.RULES, "softmax", channel_rules.same)
    module = exported(mixed(), ROWS)
    channels = find_channels(module)
    assert [group.name for group in channels.groups] == ["a.weight", "b.weight", "c.weight"]

    found = cut_checked(module, channels, choose(module, channels, 0.5), (ROWS,))
    assert set(found.keep) == {"a.weight", "c.weight"}
    assert found.module.get_parameter("b.weight").shape == (12, 4)
    assert [group.name for group in found.channels.groups] == ["a.weight", "c.weight"]
    (blamed,) = [frozen for frozen in found.channels.frozen if frozen.name == "b.weight"]
    assert blamed.reason.startswith("without some of them the outputs are off by")
    assert found.exact
    assert found.difference < 1e-12


def test_a_cut_that_does_not_run_is_left_out(monkeypatch):
    monkeypatch.setattr(Call, "count", lambda *_: None)
    layers = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))
    module = exported(layers, ROWS)
    channels = find_channels(module)
    with pytest.raises(CannotCut):
        check(module, channels, two_thirds(channels), (ROWS,))

    found = cut_checked(module, channels, two_thirds(channels), (ROWS,))
    assert set(found.keep) == {"2.weight"}
    (blamed,) = [frozen for frozen in found.channels.frozen if frozen.name == "0.weight"]
    assert blamed.reason.startswith("the model does not run without some of them: ")
    assert "\n" not in blamed.reason
    assert found.module(ROWS).isfinite().all()


def test_what_runs_through_a_layer_norm_is_cut_and_not_called_exact():
    layers = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))
    module = exported(layers, ROWS)
    channels = find_channels(module)
    assert not cut_checked(module, channels, choose(module, channels, 0.5), (ROWS,)).exact
    without = {"2.weight": choose(module, channels, 0.5)["2.weight"]}
    assert cut_checked(module, channels, without, (ROWS,)).exact


def test_a_model_that_gives_no_numbers_is_refused(network):
    broken = cut(network, find_channels(network), {})
    torch.nn.init.constant_(broken.get_parameter("head.bias"), float("nan"))
    with pytest.raises(CannotCut, match="NaN or infinity"):
        cut_checked(broken, find_channels(network), {}, (IMAGE,))
