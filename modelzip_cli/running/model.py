"""A network with its weights: what it takes, how it is run, and what of its output is the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modelzip_cli.errors import BadData, ModelDoesNotRun, ModelzipError
from modelzip_cli.running.architecture import describe
from modelzip_cli.running.inputs import IGNORED, Batch, Images, Wanted
from modelzip_cli.running.losses import soft_loss

NOTE = "modelzip.student"  # the key under which a file of weights says how it was made
OUTPUT_NAMES = ("logits", "last_hidden_state", "out")  # of what models return instead of a tensor


@dataclass(frozen=True)
class Model:
    """A network with its weights, in eval mode.

    `label`: the file; `rung`: where the network came from, for the report; `wanted`: what it takes; `bytes`: of the
    checkpoint on the disk; `recipe`: what a student of ours was made with; `is_graph`: exported, so that channels can
    be cut and a `.pt2` be written.
    """

    module: nn.Module
    label: str
    rung: str
    wanted: Wanted
    bytes: int
    recipe: Mapping[str, Any] | None = None
    is_graph: bool = field(default=False)
    features: bool = False  # it gives no scores, but what others compute them from

    @property
    def parameters(self) -> int:
        """How many weights it has, those of a tie once; buffers do not count."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def scores(self, batch: Batch) -> Tensor:
        """The model's scores for a batch, float32 [batch, classes] or [batch, time, tokens]."""
        size = self.wanted.batch
        if size is None or len(batch.inputs[0]) == size:
            return self.run(batch.inputs)
        pieces = [
            self._padded(tuple(piece), size)
            for piece in zip(*(torch.split(x, size) for x in batch.inputs), strict=True)
        ]
        return torch.cat(pieces)

    def _padded(self, inputs: tuple[Tensor, ...], size: int) -> Tensor:
        """A model that was exported for batches of `size` gets the first example again in the places that are left."""
        count = len(inputs[0])
        full = tuple(torch.cat([x, x[:1].expand(size - count, *x.shape[1:])]) for x in inputs)
        return self.run(full)[:count]

    def run(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Call the network; what it returns may be a tensor, or have one of scores in it. Raises ModelDoesNotRun."""
        try:
            return scores_in(self.module(*inputs)).float()
        except ModelzipError as error:
            raise ModelDoesNotRun(f"{self.label}: {error}") from None
        except (Exception, SystemExit) as error:
            kinds = "kind, shape and tokens" if self.wanted.kind == "tokens" else "kind and shape"
            raise ModelDoesNotRun(
                f"{self.label}: the model fails on {_described(inputs)}: {describe(error)}; are the data of the "
                f"{kinds} that it was made for?"
            ) from error

    def check(self, batch: Batch) -> Tensor:
        """Run a first batch. Raises ModelDoesNotRun for what is no score, BadData for labels that are not for these."""
        with torch.inference_mode():
            scores = self.scores(batch)
        if scores.ndim not in (2, 3) or len(scores) != len(batch.inputs[0]):
            raise ModelDoesNotRun(
                f"{self.label}: for {_described(batch.inputs)} the model gives {[*scores.shape]}, which is no score "
                "for every class: [batch, classes] or [batch, time, tokens]"
            )
        if batch.labels is not None and batch.labels.shape != scores.shape[:-1]:
            raise BadData(
                f"{self.label}: gives scores {[*scores.shape]}, which labels {[*batch.labels.shape]} do not go with: a "
                "classifier needs a label for each example (y in .npz), a language model one for each position"
            )
        return scores


def _described(inputs: tuple[Tensor, ...]) -> str:
    """Inputs as a message shows them: `float32 [2, 1, 28, 28]`, or `int64 [2, 64] of 0 to 96`."""
    shown = []
    for x in inputs:
        values = "" if x.is_floating_point() or not x.numel() else f" of {int(x.min())} to {int(x.max())}"
        shown.append(f"{str(x.dtype).removeprefix('torch.')} {[*x.shape]}{values}")
    return ", ".join(shown)


def scores_in(output: Any) -> Tensor:
    """The tensor of scores in what a model returns: itself, an attribute or key `logits`, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    for name in OUTPUT_NAMES:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, (tuple, list)) and output:
        return scores_in(output[0])
    raise ModelDoesNotRun(f"the model returns a {type(output).__name__}, in which no tensor of scores is found")


def gives_features(model: Model, batch: Batch) -> bool:
    """Whether what a network returns says that it is no scores: a hidden state, and no logits."""
    with torch.inference_mode():
        output = model.module(*batch.inputs)
    names = output if isinstance(output, Mapping) else vars(output) if hasattr(output, "__dict__") else ()
    return not isinstance(output, Tensor) and "logits" not in names and "last_hidden_state" in names


def apart(model: Model, batch: Batch, ours: Tensor, theirs: Tensor) -> float:
    """How far outputs of a model are from others for a batch, over positions that count: mean KL(theirs || ours)
    in nats; of features the mean squared distance over the mean square."""
    counted = counted_positions(batch, ours)
    if not model.features:
        return float(soft_loss(ours, theirs, 1.0, counted))
    if counted is not None:
        ours, theirs = ours[counted], theirs[counted]
    return float((ours - theirs).double().square().mean() / theirs.double().square().mean())


def counted_positions(batch: Batch, scores: Tensor) -> Tensor | None:
    """Which positions of scores [batch, time, tokens] count: those with a label, else those of the attention mask."""
    if scores.ndim == 2:
        return None
    if batch.labels is not None and batch.labels.ndim == 2:
        return batch.labels != IGNORED
    return batch.inputs[1].bool() if len(batch.inputs) > 1 else None


def wanted_by(module: nn.Module) -> Wanted:
    """What a network that is no exported graph tells of its input: timm's configuration, or its first layer."""
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if isinstance(config, Mapping) and isinstance(config.get("input_size"), (tuple, list)):
        channels, height, width = config["input_size"]
        images = Images(
            (int(height), int(width)),
            tuple(config["mean"]) if config.get("mean") else None,
            tuple(config["std"]) if config.get("std") else None,
            float(config.get("crop_pct") or 1.0),
            "the configuration of the network",
        )
        return Wanted(shape=(int(channels), None, None), images=images)
    leaves = [leaf for leaf in module.modules() if not list(leaf.children()) and list(leaf.parameters())]
    return Wanted(kind="tokens" if leaves and isinstance(leaves[0], nn.Embedding) else "floats")
