"""From a file to a model that runs: the network comes from an exported graph, from `--arch`, or from beside the file.

A checkpoint holds weights; what is computed with them has to come from somewhere. In the order in which they are tried:
`--arch`; the graph in an exported `.pt2`; the configuration in a Hugging Face directory; the `.pt2` that a compressed
file was made from, where it still lies beside it; shapes that chain to a perceptron, where labels can tell which
activation it has. Names and shapes must fit exactly, and the first batch must run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modelzip_cli import load_file
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.containers.strict_json import NotStrict, parse
from modelzip_cli.errors import BadData, FileNotThere, ModelDoesNotRun, ModelzipError, NoModel, UsageError, inert
from modelzip_cli.layouts.native_source import NativeSource
from modelzip_cli.running.architecture import build, describe
from modelzip_cli.running.graph import set_training
from modelzip_cli.running.inputs import Batch, Images, Wanted
from modelzip_cli.running.perceptron import Perceptron, find_chain
from modelzip_cli.running.weights import load_weights
from modelzip_cli.source import Checkpoint, open_source

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
            raise ModelDoesNotRun(
                f"{self.label}: the model fails on {_described(inputs)}: {describe(error)}; are the data of the kind, "
                f"shape{' and tokens' if self.wanted.kind == 'tokens' else ''} that it was made for?"
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


@dataclass(frozen=True)
class Network:
    """What `--arch`, `--arch-args` and `--key` say of the network."""

    arch: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None


def open_model(path: Path, network: Network) -> Model:
    """The model whose weights are in the checkpoint at `path`.

    Raises NoModel where nothing says what the network is, WrongArchitecture where it does not fit the weights,
    UnsafeInput for a `.pt2` with code in it, UsageError for a stream, and what reading a checkpoint raises.
    """
    if path == STANDARD:
        raise UsageError("a model that runs cannot be read from standard input: name a file")
    if network.arch is not None:
        return _with_arch(path, network, network.arch)
    source = open_source(path, key=network.key)
    try:
        graph = _graph_beside(source) if isinstance(source, NativeSource) else None
        container, size, label, hint = source.container, source.file.size, source.file.label, _hint(source)
        layers = find_chain({name: spec.shape for name, spec in source.specs.items()})
    finally:
        source.close()
    if container == "hf-directory":
        from modelzip_cli.running.hugging_face import open_hugging_face

        return open_hugging_face(path, weights=path)
    if container == "pt2":
        return _exported(path)
    if graph is not None:
        model = _exported(graph)
        load_weights(model.module, load_file(path, key=network.key), label, inert(graph.name))
        return replace(model, label=label, bytes=size, rung=f"the graph of {inert(graph.name)} beside it")
    if layers is not None:
        perceptron = Perceptron(layers, load_file(path, key=network.key))
        inputs = source.specs[f"{layers[0]}.weight"].shape[1]
        return Model(perceptron.eval(), label, f"perceptron of {len(layers)} layers", Wanted(shape=(inputs,)), size)
    raise NoModel(f"{label} holds weights but not the network that uses them. {hint}")


def open_reference(path: Path, network: Network) -> Model:
    """The model that others are held against. An exported one has a graph of its own: --arch is for the others."""
    if network.arch is None or path == STANDARD:
        return open_model(path, network)
    source = open_source(path, key=network.key)
    source.close()
    return open_model(path, Network() if source.container == "pt2" else network)


def _with_arch(path: Path, network: Network, arch: str) -> Model:
    """The network that --arch names, with the weights of the checkpoint at `path`."""
    place = Path(arch)
    shown = f"--arch {inert(arch)}"
    if network.arguments and (place.is_dir() or place.suffix == ".pt2"):
        raise UsageError(f"{shown}: takes no --arch-args; they are for classes and functions")
    if place.is_dir():
        from modelzip_cli.running.hugging_face import open_hugging_face

        return open_hugging_face(place, weights=path, key=network.key)
    source = open_source(path, key=network.key)
    size, label = source.file.size, source.file.label
    source.close()
    if place.suffix == ".pt2":
        if not place.is_file():
            raise FileNotThere(f"{shown}: does not exist")
        model = _exported(place)
        load_weights(model.module, load_file(path, key=network.key), label, shown)
        return replace(model, label=label, bytes=size, rung=f"the graph of {inert(place.name)}")
    tensors = load_file(path, key=network.key)

    def check(sketch: nn.Module) -> None:
        on_meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
        load_weights(sketch, on_meta, label, shown, takes_arguments=True)

    module = build(arch, network.arguments, check=check).float()  # as data come; a CPU computes little in shorter ones
    load_weights(module, tensors, label, shown, takes_arguments=True)
    set_training(module, False)
    return Model(module, label, inert(arch), wanted_by(module), size)


def _exported(path: Path) -> Model:
    from modelzip_cli.running.export import load_export

    found = load_export(path)
    return Model(
        found.module, inert(str(path)), "exported graph", found.wanted, path.stat().st_size, found.recipe, is_graph=True
    )


def _graph_beside(source: NativeSource) -> Path | None:
    """The `.pt2` that a compressed file was made from, where it lies beside it and is still the same."""
    path = _beside(source)
    if path is None:
        return None
    made_from = source.manifest["source"]
    original = open_source(path)
    same = (original.sha256, original.file.size) == (made_from["sha256"], made_from["bytes"])
    original.close()
    return path if same else None


def _beside(source: NativeSource) -> Path | None:
    """The file with the name of the `.pt2` that a compressed file was made from, in the same folder."""
    name = source.manifest["source"]["name"]
    if Path(name).name != name or not name.endswith(".pt2"):  # a manifest may say anything
        return None
    path = source.file.path.parent / name
    return path if path.is_file() else None


def _hint(source: Checkpoint) -> str:
    """How to say what the network is."""
    if isinstance(source, NativeSource) and source.manifest["source"]["name"].endswith(".pt2"):
        name = source.manifest["source"]["name"]
        if _beside(source) is None:
            return f"It was made from {inert(name)}: give that graph, as in --arch {inert(name)}"
        return f"It was made from another {inert(name)} than the one beside it: give that graph as --arch"
    told = _told_by(source)
    if told:
        return f"It was made with {told}: give that again"
    return (
        "Give one of: --arch file.py:Net | --arch package.module:factory, as in timm.models:resnet50 | "
        "--arch model.pt2, an exported graph (torch.export.save(torch.export.export(model, (x,)), 'model.pt2')) | "
        "--arch DIR, a Hugging Face directory"
    )


def _told_by(source: Checkpoint) -> str:
    """The `--arch` that a student of ours was made with, as text to show: no code from a file is ever run."""
    tree = source.outer.tree if source.outer else None
    note = tree.get(NOTE) if isinstance(tree, dict) else source.metadata.get(NOTE)
    try:
        recipe = parse(note) if isinstance(note, str) else None
    except NotStrict:
        return ""
    arch = recipe.get("arch") if isinstance(recipe, dict) else None
    return f"--arch {inert(arch, longest=200)}" if isinstance(arch, str) else ""


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
