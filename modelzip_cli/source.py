"""Open a checkpoint: find its container by content, then its layout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.safetensors_file import SafetensorsFile
from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.errors import BrokenCheckpoint, UnsupportedCheckpoint, UsageError, inert
from modelzip_cli.layouts.native_source import NativeSource, is_native
from modelzip_cli.tensors import Source, TensorSpec

FOREIGN = (  # (first bytes, what such a file is); most "corrupt checkpoints" are one of these
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "gzip-compressed; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; unpack it first"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"<!DOCTYPE", "an HTML page: the download went wrong"),
    (b"<!doctype", "an HTML page: the download went wrong"),
    (b"<html", "an HTML page: the download went wrong"),
)
LEGACY_TORCH = (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",)  # the magic number of torch before 1.6, pickled
ACCEPTED = "modelzip reads .safetensors and torch zip files (.pth, .pt, .bin, .ckpt)"


class Checkpoint(Source, Protocol):
    """An open checkpoint: a source of weights and what is known around them.

    `specs` are the weights; `beside` other tensors, such as optimizer state; `outer` what a torch file has around its
    state dict. `compressed`: modelzip wrote it, and reading decodes. `sha256` is that of the header or the pickle.
    """

    file: SourceFile
    container: str
    compressed: bool
    sha256: str
    outer: Outer | None
    warnings: tuple[str, ...]

    @property
    def beside(self) -> Mapping[str, TensorSpec]:
        """Tensors that are not weights, readable like them."""


def open_source(path: Path, *, key: str | None = None, keep_extras: bool = False) -> Checkpoint:
    """Open the checkpoint at `path`; a compressed one reads as the weights that it stands for.

    Raises BrokenCheckpoint for a damaged file, UnsupportedCheckpoint for another kind of file, UnsafeInput where only
    code from the file could give the weights, UsageError for a directory or a `key` that names no state dict.
    """
    if os.path.isdir(path):
        raise UsageError(directory_message(path))
    file = SourceFile(path)
    try:
        container = _open_container(file, key, keep_extras)
        return NativeSource(container) if is_native(container.metadata) else container
    except BaseException:
        file.close()
        raise


def _open_container(file: SourceFile, key: str | None, keep_extras: bool) -> Checkpoint:
    start = file.read(0, min(file.size, 32))
    if not start:
        raise BrokenCheckpoint(f"{file.label}: the file is empty")
    if start.startswith(b"PK\x03\x04"):
        from modelzip_cli.containers.torch_file import TorchFile

        return TorchFile(file, key=key, keep_extras=keep_extras)
    length = int.from_bytes(start[:8], "little")
    is_header = start[8:9] == b"{" and 8 + length <= file.size  # a length may begin like the magic of another format
    for magic, what in FOREIGN:
        if start.startswith(magic) and not is_header:
            raise UnsupportedCheckpoint(f"{file.label}: {what}; {ACCEPTED}")
    if start.startswith(LEGACY_TORCH):
        raise UnsupportedCheckpoint(
            f"{file.label}: the torch format from before version 1.6; this version does not read it: "
            "load it and save it again with a newer torch"
        )
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and not is_header:
        raise UnsupportedCheckpoint(f"{file.label}: a bare pickle, not a checkpoint; {ACCEPTED}")
    if len(start) >= 9 and start[8:9] != b"{" and length > file.size:
        raise UnsupportedCheckpoint(f"{file.label}: not a checkpoint that modelzip knows; {ACCEPTED}")
    if key is not None:
        raise UsageError(f"{file.label}: --key chooses inside torch files; a safetensors file has no nesting")
    return SafetensorsFile(file)


def directory_message(path: Path) -> str:
    """Why a directory is not taken as it is, and what to do."""
    name = inert(str(path))
    if is_hugging_face(path):
        return f"{name}: a Hugging Face model directory; this version takes single files: name its .safetensors file"
    return f"{name}: a directory; name a file in it (in quantize and restore, -r takes every checkpoint in it)"


def is_hugging_face(path: Path) -> bool:
    """Say whether a directory is one model with its configuration or its shards."""
    return (path / "config.json").is_file() or any(path.glob("*.index.json"))
