"""Running statistics of BatchNorm, estimated again: what a cut or a rounding moved is put right without a gradient.

Source: Ioffe and Szegedy, Batch Normalization, 2015, arXiv:1502.03167, algorithm 2: population statistics are averages
over batches. That they have to be taken again after pruning: Li, Wu, Su, Wang, EagleEye, 2020, arXiv:2007.02491.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from modelzip_cli.running.layers import attribute

Statistics = tuple[Tensor, Tensor]  # the running mean and variance of one layer, [channels] each
TRAINING, MOMENTUM = 5, 6  # places of these arguments of aten.batch_norm


def reestimate(module: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> bool:
    """Set every running mean and variance to that over `batches`; say whether there were any to set.

    Mean: of the batches' means. Variance: mean of the batches' variances plus the variance of their means. Everything
    else, dropout too, stays as in eval mode. Two batches are needed at least: one leaves all as it was.
    """
    with _each_batch_for_itself(module) as layers:
        if not layers:
            return False
        means: list[list[Tensor]] = [[] for _ in layers]
        variances: list[list[Tensor]] = [[] for _ in layers]
        before = [(mean.clone(), variance.clone()) for mean, variance in layers]
        with torch.no_grad():
            for inputs in batches:
                module(*inputs)
                for place, (mean, variance) in enumerate(layers):
                    means[place].append(mean.clone())
                    variances[place].append(variance.clone())
            enough = len(means[0]) > 1
            for place, (mean, variance) in enumerate(layers):
                if enough:
                    every = torch.stack(means[place])
                    mean.copy_(every.mean(0))
                    variance.copy_(torch.stack(variances[place]).mean(0) + every.var(0, unbiased=False))
                else:
                    mean.copy_(before[place][0])
                    variance.copy_(before[place][1])
    return enough


@contextmanager
def _each_batch_for_itself(module: nn.Module) -> Iterator[list[Statistics]]:
    """Let BatchNorm alone train, with a momentum of 1, so that its statistics are those of the last batch."""
    if isinstance(module, GraphModule):
        nodes = [node for node in module.graph.nodes if node.target == torch.ops.aten.batch_norm.default]
        kept = [node.args for node in nodes]
        for node in nodes:
            node.args = (*node.args[:TRAINING], True, 1.0, *node.args[MOMENTUM + 1 :])
        module.recompile()
        try:
            yield [_statistics(module, node) for node in nodes if isinstance(node.args[3], Node)]
        finally:
            for node, arguments in zip(nodes, kept, strict=True):
                node.args = arguments
            module.recompile()
        return
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]
    kept_modes = [(layer.momentum, layer.training, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum, layer.num_batches_tracked = 1.0, None
        layer.train()
    try:
        yield [(layer.running_mean, layer.running_var) for layer in layers]  # type: ignore[misc]
    finally:
        for layer, (momentum, training, count) in zip(layers, kept_modes, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count
            layer.train(training)


def _statistics(module: GraphModule, node: Node) -> Statistics:
    mean, variance = node.args[3:5]
    assert isinstance(mean, Node)
    assert isinstance(variance, Node)
    return attribute(module, str(mean.target)), attribute(module, str(variance.target))
