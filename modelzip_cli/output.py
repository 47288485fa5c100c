"""Where the result of a plan goes: a file, or the shards of a directory with their index and the files beside them."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from modelzip_cli import __version__
from modelzip_cli.compress import Outcome, widest_records
from modelzip_cli.containers.atomic import AtomicFolder, write_text
from modelzip_cli.containers.hf_directory import (
    NATIVE_INDEX,
    NATIVE_SUFFIX,
    HfDirectory,
    is_hugging_face,
    is_plain_name,
)
from modelzip_cli.containers.safetensors_file import SafetensorsFile, SafetensorsSink, fits, header_text
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.errors import BrokenCheckpoint, CannotWrite, OutputExists, OutputIsSource, UsageError, inert
from modelzip_cli.layouts.native import LOSSLESS, Record, build_manifest, header_record, manifest_metadata
from modelzip_cli.layouts.native_source import NativeSource
from modelzip_cli.plan import Plan, outer_of
from modelzip_cli.source import Checkpoint
from modelzip_cli.tensors import ArraySink, Sink, TensorSpec

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
SLACK = 1 << 20  # more than a coded part can be longer than what it codes: for the width of its numbers
PLAIN_METADATA = {"format": "pt"}  # what loaders of safetensors files expect of weights that came from torch


class Output(ArraySink, Protocol):
    """Takes the arrays of a plan and appears whole or not at all."""

    @property
    def pending(self) -> Path:
        """Where it lies before the commit."""

    def finish(self, outcome: Outcome) -> int:
        """Write what comes last; return the bytes of the files that hold the weights."""

    def commit(self) -> None:
        """Let it appear under its name."""

    def abort(self) -> None:
        """Leave nothing behind; without effect after the commit."""


def container_of(source: Path, output: Path) -> str:
    """The container that the name of an output asks for. Raises UsageError for one that is none."""
    if output == STANDARD or output.suffix == ".safetensors":
        return "safetensors"
    if output.suffix in TORCH_SUFFIXES:
        return "torch"
    if source != STANDARD and source.is_dir():
        return "hf-directory"
    raise UsageError(f"{inert(str(output))}: the suffix of an output says its container: {', '.join(SUFFIXES)}")


def file_container(source: Checkpoint, container: str, layout: str) -> str:
    """The container of the files of an output: those of a directory are like its source's, native ones safetensors."""
    if container != "hf-directory":
        return container
    assert isinstance(source, HfDirectory)
    return "safetensors" if layout == "native" else _original_container(next(iter(source.shards.values())))


def _original_container(shard: Checkpoint) -> str:
    found = shard.manifest["source"]["container"] if isinstance(shard, NativeSource) else shard.container
    return "torch" if found == "torch" else "safetensors"


def check_output(source: Path, output: Path, *, force: bool, dry_run: bool, make_folders: bool) -> None:
    """Refuse, before any work, an output that would harm something or cannot be made."""
    if output == STANDARD:
        if os.isatty(1) and not dry_run:
            raise UsageError("standard output is a terminal; redirect it or name a file with -o")
        return
    shown = inert(str(output))
    if output.exists() and source.exists() and output.samefile(source):
        raise OutputIsSource(f"{shown} is the source itself; sources are never changed: choose another -o")
    if (output.exists() or output.is_symlink()) and not (force or dry_run):
        raise OutputExists(f"{shown} exists; -f replaces it")
    if source.is_dir() and output.suffix not in (*SUFFIXES, ".pt2"):
        _check_folder(source, output, shown)
    elif output.exists() and not output.is_file():
        raise UsageError(f"{shown} is not a regular file")
    if len(os.fsencode(output.name)) > 255:
        raise UsageError(f"{shown}: the name is longer than 255 bytes")
    if not output.parent.is_dir() and not make_folders:
        raise CannotWrite(f"{shown}: the folder {inert(str(output.parent))} does not exist")


def _check_folder(source: Path, output: Path, shown: str) -> None:
    """A directory may replace only what is certainly a model, and may not lie inside its source or around it."""
    real, other = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    if real.is_relative_to(other) or other.is_relative_to(real):
        raise OutputIsSource(f"{shown}: lies inside the source or around it; choose another -o")
    if output.exists() and not (output.is_dir() and not output.is_symlink()):
        raise UsageError(f"{shown} is not a directory, but the output is one")
    if output.exists() and not is_hugging_face(output) and any(output.iterdir()):
        raise UsageError(f"{shown} is a directory that holds no model: remove it yourself, or choose another -o")


def open_output(plan: Plan, source: Checkpoint, path: Path, container: str, *, replace: bool) -> Output:
    """Begin the output of `plan` at `path`."""
    if container == "hf-directory":
        assert isinstance(source, HfDirectory)
        return DirectoryOutput(plan, source, path, replace=replace)
    return FileOutput(plan, source, path, replace=replace)


class FileOutput:
    """One file."""

    def __init__(self, plan: Plan, source: Checkpoint, path: Path, *, replace: bool) -> None:
        self._plan, self._source = plan, source
        self._header = kept_header(plan, source)
        self._sink: Sink
        if plan.container == "torch":
            from modelzip_cli.containers.torch_zip import TorchSink

            self._sink = TorchSink(path, replace=replace)
        else:
            self._sink = SafetensorsSink(
                path,
                replace=replace,
                header_bytes=header_bytes(plan, source, self._header),
                header=_original_header(plan, source),
            )

    def begin(self, spec: TensorSpec) -> None:
        self._sink.begin(spec)

    def write(self, name: str, offset: int, data: memoryview, crc: int) -> None:
        self._sink.write(name, offset, data, crc)

    def resize(self, name: str, size: int) -> None:
        self._sink.resize(name, size)

    def finish(self, outcome: Outcome) -> int:
        outer = self._plan.outer if self._plan.layout == "dense" else None
        record = None
        if self._header:
            record, stream = self._header
            (part,) = record.parts
            self._sink.begin(part.spec)
            self._sink.write(part.spec.name, 0, memoryview(stream), zlib.crc32(stream))
        return self._sink.finish(output_metadata(self._plan, self._source, outcome, record), outer)

    @property
    def pending(self) -> Path:
        return self._sink.pending

    def commit(self) -> None:
        self._sink.commit()

    def abort(self) -> None:
        self._sink.abort()


class DirectoryOutput:
    """One file for each shard of the source, an index, and copies of the files beside the weights."""

    def __init__(self, plan: Plan, source: HfDirectory, path: Path, *, replace: bool) -> None:
        self._plan, self._source = plan, source
        self._folder = AtomicFolder(path, replace=replace)
        self._files: dict[str, FileOutput] = {}
        self._file_of: dict[str, FileOutput] = {}
        try:
            for shard, part in shard_plans(plan, source):
                name = shard_name(shard, plan.layout)
                if name in self._files:
                    raise UsageError(f"{source.file.label}: two shards would be called {inert(name)}")
                file = FileOutput(part, shard, self._folder.inside(name), replace=False)
                self._files[name] = file
                self._file_of |= {stored.spec.name: file for tensor in part.tensors for stored in tensor.parts}
        except BaseException:
            self.abort()
            raise

    def begin(self, spec: TensorSpec) -> None:
        self._file_of[spec.name].begin(spec)

    def write(self, name: str, offset: int, data: memoryview, crc: int) -> None:
        self._file_of[name].write(name, offset, data, crc)

    def resize(self, name: str, size: int) -> None:
        self._file_of[name].resize(name, size)

    def finish(self, outcome: Outcome) -> int:
        size = sum(file.finish(outcome) for file in self._files.values())
        for file in self._files.values():
            file.commit()
        self._write_index()
        for name in self._source.file.others:
            if name in self._source.rewritten:
                write_text(self._folder.inside(name), self._source.rewritten[name], replace=False)
            else:
                self._folder.copy(self._source.file.path / name, name)
        return size

    @property
    def pending(self) -> Path:
        return self._folder.pending

    def commit(self) -> None:
        self._folder.commit()

    def abort(self) -> None:
        for file in self._files.values():
            file.abort()
        self._folder.abort()

    def _write_index(self) -> None:
        folder, native = self._source.file, self._plan.layout == "native"
        if folder.index is None and not native:
            return  # one file needs none
        weight_map: dict[str, str] = {}
        total = 0
        for (_, part), name in zip(shard_plans(self._plan, self._source), self._files, strict=True):
            names = part.outer.names if part.outer else [tensor.spec.name for tensor in part.tensors]
            weight_map |= dict.fromkeys(names, name)
            total += part.stored_bytes
        metadata = dict(folder.metadata) if native else {**folder.metadata, "total_size": total}
        index: dict[str, Any] = {"metadata": metadata, "weight_map": weight_map}
        if native:
            index["index"] = folder.index
        text = json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_text(self._folder.inside(NATIVE_INDEX if native else str(folder.index)), text, replace=False)


def shard_plans(plan: Plan, source: HfDirectory) -> list[tuple[Checkpoint, Plan]]:
    """The shards of a directory, each with its part of the plan."""
    tensors = {tensor.spec.name: tensor for tensor in plan.tensors}
    dropped = {spec.name: spec for spec in plan.dropped}
    parts = []
    for shard in source.shards.values():
        own = tuple(tensors[name] for name in (*shard.specs, *shard.beside) if name in tensors)
        parts.append(
            (
                shard,
                replace(
                    plan,
                    tensors=own,
                    dropped=tuple(dropped[name] for name in shard.beside if name in dropped),
                    outer=outer_of(shard, plan.layout, plan.container)[0],
                    metadata=shard.metadata,
                ),
            )
        )
    return parts


def shard_name(shard: Checkpoint, layout: str) -> str:
    """What the file of a shard is called: its old name in the dense layout, one that no loader takes in the native."""
    name = shard.manifest["source"]["name"] if isinstance(shard, NativeSource) else shard.file.path.name
    stem, suffix = os.path.splitext(str(name).replace(NATIVE_SUFFIX, ".safetensors"))
    name = f"{stem}{NATIVE_SUFFIX if layout == 'native' else suffix}"
    if not is_plain_name(name):
        raise BrokenCheckpoint(f"{shard.file.label}: its source has no name that a file can have: {inert(name)!r}")
    return name


def kept_header(plan: Plan, source: Checkpoint) -> tuple[Record, bytes] | None:
    """The header of a safetensors source, where all of it is kept bit by bit, so that the file comes back whole."""
    if plan.layout != "native" or plan.recipe.scheme != LOSSLESS or not isinstance(source, SafetensorsFile):
        return None
    return header_record(source.header, {part.spec.name for tensor in plan.tensors for part in tensor.parts})


def _original_header(plan: Plan, source: Checkpoint) -> bytes | None:
    """The header to write again: that of the source's own source, where nothing but that is restored."""
    changed = any(tensor.scheme or tensor.tie for tensor in plan.tensors)
    if plan.command != "restore" or changed or not isinstance(source, NativeSource) or source.header is None:
        return None
    if not fits(source.header, source.specs):
        raise BrokenCheckpoint(f"{source.label}: the header that it keeps is not that of its tensors")
    return source.header


def output_metadata(
    plan: Plan, source: Checkpoint, outcome: Outcome | None, header: Record | None = None
) -> dict[str, str]:
    """The text pairs of the output: those of the source and, in the native layout, the manifest.

    Without `outcome`, texts as long as any that the run can end in.
    """
    if plan.layout == "dense":
        return dict(plan.metadata or PLAIN_METADATA)
    manifest = build_manifest(
        modelzip=__version__,
        recipe=plan.recipe.to_json(),
        source={
            "name": source.file.path.name.encode("utf-8", "replace").decode(),
            "container": source.container,
            "bytes": source.file.size,
            "sha256": source.sha256,
            **({"header": header.to_json()} if header else {}),
        },
        outer=plan.outer,
        metadata=plan.metadata,
        dropped=[spec.name for spec in plan.dropped],
        records=outcome.records(plan) if outcome else widest_records(plan),
        tables=plan.tables,
        aid=plan.aid,
    )
    return {**plan.metadata, **manifest_metadata(manifest)}


def header_bytes(plan: Plan, source: Checkpoint, header: tuple[Record, bytes] | None) -> int:
    """Space for the header of a safetensors output: enough for any figures."""
    specs = [
        part.sized(tensor.spec.bytes + SLACK).spec if part.coded else part.spec
        for tensor in plan.tensors
        if not tensor.tie
        for part in tensor.parts
    ]
    record = header[0] if header else None
    specs += [part.spec for part in record.parts] if record else []
    return len(header_text(specs, output_metadata(plan, source, None, record)).encode())


def planned_size(plan: Plan, source: Checkpoint, container: str) -> int:
    """Bytes of the output's files: exact for safetensors; a torch file adds some 150 bytes a tensor."""
    if container == "hf-directory":
        assert isinstance(source, HfDirectory)
        return sum(_planned_file(part, shard) for shard, part in shard_plans(plan, source))
    return _planned_file(plan, source)


def _planned_file(plan: Plan, source: Checkpoint) -> int:
    if plan.container == "safetensors":
        header = kept_header(plan, source)
        size = 8 + SafetensorsSink.reserved(header_bytes(plan, source, header)) + plan.stored_bytes
        return size + (len(header[1]) if header else 0)
    return plan.stored_bytes + len(output_metadata(plan, source, None)) + 256 * len(plan.tensors)
