"""Open a checkpoint: find its container by content, then its layout."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from modelzip_cli.containers.hf_directory import NATIVE_INDEX, HfDirectory, is_hugging_face, list_model
from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.safetensors_file import SafetensorsFile
from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.errors import BrokenCheckpoint, ModelzipError, UnsupportedCheckpoint, UsageError, inert
from modelzip_cli.layouts.manifest import is_native
from modelzip_cli.layouts.native import DIGEST
from modelzip_cli.layouts.native_source import NativeSource
from modelzip_cli.tensors import Source, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits

FOREIGN = (  # (first bytes, what such a file is); most "corrupt checkpoints" are one of these
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "gzip-compressed; unpack it first"),
    (b"BZh", "bzip2-compressed; unpack it first"),
    (b"\xfd7zXZ", "xz-compressed; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; unpack it first"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"{", "a JSON text, not a checkpoint; of an index, give the directory that it is in"),
)
HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head)", re.IGNORECASE)
TAR_MAGIC = 257, b"ustar"
ONNX = re.compile(rb"\x08[\x01-\x20](?:\x12.[ -~]{3,}|[\x12\x1a\x22\x2a\x32\x3a])", re.DOTALL)
CTRANSLATE2 = re.compile(rb"[\x01-\x20]\0\0\0[\x02-\x40]\0[A-Z][A-Za-z0-9]+\0")
ACCEPTED = "modelzip reads .safetensors, files of torch (.pth, .pt, .bin, .ckpt, .pt2) and Hugging Face directories"


class Place(Protocol):
    """Where a checkpoint lies: a file, or a directory, whose `size` is that of the files with weights."""

    @property
    def path(self) -> Path: ...

    @property
    def label(self) -> str: ...

    @property
    def size(self) -> int: ...


class Checkpoint(Source, Protocol):
    """An open checkpoint: a source of weights and what is known around them.

    `specs` are the weights; `beside` other tensors, such as optimizer state; `outer` what a torch file has around its
    state dict. `compressed`: modelzip wrote it, and reading decodes. `sha256` is that of the header or the pickle.
    """

    container: str
    compressed: bool
    sha256: str
    outer: Outer | None
    warnings: tuple[str, ...]

    @property
    def file(self) -> Place:
        """Where it lies."""

    @property
    def beside(self) -> Mapping[str, TensorSpec]:
        """Tensors that are not weights, readable like them."""


class Overlay:
    """A checkpoint with other bits for some of its tensors; shapes and dtypes stay."""

    def __init__(self, source: Checkpoint, replaced: Mapping[str, Bits]) -> None:
        """`replaced`: raw units [units] by name."""
        self._source, self._replaced = source, replaced

    def read(self, name: str, start: int, stop: int) -> Bits:
        """The units [start, stop) of a tensor."""
        if name in self._replaced:
            return self._replaced[name][start:stop]
        return self._source.read(name, start, stop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def overlaid(source: Checkpoint, replaced: Mapping[str, Bits]) -> Checkpoint:
    """`source` with other bits for some tensors: the file, or every shard of a directory."""
    if not replaced:
        return source
    if isinstance(source, HfDirectory):
        return source.with_shards(lambda shard: Overlay(shard, replaced))
    return Overlay(source, replaced)


def open_source(path: Path, *, key: str | None = None, keep_extras: bool = False) -> Checkpoint:
    """Open the checkpoint at `path`, `-` being standard input; a compressed one reads as the weights it stands for.

    Raises BrokenCheckpoint for a damaged file, UnsupportedCheckpoint for another kind of file, UnsafeInput where only
    code from the file could give the weights, UsageError for other directories or a `key` that names no state dict.
    """
    if path != STANDARD and os.path.isdir(path):
        if not is_hugging_face(path):
            raise UsageError(directory_message(path))
        return HfDirectory(list_model(path), lambda shard: open_file(shard, key, keep_extras))
    return open_file(path, key, keep_extras)


def is_compressed(path: Path) -> bool:
    """Say whether modelzip wrote the checkpoint at `path`; False for what cannot be read.

    A torch file is opened only if its pickle has the key of a manifest in it: following a pickle takes milliseconds.
    """
    try:
        if path.is_dir():
            return (path / NATIVE_INDEX).is_file()
        file = SourceFile(path)
        try:
            if file.size >= 4 and file.read(0, 4) == b"PK\x03\x04":
                from modelzip_cli.containers.zip_file import read_directory

                pickles = [entry for name, entry in read_directory(file).items() if name.endswith("/data.pkl")]
                if not any(DIGEST.encode() in file.read(entry.offset, entry.size) for entry in pickles):
                    return False
        finally:
            file.close()
        source = open_source(path)
    except ModelzipError:
        return False
    source.close()
    return source.compressed


def check_new(source: Checkpoint, *, requantize: bool) -> None:
    """Refuse what was compressed before, unless that is what was asked for. Raises UsageError."""
    if source.compressed and not requantize:
        raise UsageError(
            f"{source.file.label}: compressed already; take what it was made from, or --requantize, which decodes it "
            "and compresses it again: both errors add up"
        )


def files_of(source: Checkpoint) -> tuple[Checkpoint, ...]:
    """The checkpoint itself, or the shards of a directory."""
    return tuple(source.shards.values()) if isinstance(source, HfDirectory) else (source,)


def open_file(path: Path, key: str | None, keep_extras: bool) -> Checkpoint:
    """Open a single file as `open_source` does."""
    file = SourceFile(path)
    try:
        container = _open_container(file, key, keep_extras)
        return NativeSource(container) if is_native(container.metadata) else container
    except BaseException:
        file.close()
        raise


def _open_container(file: SourceFile, key: str | None, keep_extras: bool) -> Checkpoint:
    start = file.read(0, min(file.size, 512))
    if not start:
        raise BrokenCheckpoint(f"{file.label}: the file is empty")
    if start.startswith(b"PK\x03\x04"):
        return _open_zip(file, key, keep_extras)
    length = int.from_bytes(start[:8], "little")
    is_header = start[8:9] == b"{" and 8 + length <= file.size  # a length may begin like the magic of another format
    if not is_header:
        if start[:1] == b"\x80":
            from modelzip_cli.containers.torch_file import TorchFile
            from modelzip_cli.containers.torch_legacy import is_legacy, read_legacy

            if is_legacy(start):
                return TorchFile(file, read_legacy(file), key=key, keep_extras=keep_extras)
        what = _foreign(start)
        if what is not None or (start[8:9] != b"{" and length > file.size):
            raise UnsupportedCheckpoint(f"{file.label}: {what or 'not a checkpoint that modelzip knows'}; {ACCEPTED}")
    if key is not None:
        raise UsageError(f"{file.label}: --key chooses inside torch files; a safetensors file has no nesting")
    return SafetensorsFile(file)


def _open_zip(file: SourceFile, key: str | None, keep_extras: bool) -> Checkpoint:
    from modelzip_cli.containers.torch_export import is_export, read_export
    from modelzip_cli.containers.torch_file import TorchFile
    from modelzip_cli.containers.torch_zip import read_zip
    from modelzip_cli.containers.zip_file import read_directory

    entries = read_directory(file)
    archive = read_export(file, entries) if is_export(entries) else read_zip(file, entries)
    return TorchFile(file, archive, key=key, keep_extras=keep_extras)


def _foreign(start: bytes) -> str | None:
    """What a file that is no checkpoint looks like from its first bytes."""
    for magic, what in FOREIGN:
        if start.startswith(magic):
            return what
    if HTML.match(start):
        return "an HTML page: the download went wrong"
    place, magic = TAR_MAGIC
    if start[place : place + len(magic)] == magic:
        return "a tar archive (torch 0.1 wrote such files); unpack it, or save it again with a newer torch"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a bare pickle, not a checkpoint"
    if ONNX.match(start):
        return "an ONNX model"
    if CTRANSLATE2.match(start):
        return "a CTranslate2 model"
    return None


def directory_message(path: Path) -> str:
    """Why a directory is not taken as it is, and what to do."""
    return (
        f"{inert(str(path))}: a directory, but no Hugging Face model; name a file in it "
        "(in quantize, prune, compress and restore, -r takes every checkpoint in it)"
    )
