"""Each operator of the table: which channels go through it, which it makes or joins, and which it keeps whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modelzip_cli.running.channel_rules import RULES
from modelzip_cli.running.channels import find_channels
from tests.running.networks import Net, exported, free, frozen, holds, noise

IMAGE, VOLUME, SOUND, ROWS = noise(2, 3, 6, 6), noise(2, 3, 4, 4, 4), noise(2, 3, 8), noise(2, 5, 3)
OUTPUT = "the model's output"


def between(layer, *, dimensions: int = 2) -> Net:
    """`layer` between a convolution of 8 channels and one that reads them."""
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    return Net(lambda net, x: net.b(net.layer(net.a(x))), a=convolution(3, 8, 1), layer=layer, b=convolution(8, 2, 1))


ACTIVATIONS = (
    *(
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.Hardswish(inplace=True),
        nn.GELU(),
        nn.SiLU(),
        nn.Sigmoid(),
        nn.LogSigmoid(),
    ),
    *(
        nn.LeakyReLU(),
        nn.ELU(inplace=True),
        nn.Hardtanh(),
        nn.Softplus(),
        nn.Tanh(),
        nn.Mish(),
        nn.PReLU(),
        nn.PReLU(8),
    ),
)
PASSED_IMAGES = {
    "activations": nn.Sequential(*ACTIVATIONS),
    "dropout": nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout()),
    "batch norm": nn.BatchNorm2d(8),
    "instance norm": nn.InstanceNorm2d(8, affine=True),
    "pools": nn.Sequential(nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d(2)),
    "padding": nn.ReflectionPad2d(1),
    "padding that names the channels": Net(lambda net, x: F.pad(x, (1, 1, 0, 0, 0, 0))),
    "upsampling": nn.Sequential(
        *(nn.Upsample(scale_factor=2, mode=mode) for mode in ("nearest", "bilinear", "bicubic"))
    ),
    "copies": Net(lambda net, x: x.to(torch.float64).to(x.dtype).clone().contiguous().detach()),
    "numbers": Net(lambda net, x: (1 - x * 2 / 3).clamp(-2, 2)),
    "masks": Net(lambda net, x: torch.where(x > 1, x, -x).masked_fill(x < 0, 0.5)),
    "softmax over space": Net(lambda net, x: x.flatten(2).softmax(2).unflatten(2, (6, 6))),
    "rolled space": Net(lambda net, x: x.roll((1, 2), dims=(2, 3)).flip(3)),
    "depthwise": nn.Conv2d(8, 8, 3, groups=8),
    "depthwise of several outputs a channel": nn.Sequential(nn.Conv2d(8, 24, 3, groups=8), nn.Conv2d(24, 8, 1)),
    "transposed": nn.ConvTranspose2d(8, 8, 2, stride=2),
}


@pytest.mark.parametrize("layer", PASSED_IMAGES.values(), ids=PASSED_IMAGES)
def test_channels_of_images_go_through(layer):
    module = exported(between(layer), IMAGE)
    assert free(module)["a.weight"] == 8
    assert frozen(module) == {"b.weight": OUTPUT}
    assert holds(module, IMAGE)


@pytest.mark.parametrize(("dimensions", "x"), [(1, SOUND), (2, IMAGE), (3, VOLUME)])
def test_convolutions_of_each_dimension_make_and_read_channels(dimensions, x):
    pool = {1: nn.AvgPool1d(2), 2: nn.AvgPool2d(2), 3: nn.AvgPool3d(2)}[dimensions]
    module = exported(between(pool, dimensions=dimensions), x)
    assert (free(module), frozen(module)) == ({"a.weight": 8}, {"b.weight": OUTPUT})
    assert holds(module, x)


def test_of_a_grouped_convolution_whole_groups_go():
    layers = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 24, 3, groups=4), nn.BatchNorm2d(24), nn.Conv2d(24, 2, 1))
    module = exported(layers, IMAGE)
    assert free(module) == {"0.weight": 4}
    assert holds(module, IMAGE)


def test_of_a_grouped_transposed_convolution_whole_groups_go():
    layers = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ConvTranspose2d(12, 6, 3, groups=3), nn.Conv2d(6, 2, 1))
    module = exported(layers, IMAGE)
    assert free(module) == {"0.weight": 3}
    assert holds(module, IMAGE)


LINEAR = {
    "linear": (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), {"0.weight": 8}),
    "without bias": (nn.Sequential(nn.Linear(3, 8, bias=False), nn.Linear(8, 2, bias=False)), {"0.weight": 8}),
    "layer norm": (nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2)), {"0.weight": 8}),
    "rms norm": (nn.Sequential(nn.Linear(3, 8), nn.RMSNorm(8), nn.Linear(8, 2)), {"0.weight": 8}),
    "other axes as well": (
        Net(lambda net, x: net.b(net.a(x).transpose(1, 2)).sum(2), a=nn.Linear(3, 8), b=nn.Linear(5, 4)),
        {},
    ),
    "a parameter times": (
        Net(lambda net, x: x @ net.a @ net.b, a=nn.Parameter(noise(3, 8)), b=nn.Parameter(noise(8, 2))),
        {"a": 8},
    ),
    "addmm": (
        Net(
            lambda net, x: torch.addmm(net.bias, x.mean(1), net.a) @ net.b,
            a=nn.Parameter(noise(3, 8)),
            bias=nn.Parameter(noise(8)),
            b=nn.Parameter(noise(8, 2)),
        ),
        {"a": 8},
    ),
}


@pytest.mark.parametrize(("model", "groups"), LINEAR.values(), ids=LINEAR)
def test_linear_layers_make_and_read_channels(model, groups):
    module = exported(model, ROWS)
    assert free(module) == groups
    assert holds(module, ROWS)


def test_an_embedding_makes_channels_and_its_vocabulary_stays():
    model = Net(lambda net, x: net.b(net.a(x)), a=nn.Embedding(11, 8), b=nn.Linear(8, 2))
    tokens = torch.arange(10).reshape(2, 5)
    module = exported(model, tokens)
    assert (free(module), frozen(module)) == ({"a.weight": 8}, {"b.weight": OUTPUT})
    assert holds(module, tokens)


def test_a_layer_norm_marks_what_it_runs_over():
    layers = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))
    groups = find_channels(exported(layers, ROWS)).groups
    assert {group.name: group.normalised for group in groups} == {"0.weight": True, "2.weight": False}


JOINED = {
    "a residual": (lambda net, x: net.c(net.a(x) + net.b(x)), {"a.weight": 8}),
    "in place": (lambda net, x: net.c(net.a(x).add_(net.b(x))), {"a.weight": 8}),
    "a product": (lambda net, x: net.c(net.a(x) * net.b(x)), {"a.weight": 8}),
    "a difference": (lambda net, x: net.c(net.a(x) - net.b(x)), {"a.weight": 8}),
    "a quotient": (lambda net, x: net.c(net.a(x) / (net.b(x).exp() + 1)), {"a.weight": 8}),
    "a gate of one value a channel": (
        lambda net, x: net.c(net.a(x) * net.b(x.mean((2, 3), keepdim=True)).sigmoid()),
        {"a.weight": 8},
    ),
    "a scale for each channel": (lambda net, x: net.c(net.a(x) * net.scale.view(1, 8, 1, 1)), {"a.weight": 8}),
    "a scale with its axes added": (lambda net, x: net.c(net.a(x) * net.scale[None, :, None, None]), {"a.weight": 8}),
    "a scale of images": (lambda net, x: net.c(net.a(x) * net.image), {"a.weight": 8}),
    "the same layer twice": (lambda net, x: net.c(net.a(x) + net.a(-x)), {"a.weight": 8}),
}


@pytest.mark.parametrize(("forward", "groups"), JOINED.values(), ids=JOINED)
def test_what_is_joined_goes_together(forward, groups):
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1), "c": nn.Conv2d(8, 2, 1)}
    layers |= {"scale": nn.Parameter(noise(8)), "image": nn.Parameter(noise(1, 8, 6, 6))}
    module = exported(Net(forward, **layers), IMAGE)
    assert free(module) == groups
    assert holds(module, IMAGE)


def test_attention_passes_heads_and_not_features():
    model = Net(
        lambda net, x: net.b(F.scaled_dot_product_attention(*[net.a(x)[:, None]] * 3)[:, 0]),
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 2),
    )
    module = exported(model, ROWS)
    assert frozen(module)["a.weight"] == "scaled_dot_product_attention runs over the channels"


KEPT = {
    "softmax": (lambda x: x.softmax(1), "softmax runs over the channels"),
    "mean": (lambda x: x - x.mean(1, keepdim=True), "mean runs over the channels"),
    "sum of all": (lambda x: x / x.sum(), "sum runs over the channels"),
    "cumulative sum": (lambda x: x.cumsum(1), "cumsum runs over the channels"),
    "group norm": (lambda x: F.group_norm(x, 2), "group_norm normalises groups of channels"),
    "layer norm of several axes": (lambda x: F.layer_norm(x, (8, 6, 6)), "layer_norm normalises several axes at once"),
    "padded channels": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 2))[:, :8], "pad adds channels"),
    "pool over channels": (lambda x: F.avg_pool3d(x, (1, 3, 3), 1, (0, 1, 1)), "avg_pool3d runs over the channels"),
    "pixel shuffle": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), "pixel_shuffle moves channels"),
    "products of channels": (
        lambda x: (x.flatten(2).mT @ x.flatten(2)).mT[:, :8, None],
        "matmul runs over the channels",
    ),
    "unknown": (lambda x: x.cummax(1)[0], "cummax is not known"),
    "repeated": (lambda x: x.repeat(1, 2, 1, 1)[:, :8], "repeat is not known"),
}


@pytest.mark.parametrize(("function", "reason"), KEPT.values(), ids=KEPT)
def test_channels_that_are_mixed_stay_and_say_why(function, reason):
    module = exported(between(Net(lambda net, x: function(x))), IMAGE)
    assert free(module) == {}
    assert frozen(module)["a.weight"].startswith(f"layer: {reason}")


def test_weights_that_are_computed_stay():
    model = Net(
        lambda net, x: net.b(F.conv2d(x, net.a.tanh())), a=nn.Parameter(noise(8, 3, 1, 1)), b=nn.Conv2d(8, 2, 1)
    )
    module = exported(model, IMAGE)
    assert free(module) == {}


def test_channels_added_to_the_input_stay():
    model = Net(lambda net, x: net.b(net.a(x) + x), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 2, 1))
    assert frozen(exported(model, IMAGE)) == {"a.weight": "the model's input", "b.weight": OUTPUT}


def test_channels_that_are_given_out_as_well_stay():
    model = Net(lambda net, x: (net.b(h := net.a(x)), h), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1))
    assert frozen(exported(model, IMAGE)) == {"a.weight": OUTPUT, "b.weight": OUTPUT}


def test_one_channel_cannot_go():
    model = Net(lambda net, x: net.b(x * net.a(x).sigmoid()), a=nn.Conv2d(3, 1, 1), b=nn.Conv2d(3, 2, 1))
    module = exported(model, IMAGE)
    assert frozen(module) == {"a.weight": "it is a single channel", "b.weight": OUTPUT}


def test_the_table_has_only_operators_of_torch():
    unknown = {name for name in RULES if not hasattr(torch.ops.aten, name)}
    assert unknown == {"pointwise"}  # for all that torch calls so
