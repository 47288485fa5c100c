"""Small networks as `torch.export` gives them, with weights under which every channel matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from modelzip_cli.running.channels import Channels, find_channels
from modelzip_cli.running.cutting import check, masked
from modelzip_cli.running.widths import Keep


class Net(nn.Module):
    """Layers by name, and what is done with them: `forward(net, *inputs)`."""

    def __init__(self, forward: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def exported(model: nn.Module, *inputs: Tensor) -> GraphModule:
    """The graph of a model for a batch of this size, with random weights."""
    return randomised(torch.export.export(model.eval(), inputs).module(check_guards=False))


def randomised(module: GraphModule) -> GraphModule:
    """The same module with other weights and, as these would hide faults at 0 and 1, other statistics of BatchNorm."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(std=1 / max(1, weight[0].numel()) ** 0.5 if weight.ndim > 1 else 1, generator=generator)
        for name, statistic in module.named_buffers():
            if name.endswith("running_var"):
                statistic.uniform_(0.5, 2, generator=generator)
            elif name.endswith("running_mean"):
                statistic.normal_(generator=generator)
    return module


def noise(*shape: int) -> Tensor:
    """Normal numbers, the same ones in each run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def two_thirds(channels: Channels) -> Keep:
    """Two channels of each three in a row, so that no cut is a prefix; at least one."""
    return {
        group.name: torch.tensor([channel for channel in range(group.channels) if channel % 3 != 1])
        for group in channels.groups
    }


def free(module: GraphModule) -> dict[str, int]:
    """How many channels each group has that can be cut."""
    return {group.name: group.channels for group in find_channels(module).groups}


def frozen(module: GraphModule) -> dict[str, str]:
    """Why the others cannot be."""
    return {found.name: found.reason for found in find_channels(module).frozen}


def holds(module: GraphModule, *inputs: Tensor) -> bool:
    """Whether the model without a third of each group gives what it gives with that third zeroed, and this is not what
    the whole model gives."""
    channels = find_channels(module)
    keep = two_thirds(channels)
    compared = {group.name: keep[group.name] for group in channels.groups if not group.normalised}
    with torch.no_grad():
        whole, zeroed = module(*inputs), masked(module, channels, compared)(*inputs)
    matters = not torch.allclose(whole, zeroed, atol=1e-3)
    return matters == bool(compared) and check(module, channels, keep, inputs) < 1e-12
