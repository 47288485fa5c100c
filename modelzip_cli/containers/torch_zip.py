"""The zip format of torch 1.6 and later (`.pth`, `.pt`, `.bin`, `.ckpt`), read and written without torch.

Source: PyTorch, torch/serialization.py (`_save`, `_load`).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from modelzip_cli.containers.checksum import combine
from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.pickle_calls import STORAGES, BadPickle
from modelzip_cli.containers.pickle_reader import MOST_PICKLE, read_pickle
from modelzip_cli.containers.pickle_writer import write_pickle
from modelzip_cli.containers.safetensors_file import METADATA
from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.containers.streams import open_output
from modelzip_cli.containers.torch_file import Archive, contiguous_strides
from modelzip_cli.containers.tree import StorageRef, TensorRef, Weights
from modelzip_cli.containers.zip_file import TORCHSCRIPT, Entry, ZipWriter, check_crc
from modelzip_cli.errors import BrokenCheckpoint, UnsupportedCheckpoint, inert
from modelzip_cli.tensors import DType, TensorSpec

OTHERS = (  # (how a member's name ends, what such an archive is)
    ("constants.pkl", TORCHSCRIPT),
    ("serialized_exported_program.json", "a torch.export archive from before torch 2.8; export it again"),
    ("model.weights.h5", "a Keras model, not a torch checkpoint"),
    ("word/document.xml", "a Word document"),
)


def read_zip(file: SourceFile, entries: Mapping[str, Entry]) -> Archive:
    """Find data.pkl and the storages among the `entries` of a zip archive."""
    root = _find_root(file, entries)
    order = entries.get(f"{root}/byteorder")
    if order is not None and (order.size > 16 or file.read(order.offset, order.size) != b"little"):
        raise UnsupportedCheckpoint(f"{file.label}: written by a big-endian machine; save it again on another")
    entry = entries[f"{root}/data.pkl"]
    if entry.size > MOST_PICKLE:
        raise BrokenCheckpoint(f"{file.label}: data.pkl is larger than 256 MB")
    pickle = file.read(entry.offset, entry.size)
    check_crc(entry, pickle, f"{file.label}: data.pkl")
    try:
        tree = read_pickle(pickle)
    except BadPickle as error:
        raise BrokenCheckpoint(f"{file.label}: data.pkl: {inert(str(error), longest=200)}") from None
    folder = f"{root}/data/"
    storages = {name.removeprefix(folder): entry for name, entry in entries.items() if name.startswith(folder)}
    return Archive(tree, storages, hashlib.sha256(pickle).hexdigest())


def _find_root(file: SourceFile, entries: Mapping[str, Entry]) -> str:
    """The folder inside the archive that holds data.pkl; its name is not fixed."""
    for ending, what in OTHERS:
        if any(name.endswith(f"/{ending}") or name == ending for name in entries):
            raise UnsupportedCheckpoint(f"{file.label}: {what}")
    if any("/code/" in name for name in entries):
        raise UnsupportedCheckpoint(f"{file.label}: {TORCHSCRIPT}")
    if entries and all(name.endswith(".npy") for name in entries):
        raise UnsupportedCheckpoint(f"{file.label}: a NumPy .npz archive, not a torch checkpoint")
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1 or any(not name.startswith(f"{roots[0]}/") for name in entries):
        raise UnsupportedCheckpoint(f"{file.label}: a zip archive, but not one that torch wrote: no single data.pkl")
    return roots[0]


class TorchSink:
    """Writes tensors as zip entries one after the other; data.pkl and the directory come last."""

    container = "torch"

    def __init__(self, path: Path, *, replace: bool) -> None:
        self.output = open_output(path, replace=replace)
        self._zip = ZipWriter(self.output)
        self._specs: dict[str, TensorSpec] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._crc: dict[str, int] = {}

    def begin(self, spec: TensorSpec) -> None:
        if spec.dtype.torch is None:
            raise UnsupportedCheckpoint(f"tensor {inert(spec.name, longest=200)}: torch has no type for {spec.dtype}")
        self._places[spec.name] = self._zip.reserve(f"archive/data/{len(self._specs)}", spec.bytes)
        self._specs[spec.name] = spec
        self._crc[spec.name] = 0

    def write(self, name: str, offset: int, data: memoryview, crc: int) -> None:
        self.output.write(self._places[name][1] + offset, data)
        self._crc[name] = combine(self._crc[name], crc, data.nbytes)

    def resize(self, name: str, size: int) -> None:
        number = [*self._specs].index(name)
        self._zip.resize(f"archive/data/{number}", self._places[name], self._specs[name].bytes, size)
        self._specs[name] = replace(self._specs[name], shape=(size,))

    def finish(self, metadata: Mapping[str, str], outer: Outer | None) -> int:
        refs = {}
        for number, (name, spec) in enumerate(self._specs.items()):
            self._zip.finish_entry(f"archive/data/{number}", self._places[name][0], spec.bytes, self._crc[name])
            refs[name] = _reference(spec, str(number))
        if outer is None:
            outer = Outer(Weights("dict", ((0, METADATA, dict(metadata)),)), tuple(refs))
        weights = {name: refs[outer.ties.get(name, name)] for name in outer.names}
        for entry, data in (
            ("data.pkl", write_pickle(outer.tree, refs, weights)),
            ("byteorder", b"little"),
            ("version", b"3\n"),
        ):
            self._zip.add(f"archive/{entry}", data, zlib.crc32(data))
        self._zip.finish()
        return self.output.sync()

    @property
    def pending(self) -> Path:
        return self.output.pending

    def commit(self) -> None:
        self.output.commit()

    def abort(self) -> None:
        self.output.abort()


TYPED_STORAGES: frozenset[DType] = frozenset(dtype for dtype in STORAGES.values() if dtype is not None)


def _reference(spec: TensorSpec, key: str) -> TensorRef:
    if spec.dtype in TYPED_STORAGES:
        storage = StorageRef(key, spec.dtype, spec.size)
    else:
        storage = StorageRef(key, None, spec.bytes)
    return TensorRef(storage, spec.dtype, 0, spec.shape, contiguous_strides(spec.shape))
