"""A Hugging Face directory: one model in one file or in shards, with its index and the files beside the weights.

Source: transformers, modeling_utils.py (`save_pretrained`, `get_checkpoint_shard_files`) for the names and the index;
huggingface_hub for its cache, where files are links to `../../blobs`. No code in a directory is ever imported.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.containers.strict_json import NotStrict, parse
from modelzip_cli.errors import BrokenCheckpoint, ModelzipError, UnsupportedCheckpoint, UsageError, inert
from modelzip_cli.tensors import TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits

NATIVE_INDEX = "modelzip.index.json"
NATIVE_SUFFIX = ".modelzip.safetensors"  # no loader takes such a file for a model: it would fill in random weights
INDEX_SUFFIX = ".index.json"
MOST_INDEX = 100_000_000
MOST_FILES, MOST_LEVELS = 10_000, 8  # of files beside the weights, and of folders in folders
SHARD = re.compile(r"-\d+-of-\d+(?=\.)")
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
NOT_THE_MODEL = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")  # what a trainer leaves beside it
OTHER_FRAMEWORKS = (".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite", ".gguf", ".keras")


@dataclass(frozen=True)
class ModelFolder:
    """The files of a directory: `shards` hold the weights, `others` are copied, `left_out` are not.

    `index` is the name of the index file, None for a model in one file; `weight_map` says which tensor is in which
    shard, None without an index. `metadata` is that of the index.
    """

    path: Path
    shards: tuple[str, ...]
    index: str | None = None
    weight_map: Mapping[str, str] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The path as messages show it."""
        return inert(str(self.path))

    @property
    def size(self) -> int:
        """Bytes of the files that hold the weights."""
        return sum((self.path / name).stat().st_size for name in self.shards)


def is_hugging_face(path: Path) -> bool:
    """Say whether a directory is one model with its configuration or its shards."""
    return (path / "config.json").is_file() or any(path.glob(f"*{INDEX_SUFFIX}"))


def list_model(path: Path) -> ModelFolder:
    """Find the weights in the directory at `path`, by its index where it has one, and the files beside them.

    Raises BrokenCheckpoint for an index that is not one, UsageError where several files could be the model.
    """
    label = inert(str(path))
    names = sorted(name for name in os.listdir(path) if (path / name).is_file())
    index = _choose_index(names, label)
    weight_map: dict[str, str] | None = None
    metadata: dict[str, Any] = {}
    if index is not None:
        weight_map, metadata, native_of = _read_index(path / index)
        shards = tuple(sorted(set(weight_map.values())))
        missing = [name for name in shards if name not in names]
        if missing:
            raise BrokenCheckpoint(f"{label}: {inert(index)} names {inert(missing[0])}, which is not there")
        kin = {SHARD.sub("#", name) for name in shards if SHARD.search(name)}
        unnamed = [name for name in names if SHARD.sub("#", name) in kin and name not in shards]
        if unnamed:
            raise BrokenCheckpoint(f"{label}: {inert(unnamed[0])} is there, but {inert(index)} does not name it")
        if index == NATIVE_INDEX:
            others, left_out = _beside(path, {*shards, index})
            return ModelFolder(path, shards, native_of, weight_map, metadata, others, left_out)
    else:
        shards = (_choose_file(names, label),)
    others, left_out = _beside(path, {*shards, *([index] if index else ())})
    return ModelFolder(path, shards, index, weight_map, metadata, others, left_out)


def _choose_index(names: list[str], label: str) -> str | None:
    if NATIVE_INDEX in names:
        return NATIVE_INDEX
    for suffix, usual in ((".safetensors", "model"), (".bin", "pytorch_model")):
        found = [name for name in names if name.endswith(suffix + INDEX_SUFFIX)]
        if f"{usual}{suffix}{INDEX_SUFFIX}" in found:
            return f"{usual}{suffix}{INDEX_SUFFIX}"
        if len(found) > 1:
            raise UsageError(f"{label}: has {len(found)} indexes, such as {inert(found[0])}; keep one")
        if found:
            return found[0]
        if any(name.endswith(suffix) and not name.startswith(NOT_THE_MODEL) for name in names):
            return None
    return None


def _choose_file(names: list[str], label: str) -> str:
    for suffix, usual in ((".safetensors", "model"), (".bin", "pytorch_model"), (WEIGHTS[2:], "model")):
        found = [name for name in names if name.endswith(suffix) and not name.startswith(NOT_THE_MODEL)]
        if f"{usual}{suffix}" in found:
            return f"{usual}{suffix}"
        if len(found) > 1:
            raise UsageError(
                f"{label}: has {len(found)} {suffix} files and no index; give one of them: "
                + ", ".join(map(inert, found[:4]))
            )
        if found:
            return found[0]
    raise UnsupportedCheckpoint(f"{label}: a Hugging Face directory without weights (.safetensors or .bin)")


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, Any], str | None]:
    """Weight map, metadata and, of a native directory, the name that the index of its source had."""
    file = SourceFile(path)
    try:
        if file.size > MOST_INDEX:
            raise BrokenCheckpoint(f"{file.label}: the index is longer than 100 MB")
        index = parse(file.read(0, file.size))
    except NotStrict as error:
        raise BrokenCheckpoint(f"{file.label}: not JSON: {inert(str(error), longest=200)}") from None
    finally:
        file.close()
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    metadata, source = (index.get("metadata", {}), index.get("index")) if isinstance(index, dict) else ({}, None)
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
        raise BrokenCheckpoint(f"{file.label}: not an index: it has no weight_map")
    for name in (*weight_map.values(), *([source] if source is not None else ())):
        if not is_plain_name(name):
            raise BrokenCheckpoint(f"{file.label}: {inert(str(name), longest=200)!r} is not the name of a file in it")
    return weight_map, metadata, source


def is_plain_name(name: object) -> bool:
    """Say whether `name` is that of a file in a folder: no path, nothing hidden, text that a file can be called."""
    if not isinstance(name, str) or not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
        return False
    return len(name.encode("utf-8", "replace")) <= 255 and name.isprintable()


def _beside(path: Path, taken: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files to copy and those to leave out, as paths relative to the directory.

    Left out: weights in other formats and what a trainer keeps, which would be large and stale; hidden files; links
    that lead out of the directory and the hub's cache.
    """
    others, left_out = [], []
    for relative in _walk(path, "", 0):
        name = relative.rsplit("/", 1)[-1]
        if relative in taken:
            continue
        stale = "/" not in relative and (name.endswith(WEIGHTS) or name.endswith(INDEX_SUFFIX))
        if stale or name.endswith(OTHER_FRAMEWORKS) or not _stays_inside(path, path / relative):
            left_out.append(relative)
        else:
            others.append(relative)
    if len(others) > MOST_FILES:
        raise UsageError(f"{inert(str(path))}: has more than {MOST_FILES:,} files beside the weights")
    return tuple(others), tuple(left_out)


def _walk(path: Path, below: str, level: int) -> Iterator[str]:
    try:
        with os.scandir(path / below) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ModelzipError(f"{inert(str(path / below))}: cannot read: {error.strerror}") from error
    for entry in found:
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        if entry.is_dir(follow_symlinks=False):
            if level < MOST_LEVELS:
                yield from _walk(path, f"{below}{entry.name}/", level + 1)
        elif not os.path.isdir(entry.path):  # entry.is_dir() raises for a link to itself
            yield f"{below}{entry.name}"


def _stays_inside(folder: Path, path: Path) -> bool:
    """Whether a file is a regular one in `folder`, or in the cache of the hub that `folder` is a snapshot of."""
    root = folder.resolve()
    model = root.parent.parent
    in_cache = root.parent.name == "snapshots" and model.name.startswith("models--")
    roots = [root, model / "blobs"] if in_cache else [root]
    try:
        target = path.resolve(strict=True)
        return stat.S_ISREG(target.stat().st_mode) and any(target.is_relative_to(allowed) for allowed in roots)
    except (OSError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
        return False


class HfDirectory:
    """All shards of a directory as one checkpoint. Index and shards must agree both ways."""

    container = "hf-directory"
    beside: Mapping[str, TensorSpec]

    def __init__(self, folder: ModelFolder, open_shard: Callable[[Path], Any]) -> None:
        self.file = folder
        self.shards: dict[str, Any] = {}
        try:
            for name in folder.shards:
                self.shards[name] = open_shard(folder.path / name)
            self._check_index()
        except BaseException:
            self.close()
            raise
        self.rewritten: Mapping[str, str] = {}  # new texts of files beside the weights
        self.compressed = all(shard.compressed for shard in self.shards.values())
        self.metadata: Mapping[str, str] = {}
        self.sha256 = hashlib.sha256("".join(shard.sha256 for shard in self.shards.values()).encode()).hexdigest()
        self.warnings = tuple(warning for shard in self.shards.values() for warning in shard.warnings)
        if folder.left_out:
            names = ", ".join(map(inert, folder.left_out[:4])) + (", ..." if len(folder.left_out) > 4 else "")
            self.warnings += (f"not copied, not the weights that were read: {names}",)
        self._gather()

    def _gather(self) -> None:
        """What all shards hold together."""
        shards = self.shards.values()
        self._shard_of = {name: shard for shard in shards for name in shard.specs}
        self.specs = {name: spec for shard in shards for name, spec in shard.specs.items()}
        self.beside = {name: spec for shard in shards for name, spec in shard.beside.items()}
        self._shard_of |= {name: shard for shard in shards for name in shard.beside}
        self.outer: Outer | None = None
        if any(shard.outer for shard in shards):
            ties = {name: owner for shard in shards if shard.outer for name, owner in shard.outer.ties.items()}
            self.outer = Outer.flat(tuple(self.specs), ties)

    def with_shards(self, change: Callable[[Any], Any]) -> HfDirectory:
        """The same directory with every shard changed, and without those that then hold nothing."""
        changed = copy(self)
        changed.shards = {name: shard for name, each in self.shards.items() if (shard := change(each)).specs}
        changed._gather()
        return changed

    def read(self, name: str, start: int, stop: int) -> Bits:
        bits: Bits = self._shard_of[name].read(name, start, stop)
        return bits

    def finish(self) -> None:
        for shard in self.shards.values():
            shard.finish()

    def close(self) -> None:
        for shard in self.shards.values():
            shard.close()

    def _check_index(self) -> None:
        """Raise BrokenCheckpoint where index and shards, or two shards, disagree."""
        label, weight_map = self.file.label, self.file.weight_map
        found: dict[str, str] = {}
        for shard, source in self.shards.items():
            for name in source.specs:
                what = f"{label}: tensor {inert(name, longest=200)}"
                if name in found:
                    raise BrokenCheckpoint(f"{what} is both in {inert(found[name])} and in {inert(shard)}")
                found[name] = shard
                if weight_map is not None and weight_map.get(name) != shard:
                    where = inert(weight_map[name]) if name in weight_map else "nowhere"
                    raise BrokenCheckpoint(f"{what} is in {inert(shard)}, but in the index it is {where}")
        for name, shard in (weight_map or {}).items():
            if name not in found:
                raise BrokenCheckpoint(
                    f"{label}: tensor {inert(name, longest=200)} should be in {inert(shard)}, but is not there"
                )
