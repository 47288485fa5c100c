"""Channels of whole models: the samples of this project, and published architectures with random weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from train import DigitsCNN, DocsLM

from modelzip_cli.running.channels import Count, Frozen, Use, find_channels
from modelzip_cli.running.cutting import cut_checked
from modelzip_cli.running.widths import choose
from tests.running.networks import exported, noise, randomised

PICTURES = noise(2, 3, 64, 64)


def dynamic(model: nn.Module, *inputs: torch.Tensor, axes: int = 1):
    """The graph of a model with a dynamic batch, and time where there are two such axes."""
    shape = {axis: torch.export.Dim(name, max=64) for axis, name in enumerate(("batch", "time")[:axes])}
    program = torch.export.export(model.eval(), inputs, dynamic_shapes=(shape,))
    return randomised(program.module(check_guards=False))


def test_a_group_says_where_its_channels_are():
    layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 2))
    (group,), frozen = (channels := find_channels(exported(layers, noise(2, 3, 2, 2)))).groups, channels.frozen
    assert (group.name, group.channels, group.counts, group.normalised) == ("0.weight", 8, (), False)
    assert set(group.uses) == {
        Use("0.weight", 0, 0, 1, "producer"),
        Use("0.bias", 0, 0, 1, "channelwise"),
        *(Use(f"1.{name}", 0, 0, 1, "channelwise") for name in ("weight", "bias", "running_mean", "running_var")),
        Use("3.weight", 1, 0, 4, "consumer"),
    }
    assert frozen == (Frozen("3.weight", 2, "the model's output"),)


def test_a_group_says_which_numbers_count_it():
    layers = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    (group,) = find_channels(exported(layers, noise(2, 3))).groups
    assert group.counts == (Count("layer_norm", "normalized_shape", 0, 8, 1),)


def test_channels_of_one_weight_that_go_different_ways_are_named_by_their_place():
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.first, self.second = nn.Linear(3, 12), nn.Linear(4, 2), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = self.both(x).split([4, 8], dim=-1)
            return self.first(first) + self.second(second)

    groups = find_channels(exported(Parts(), noise(2, 3))).groups
    assert {group.name: group.channels for group in groups} == {"both.weight[0:4]": 4, "both.weight[4:12]": 8}


def test_an_assertion_in_the_graph_is_no_channel():
    class Asserting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.first(x)
            torch.ops.aten._assert_tensor_metadata(hidden, dtype=torch.float32)
            return self.second(hidden)

    module = exported(Asserting(), noise(2, 3))
    assert any("assert" in str(node.target) for node in module.graph.nodes)
    (group,) = find_channels(module).groups
    assert (group.name, group.channels) == ("first.weight", 8)


def test_the_sample_cnn_is_cut_in_all_its_layers():
    image = noise(3, 1, 12, 12)
    module = dynamic(DigitsCNN(), image[:2])
    channels = find_channels(module)
    assert (len(channels.groups), [frozen.name for frozen in channels.frozen]) == (6, ["head.weight"])

    found = cut_checked(module, channels, choose(module, channels, 1 / 3), (image,))
    assert found.exact
    assert found.difference < 1e-12
    assert sum(weight.numel() for weight in found.module.parameters()) < 21_000


def test_the_sample_transformer_loses_heads_and_hidden_channels():
    tokens = torch.arange(48).reshape(3, 16)
    module = dynamic(DocsLM(width=32, layers=2), tokens[:2], axes=2)
    channels = find_channels(module)
    heads, hidden = "blocks.{}.qkv.weight", "blocks.{}.fc1.weight"
    sizes = {group.name: group.channels for group in channels.groups if not group.normalised}
    assert sizes == {heads.format(0): 4, hidden.format(0): 128, heads.format(1): 4, hidden.format(1): 128}
    assert [group.channels for group in channels.groups if group.normalised] == [32]

    keep = {name: kept for name, kept in choose(module, channels, 0.5).items() if name in sizes}
    exact = cut_checked(module, channels, keep, (tokens,))
    assert exact.exact
    assert exact.difference < 1e-12
    assert exact.module(tokens[:1, :9]).shape == (1, 9, 97)
    every = cut_checked(module, channels, choose(module, channels, 0.5), (tokens,))
    assert not every.exact
    assert every.module.get_parameter("norm.weight").shape == (24,)


ARCHITECTURES = {  # groups that can be cut, channels that cannot; what is left of the parameters at half the width
    "resnet18": (12, 1, 0.26),
    "mobilenetv3_small_100": (27, 1, 0.27),
    "densenet121": (120, 1, 0.26),
    "regnetx_002": (18, 1, 0.29),  # of grouped convolutions whole groups go
    "efficientnet_b0": (40, 1, 0.27),
    "ghostnet_100": (31, 1, 0.26),  # channels are joined and cut at other places
    "convnext_atto": (16, 1, 0.41),  # four stages under LayerNorms keep 3 of 4 channels
    "vit_tiny_patch16_224": (25, 1, 0.43),
}
UNDER_LAYER_NORM = {"convnext_atto": 4, "vit_tiny_patch16_224": 1}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_architectures_are_cut_to_what_the_masked_model_gives(timm, name):
    sized = {"img_size": 64} if name.startswith("vit") else {}
    module = dynamic(timm.create_model(name, num_classes=10, **sized), PICTURES)
    channels = find_channels(module)
    groups, whole, share = ARCHITECTURES[name]
    assert (len(channels.groups), len(channels.frozen)) == (groups, whole)
    assert sum(group.normalised for group in channels.groups) == UNDER_LAYER_NORM.get(name, 0)

    found = cut_checked(module, channels, choose(module, channels, 0.5), (PICTURES,))
    assert found.difference < 1e-9
    assert found.exact == (name not in UNDER_LAYER_NORM)
    assert found.channels == channels  # none turned out not to be cut
    before, after = (sum(weight.numel() for weight in each.parameters()) for each in (module, found.module))
    assert after / before < share


def test_an_architecture_that_mixes_channels_says_where(timm):
    module = dynamic(timm.create_model("convnextv2_atto", num_classes=10), PICTURES)
    channels = find_channels(module)
    assert len(channels.groups) == 4
    reasons = {frozen.name: frozen.reason for frozen in channels.frozen}
    block = "stages.2.blocks.0.mlp"
    assert reasons[f"{block}.fc1.weight"] == f"{block}.grn: mean runs over the channels"
