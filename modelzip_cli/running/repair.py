"""What compression moved is put right without training: running statistics of BatchNorm, or biases.

Sources: re-estimation: Li et al., EagleEye, 2020, arXiv:2007.02491; bias correction: Nagel, van Baalen, Blankevoort and
Welling, Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, arXiv:1906.04721, section 4.2.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from modelzip_cli.running.batchnorm import reestimate
from modelzip_cli.running.calibrate import watched
from modelzip_cli.running.inputs import Batch
from modelzip_cli.running.model import Model, apart

REESTIMATED, CORRECTED = "BatchNorm re-estimated", "bias corrected"


def repair(model: Model, dense: Model, batches: Sequence[Batch]) -> str:
    """Repair `model` in place, whose weights were those of `dense`; say what was done, or nothing.

    With BatchNorm, its running statistics become those over `batches`. Without, a bias makes up for the mean error of
    its layer: b + (W - W') E[x], with E[x] the mean input of `dense`. What brings the outputs no nearer to those of
    `dense`, on the same batches, is undone.
    """
    before = vectors(model.module.state_dict())
    far = distance(model, dense, batches)
    done = REESTIMATED if reestimate(model.module, [batch.inputs for batch in batches]) else ""
    if not done and _correct(model, dense, batches):
        done = CORRECTED
    if done and distance(model, dense, batches) >= far:
        model.module.load_state_dict(before, strict=False)
        return ""
    return done


def vectors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of all that a repair may change: running statistics and biases. Weights would take much memory."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if tensor.ndim < 2}


def distance(model: Model, dense: Model, batches: Sequence[Batch]) -> float:
    """How far a model is from the dense one, mean over batches (model.apart); infinite where it gives NaN."""
    with torch.inference_mode():
        found = [apart(model, batch, model.scores(batch), dense.scores(batch)) for batch in batches]
    mean = sum(found) / len(found)
    return math.inf if math.isnan(mean) else mean


def _correct(model: Model, dense: Model, batches: Sequence[Batch]) -> bool:
    """Correct the biases of all layers that have one; say whether there were any."""
    ours, theirs = dict(model.module.named_parameters()), dict(dense.module.named_parameters())
    layers = {name: f"{name.removesuffix('weight')}bias" for name in theirs if name.endswith("weight")}
    layers = {name: bias for name, bias in layers.items() if bias in ours}
    for name, mean in _mean_inputs(dense, layers, batches).items():
        with torch.no_grad():
            lost = (theirs[name].float() - ours[name].float()).flatten(1)
            ours[layers[name]].add_(lost @ mean)
    return bool(layers)


def _mean_inputs(model: Model, layers: Mapping[str, str], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """E[x] of each layer that is seen, [columns]."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, rows: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros(1)) + rows.sum(0, dtype=torch.float64)
        counts[name] = counts.get(name, 0) + len(rows)

    with watched(model, {name: name for name in layers}, add) as run:
        for batch in batches:
            run(batch)
    return {name: total.div(counts[name]).float() for name, total in sums.items()}


def with_weights(model: Model, tensors: Mapping[str, Tensor], names: Mapping[str, str], size: int) -> Model:
    """A copy of the model with the weights of a checkpoint of `size` bytes. `names`: of its tensors -> of those."""
    module = copy.deepcopy(model.module)
    own = module.state_dict()
    with torch.no_grad():
        for ours, theirs in names.items():
            if theirs in tensors:
                own[ours].copy_(tensors[theirs])
    return replace(model, module=module, bytes=size)
