"""How many channels stay, which, and the width that meets a number of parameters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modelzip_cli.errors import Unreachable
from modelzip_cli.running.channels import Group, Use, find_channels
from modelzip_cli.running.cutting import cut
from modelzip_cli.running.widths import choose, kept_channels, parameters_at, scores, width_for
from tests.running.networks import exported, noise

LAYERS = (
    nn.Conv2d(3, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 16, 3, padding=1, groups=16),
    nn.Conv2d(16, 24, 1),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(24 * 16, 64),
    nn.LayerNorm(64),
    nn.Linear(64, 10),
)
IMAGE = noise(2, 3, 4, 4)


@pytest.fixture(scope="module")
def network():
    return exported(nn.Sequential(*LAYERS), IMAGE)


def group(channels: int, *, repeat: int = 1, normalised: bool = False) -> Group:
    return Group("a.weight", channels, (Use("a.weight", 0, 0, repeat, "producer"),), (), normalised)


@pytest.mark.parametrize(
    ("channels", "repeat", "width", "kept"),
    [
        (16, 1, 0.5, 8),
        (24, 1, 0.4, 8),  # 9.6 is nearer to 8 than to 12
        (24, 1, 0.01, 4),
        (3, 1, 0.5, 3),  # no multiple of 4 is as small
        (100, 1, 0.5, 48),  # of 8 from 64 channels up
        (100, 1, 1.0, 100),
        (12, 64, 0.5, 6),  # heads of 64 positions
        (3, 64, 0.01, 1),
        (10, 2, 0.3, 4),  # 20 positions: 6 channels are none of 4 positions each
    ],
)
def test_widths_are_multiples_that_suit_kernels(channels, repeat, width, kept):
    assert kept_channels(group(channels, repeat=repeat), width) == kept


def test_the_strongest_channels_stay():
    module = exported(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), noise(2, 3))
    strong = torch.tensor([1, 2, 5, 6])
    with torch.no_grad():
        module.get_parameter("0.weight")[strong] *= 3
        module.get_parameter("2.weight")[:, strong] *= 3
    assert choose(module, find_channels(module), 0.5)["0.weight"].equal(strong)


def test_a_score_is_the_sum_over_weights_each_by_its_mean():
    module = exported(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), noise(2, 3))
    rows = module.get_parameter("0.weight").detach().double().square().sum(1)
    columns = module.get_parameter("2.weight").detach().double().square().sum(0)

    (found,) = (scores(module, group) for group in find_channels(module).groups)
    torch.testing.assert_close(found, rows / rows.mean() + columns / columns.mean())


def test_importance_takes_the_place_of_squared_weights():
    module = exported(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), noise(2, 3))
    importance = {name: torch.zeros_like(weight) for name, weight in module.named_parameters()}
    importance["0.weight"][[0, 7], 1] = 1
    importance["2.weight"][1, [3, 4]] = 1
    assert choose(module, find_channels(module), 0.5, importance=importance)["0.weight"].tolist() == [0, 3, 4, 7]


def test_under_a_layer_norm_more_stays(network):
    keep = choose(network, find_channels(network), 0.25)
    assert {name: len(kept) for name, kept in keep.items()} == {"0.weight": 4, "4.weight": 8, "7.weight": 48}
    assert len(choose(network, find_channels(network), 0.25, least_normalised=0)["7.weight"]) == 16


@given(width=st.floats(0, 1))
def test_parameters_are_counted_as_the_cut_model_has_them(network, width):
    channels = find_channels(network)
    narrow = cut(network, channels, choose(network, channels, width))
    assert parameters_at(network, channels, width) == sum(weight.numel() for weight in narrow.parameters())


@given(parameters=st.integers(6_200, 40_000))
def test_the_width_is_the_largest_that_has_no_more_parameters(network, parameters):
    channels = find_channels(network)
    width = width_for(network, channels, parameters)
    assert parameters_at(network, channels, width) <= parameters
    assert width == 1 or parameters_at(network, channels, width + 1e-6) > parameters


def test_what_cannot_be_reached_says_what_can(network):
    channels = find_channels(network)
    least = parameters_at(network, channels, 0)
    assert parameters_at(network, channels, width_for(network, channels, least)) == least
    with pytest.raises(Unreachable, match=rf"^a\.pt2: 1,000 parameters .*the fewest are {least:,}$"):
        width_for(network, channels, 1_000, label="a.pt2")
