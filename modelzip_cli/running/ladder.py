"""From a file to a model that runs: the network comes from an exported graph, from `--arch`, or from beside the file.

A checkpoint holds weights; what is computed with them has to come from somewhere. In the order in which they are tried:
`--arch`; the graph in an exported `.pt2`; the configuration in a Hugging Face directory; the `.pt2` that a compressed
file was made from, where it still lies beside it; shapes that chain to a perceptron, where labels can tell which
activation it has. Names and shapes must fit exactly, and the first batch must run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from modelzip_cli import load_file
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.containers.strict_json import NotStrict, parse
from modelzip_cli.errors import FileNotThere, NoModel, UsageError, inert
from modelzip_cli.layouts.native_source import NativeSource
from modelzip_cli.running.architecture import build
from modelzip_cli.running.export import load_export
from modelzip_cli.running.graph import set_training
from modelzip_cli.running.hugging_face import open_hugging_face
from modelzip_cli.running.inputs import Wanted
from modelzip_cli.running.model import NOTE, Model, wanted_by
from modelzip_cli.running.perceptron import Perceptron, find_chain
from modelzip_cli.running.weights import load_weights
from modelzip_cli.source import Checkpoint, open_source


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
    same = (original.sha256, original.file.size) == (made_from.get("sha256"), made_from.get("bytes"))
    original.close()
    return path if same else None


def _beside(source: NativeSource) -> Path | None:
    """The file with the name of the `.pt2` that a compressed file was made from, in the same folder."""
    name = str(source.manifest["source"].get("name"))
    if Path(name).name != name or not name.endswith(".pt2"):  # a manifest may say anything
        return None
    path = source.file.path.parent / name
    return path if path.is_file() else None


def _hint(source: Checkpoint) -> str:
    """How to say what the network is."""
    if isinstance(source, NativeSource) and str(source.manifest["source"].get("name")).endswith(".pt2"):
        name = str(source.manifest["source"].get("name"))
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
    if not isinstance(recipe, dict) or not isinstance(recipe.get("arch"), str):
        return ""
    arguments = f" --arch-args '{json.dumps(recipe['arch_args'])}'" if recipe.get("arch_args") else ""
    return inert(f"--arch {recipe['arch']}{arguments}", longest=200)
