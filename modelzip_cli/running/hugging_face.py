"""Models from Hugging Face directories: the class that the configuration names, with weights that we read ourselves.

Code from a directory is never run: a configuration that asks for its own classes (`auto_map`) is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modelzip_cli import load_file
from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.containers.strict_json import NotStrict, parse
from modelzip_cli.errors import BrokenCheckpoint, ModelDoesNotRun, UnsafeInput, UsageError, inert
from modelzip_cli.running.architecture import describe
from modelzip_cli.running.extras import require
from modelzip_cli.running.inputs import Images, Wanted
from modelzip_cli.running.model import Model
from modelzip_cli.running.tokenizer import open_tokenizer
from modelzip_cli.running.weights import Mismatch, does_not_fit
from modelzip_cli.source import open_source

CONFIG, PREPROCESSING = "config.json", "preprocessor_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and torch.compile
MOST_CONFIG = 10_000_000


def open_hugging_face(directory: Path, weights: Path, *, key: str | None = None) -> Model:
    """The model of `directory`'s configuration with the weights of the checkpoint at `weights`, `key` of a nested one.

    Raises MissingExtra without transformers, UsageError where it has no such class, UnsafeInput where only code from
    the directory would do, WrongArchitecture where the weights do not fit.
    """
    label = inert(str(directory))
    config = read_json(directory / CONFIG)
    _check_harmless(config, label)
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise UsageError(f"{label}: {CONFIG} names no architecture: give --arch file.py:Net")
    transformers = import_transformers(label)
    kind = _class_of(transformers, names[0], label)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise UsageError(f"{label}: transformers {transformers.__version__} has no {inert(names[0], longest=80)}")
    tensors = _without_wrappers(load_file(weights, key=key))
    try:
        settings = transformers.AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, use_cache=False
        )
        module, report = _load(kind, settings, tensors)
    except Exception as error:
        raise ModelDoesNotRun(f"{label}: transformers cannot build {inert(names[0])}: {describe(error)}") from error
    _check_fit(module, tensors, report, inert(str(weights)), f"{names[0]} of {label}")
    wanted = replace(
        _wanted(directory, config, settings, module), positions="CausalLM" in names[0] or "LMHead" in names[0]
    )
    _takes_positions(module, wanted)
    source = open_source(weights, key=key)
    size = source.file.size
    source.close()
    return Model(module, inert(str(weights)), f"{names[0]} of transformers", wanted, size)


def _check_harmless(config: Mapping[str, Any], label: str) -> None:
    """Raise UnsafeInput for a configuration that makes transformers run code from the directory or from the network."""
    if "auto_map" in config:
        raise UnsafeInput(
            f"{label}: its configuration asks for code that comes with it (auto_map); it was not run: download the "
            "class yourself and give --arch file.py:Net"
        )
    pending: list[object] = [config]
    while pending:
        value = pending.pop()
        pending += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for key, inner in value.items() if isinstance(value, dict) else ():
            if key.endswith("_implementation") and "/" in str(inner):
                raise UnsafeInput(
                    f"{label}: its configuration asks for code from the network ({inert(key)}: "
                    f"{inert(str(inner), longest=80)}); it was not run: take that line out of {CONFIG}"
                )


def import_transformers(label: str) -> Any:
    """The library, silent and kept from the network. Raises MissingExtra."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    require("transformers", "hf", label)
    transformers: Any = import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _load(kind: Any, settings: Any, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, Mapping[str, Any]]:
    """The model with our tensors, by the library's own loader, since it alone knows what older versions called them.

    What it reports: `missing_keys`, `unexpected_keys`, `mismatched_keys`. It is given no path, so it reads no file.
    """
    module, report = kind.from_pretrained(
        None,
        config=settings,
        state_dict=dict(tensors),
        torch_dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        local_files_only=True,
    )
    return module.float().eval(), report


def _without_wrappers(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors without the prefixes that wrappers of torch put before all names."""
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _check_fit(
    module: nn.Module, tensors: Mapping[str, Tensor], report: Mapping[str, Any], label: str, network: str
) -> None:
    """Raise WrongArchitecture for what the loader says did not fit."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    others = {name: tuple(found) for name, found, *_ in report["mismatched_keys"]}
    missing = tuple(name for name in wanted if name in report["missing_keys"])
    unexpected = tuple(sorted(report["unexpected_keys"]))
    misshapen = tuple((name, others[name], shape) for name, shape in wanted.items() if name in others)
    mismatch = Mismatch(missing, unexpected, misshapen)
    if any(mismatch):
        loaded = {name: shape for name, shape in wanted.items() if name not in missing}
        given = {name: tuple(tensors[name].shape) if name in tensors else () for name in unexpected}
        raise does_not_fit(mismatch, loaded | others | given, wanted, label, network)


def _class_of(transformers: Any, name: str, label: str) -> Any:
    """The class of that name, or None; the library imports it only now, and what it needs may be missing."""
    try:
        return getattr(transformers, name, None)
    except Exception as error:
        raise ModelDoesNotRun(f"{label}: transformers cannot import {inert(name)}: {describe(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises BrokenCheckpoint."""
    file = SourceFile(path)
    try:
        found = parse(file.read(0, min(file.size, MOST_CONFIG)))
    except NotStrict as error:
        raise BrokenCheckpoint(f"{file.label}: {inert(str(error), longest=200)}") from None
    finally:
        file.close()
    if not isinstance(found, dict):
        raise BrokenCheckpoint(f"{file.label}: is no JSON object")
    return found


def _wanted(directory: Path, config: Mapping[str, Any], settings: Any, module: nn.Module) -> Wanted:
    classes = _classes(config)
    if (directory / PREPROCESSING).is_file():
        channels = getattr(settings, "num_channels", 3)
        return Wanted(shape=(channels, None, None), images=_images(directory / PREPROCESSING), classes=classes)
    has_one = any((directory / name).is_file() for name in TOKENIZERS)
    tokenizer = open_tokenizer(str(directory)) if has_one else None
    return Wanted("tokens", inputs=2, tokenizer=tokenizer, context=_context(settings, module), classes=classes)


def _context(settings: Any, module: nn.Module) -> int | None:
    """The most tokens that a model takes. RoBERTa and its kin count positions from behind that of the padding."""
    most = getattr(settings, "max_position_embeddings", None)
    if not isinstance(most, int) or most <= 0:
        return None
    tables = [part for name, part in module.named_modules() if name.endswith("position_embeddings")]
    taken = [part.padding_idx + 1 for part in tables if isinstance(part, nn.Embedding) and part.padding_idx is not None]
    return most - max(taken, default=0)


def _classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    named = config.get("id2label")
    if not isinstance(named, dict) or set(named) != {str(place) for place in range(len(named))}:
        return None
    return tuple(str(named[str(place)]) for place in range(len(named)))


def _images(path: Path) -> Images:
    """What a preprocessor's configuration says of pictures. Raises BrokenCheckpoint."""
    config = read_json(path)
    try:
        normal = config.get("do_normalize", True)
        size = _edges(config.get("size"))
        crop = _edges(config.get("crop_size")) if config.get("do_center_crop", True) else None
        return Images(
            crop or size,
            tuple(map(float, config["image_mean"])) if normal and config.get("image_mean") else None,
            tuple(map(float, config["image_std"])) if normal and config.get("image_std") else None,
            min(crop) / min(size) if crop and size else float(config.get("crop_pct") or 1.0),
            PREPROCESSING,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BrokenCheckpoint(f"{inert(str(path))}: no preprocessing of pictures: {describe(error)}") from None


def _edges(size: Any) -> tuple[int, int] | None:
    """Height and width, of a number, of both, or of the shorter edge."""
    if not size:
        return None
    if not isinstance(size, dict):
        return int(size), int(size)
    height, width = (size[name] if name in size else size["shortest_edge"] for name in ("height", "width"))
    return int(height), int(width)


def _takes_positions(module: nn.Module, wanted: Wanted) -> None:
    """Let the model be called with tensors in order, as any other is: their names differ from class to class."""
    names = ("input_ids", "attention_mask") if wanted.kind == "tokens" else ("pixel_values",)

    def by_name(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        return (), {**dict(zip(names, arguments, strict=False)), **named}

    module.register_forward_pre_hook(by_name, with_kwargs=True)
