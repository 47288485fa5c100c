"""Operators that move, merge, part, join and cut axes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.running.networks import Net, exported, free, frozen, holds, noise

IMAGE, ROWS = noise(2, 3, 6, 6), noise(2, 5, 3)
OUTPUT = "the model's output"


def heads(attended) -> Net:
    """Layers that make 3 heads of 4 features, `attended(net, qkv [batch, time, 36])` and a layer that reads heads."""
    return Net(lambda net, x: net.out(attended(net, net.qkv(x))), qkv=nn.Linear(3, 36), out=nn.Linear(12, 2))


def stacked(net, qkv):
    query, key, value = qkv.view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(2, 5, 12)


def by_head(net, qkv):
    query, key, value = qkv.view(2, 5, 3, 12).transpose(1, 2).chunk(3, dim=-1)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def by_hand(net, qkv):
    query, key, value = (part.reshape(2, 5, 3, 4).transpose(1, 2) for part in qkv.split(12, dim=-1))
    return ((query @ key.transpose(-2, -1) / 2).softmax(-1) @ value).transpose(1, 2).reshape(2, -1, 12)


def with_a_bias(net, qkv):
    query, key, value = qkv.unflatten(-1, (3, 3, 4)).movedim(2, 0).transpose(2, 3)
    bias = qkv.new_zeros(5, 5).triu(1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).swapaxes(1, 2).flatten(-2)


@pytest.mark.parametrize("attended", [stacked, by_head, by_hand, with_a_bias], ids=lambda function: function.__name__)
def test_of_attention_whole_heads_go(attended):
    module = exported(heads(attended), ROWS)
    assert (free(module), frozen(module)) == ({"qkv.weight": 3}, {"out.weight": OUTPUT})
    assert holds(module, ROWS)


def test_heads_that_share_keys_go_with_them():
    def attended(net, x):
        query = net.query(x).view(2, 5, 6, 4).transpose(1, 2)
        key, value = (
            layer(x).view(2, 5, 2, 4).transpose(1, 2)[:, :, None].expand(2, 2, 3, 5, 4).reshape(2, 6, 5, 4)
            for layer in (net.key, net.value)
        )
        return net.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(2, 5, 24))

    layers = {"query": nn.Linear(3, 24), "key": nn.Linear(3, 8), "value": nn.Linear(3, 8), "out": nn.Linear(24, 2)}
    module = exported(Net(attended, **layers), ROWS)
    assert free(module) == {"query.weight": 2}
    assert holds(module, ROWS)


PASSED = {
    "permute": lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(1, 3).transpose(3, 1),
    "unsqueeze": lambda x: x[:, None, :, None].squeeze(1).squeeze(2),
    "movedim": lambda x: x.movedim(1, -1).movedim(-1, 1),
    "channels to their own size": lambda x: x.view(-1, 12, 36).view(-1, 12, 6, 6),
    "batch and channels apart": lambda x: x.permute(0, 2, 3, 1).reshape(-1, 12).view(-1, 6, 6, 12).permute(0, 3, 1, 2),
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand(-1, 12, 6, 6),
    "expand as": lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
    "view as": lambda x: x.flatten(2).view_as(x),
    "stacked": lambda x: torch.stack([x, x.relu()], 1).sum(1),
    "one of a stack": lambda x: torch.stack([x, -x], 2).select(2, 1),
    "both of a stack": lambda x: (lambda a, b: a * b)(*torch.stack([x, x + 1], -1).unbind(-1)),
    "a slice of space": lambda x: x[:, :, 1:, ::2],
    "all of the channels": lambda x: x[:, :12],
    "halves of space": lambda x: (lambda a, b: a + b)(*x.chunk(2, dim=3)),
    "looked up in space": lambda x: x[:, :, torch.tensor([0, 2, 2])],
    "joined in space": lambda x: torch.cat([x, -x], dim=2),
    "flattened and restored": lambda x: x.flatten(1).unflatten(1, (12, 6, 6)),
}


@pytest.mark.parametrize("function", PASSED.values(), ids=PASSED)
def test_channels_go_through(function):
    model = Net(lambda net, x: net.b(function(net.a(x))), a=nn.Conv2d(3, 12, 1), b=nn.Conv2d(12, 2, 1))
    module = exported(model, IMAGE)
    assert (free(module), frozen(module)) == ({"a.weight": 12}, {"b.weight": OUTPUT})
    assert holds(module, IMAGE)


def test_channels_that_are_flattened_with_space_take_all_its_positions():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 2))
    module = exported(model, IMAGE)
    assert free(module) == {"0.weight": 8}
    assert holds(module, IMAGE)


def test_channels_that_a_linear_layer_makes_with_their_space_go_with_it():
    model = nn.Sequential(nn.Linear(3, 8 * 4), nn.Unflatten(1, (8, 2, 2)), nn.Conv2d(8, 2, 1))
    module = exported(model, noise(2, 3))
    assert free(module) == {"0.weight": 8}
    assert holds(module, noise(2, 3))


PARTED = {
    "joined": (lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], 1)), {"a.weight": 4, "b.weight": 8}),
    "joined and cut as they were": (
        lambda net, x: net.c(torch.cat([(y := torch.cat([net.a(x), net.b(x)], 1))[:, :4].relu(), y[:, 4:]], 1)),
        {"a.weight": 4, "b.weight": 8},
    ),
    "joined and cut elsewhere": (
        lambda net, x: net.c(torch.cat([(y := torch.cat([net.a(x), net.b(x)], 1))[:, :-6], y[:, -6:].relu()], 1)),
        {"a.weight": 4, "b.weight[0:2]": 2, "b.weight[2:8]": 6},
    ),
    "cut in equal pieces": (
        lambda net, x: net.c(torch.cat([net.a(x), *(y := net.b(x).chunk(2, 1))[:1], y[1].relu()], 1)),
        {"a.weight": 4, "b.weight": 4},
    ),
    "a piece for each size": (
        lambda net, x: net.c(torch.cat([net.a(x), *(part.relu() for part in net.b(x).split([3, 5], 1))], 1)),
        {"a.weight": 4, "b.weight[0:3]": 3, "b.weight[3:8]": 5},
    ),
    "pieces of one size": (
        lambda net, x: net.c(torch.cat([net.a(x), *(part.relu() for part in net.b(x).split(2, 1))], 1)),
        {"a.weight": 4, "b.weight": 2},
    ),
    "gated": (lambda net, x: net.d(net.a(x) * F.glu(net.b(x), 1)), {"a.weight": 4}),
    "added to what is joined": (
        lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], 1) + torch.cat([net.b(-x), net.a(-x)], 1)),
        {"a.weight": 4},
    ),
}


@pytest.mark.parametrize(("forward", "groups"), PARTED.values(), ids=PARTED)
def test_channels_part_where_they_are_joined_and_cut(forward, groups):
    layers = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 8, 1), "c": nn.Conv2d(12, 2, 1), "d": nn.Conv2d(4, 2, 1)}
    module = exported(Net(forward, **layers), IMAGE)
    assert {name: size for name, size in free(module).items() if name[0] in "ab"} == groups
    assert holds(module, IMAGE)


KEPT = {
    "one channel": (lambda x: x * x[:, 3, None], "select picks some of the channels"),
    "each channel": (lambda x: torch.stack(x.unbind(1)[::-1], 1), "unbind picks some of the channels"),
    "every other channel": (lambda x: torch.cat([x[:, ::2]] * 2, 1), "slice picks some of the channels"),
    "looked up": (lambda x: x[:, torch.arange(11, -1, -1)], "index picks some of the channels"),
    "shuffled": (
        lambda x: x.view(-1, 4, 3, 6, 6).transpose(1, 2).flatten(1, 2),
        "flatten merges the channels with another axis",
    ),
    "behind space": (
        lambda x: x.permute(0, 2, 3, 1).flatten(1).view(-1, 12, 6, 6),
        "flatten merges the channels with another axis",
    ),
    "unequal pieces": (
        lambda x: torch.cat(x.split(5, 1), 1),
        "split cuts the channels into pieces that must stay equal",
    ),
    "with a constant": (lambda x: x + torch.ones(12, 6, 6), "ones is not known"),
    "with a constant of its dtype": (lambda x: x + x.new_ones(12, 6, 6), "new_ones makes a constant of this length"),
}


@pytest.mark.parametrize(("function", "reason"), KEPT.values(), ids=KEPT)
def test_channels_that_lose_their_order_stay_and_say_why(function, reason):
    layer = Net(lambda net, x: function(x))
    model = Net(lambda net, x: net.b(net.layer(net.a(x))), a=nn.Conv2d(3, 12, 1), layer=layer, b=nn.Conv2d(12, 2, 1))
    module = exported(model, IMAGE)
    assert free(module) == {}
    assert set(frozen(module).values()) == {f"layer: {reason}", OUTPUT}
