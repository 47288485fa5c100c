"""Torch files (`.pth`, `.pt`, `.bin`, `.ckpt`): the zip format of torch 1.6 and later, read and written without torch.

Source: PyTorch, torch/serialization.py (`_save`, `_load`) and torch/_utils.py (`_rebuild_tensor_v2`, `_v3`).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelzip_cli.containers.atomic import AtomicFile
from modelzip_cli.containers.checksum import combine
from modelzip_cli.containers.ledger import Ledger
from modelzip_cli.containers.nesting import take_apart
from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.pickle_reader import STORAGES, BadPickle, read_pickle
from modelzip_cli.containers.pickle_writer import write_pickle
from modelzip_cli.containers.safetensors_file import METADATA
from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.containers.tree import StorageRef, TensorRef, Tree, Weights
from modelzip_cli.containers.zip_file import Entry, ZipWriter, read_directory
from modelzip_cli.errors import BrokenCheckpoint, UnsupportedCheckpoint, inert
from modelzip_cli.tensors import DType, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from modelzip_cli.tensors import Bits

MOST_PICKLE = 256 << 20
MOST_REPEATED = 4, 64 << 20  # logical bytes of all tensors: this many file sizes and this many bytes more
WASTE = 4  # a strided read may fetch this many times what it needs, or
SMALL_READ = 64 << 10  # this many bytes, before it is split


class TorchFile:
    """A torch file as named tensors. All geometry is checked against the storages before anything is read."""

    container = "torch"
    compressed = False

    def __init__(self, file: SourceFile, *, key: str | None = None, keep_extras: bool = False) -> None:
        self.file = file
        self._entries = read_directory(file)
        self._root = self._find_root()
        self._check_byte_order()
        pickle = self._read_pickle()
        self.sha256 = hashlib.sha256(pickle).hexdigest()
        try:
            tree = read_pickle(pickle)
        except BadPickle as error:
            raise BrokenCheckpoint(f"{file.label}: data.pkl: {inert(str(error), longest=200)}") from None
        nested = take_apart(tree, label=file.label, key=key, keep_extras=keep_extras)
        self._tensors = dict(nested.weights)
        beside = {}
        for name, tensor in nested.beside.items():
            beside[name] = self._tensors[name] = tensor
        for name, tensor in self._tensors.items():
            self._check_geometry(name, tensor)
        self._check_repetition()
        self.specs = {name: TensorSpec(name, ref.dtype, ref.shape) for name, ref in nested.weights.items()}
        self.beside = {name: TensorSpec(name, ref.dtype, ref.shape) for name, ref in beside.items()}
        self.outer: Outer | None = Outer(nested.tree, tuple(nested.weights), _ties(nested.weights))
        self.metadata = _our_metadata(nested.tree)
        self.state_dict = nested.path
        self.warnings = _warnings(nested.opaque)
        self._ledger = Ledger()

    def read(self, name: str, start: int, stop: int) -> Bits:
        import numpy as np

        tensor = self._tensors[name]
        entry = self._entries[f"{self._root}/data/{tensor.storage.key}"]
        unit, width = tensor.dtype.unit, tensor.dtype.bits // 8
        first, last = start * tensor.dtype.unit_bytes, stop * tensor.dtype.unit_bytes
        if not _is_contiguous(tensor):
            flat = self._read_rows(entry, tensor, first // width, -(-last // width))
            skipped = first % width  # of an element wider than its unit
            return flat[skipped : skipped + last - first].view(unit)
        begin = tensor.offset * width
        data = self.file.read(entry.offset + begin + first, last - first)
        self._ledger.note(entry.name, begin + first, data)
        return np.frombuffer(data, unit)

    def finish(self) -> None:
        """Check the CRC of every storage that was read, then that the file did not change."""
        for name in self._ledger.names():
            entry = self._entries[name]
            if entry.crc and self._ledger.crc(name, entry.size, partial(self._read_entry, entry)) != entry.crc:
                raise BrokenCheckpoint(
                    f"{self.file.label}: tensor {inert(self._tensor_of(name))}: its checksum does not match: "
                    "the file is damaged"
                )
        self.file.check_unchanged()

    def close(self) -> None:
        self.file.close()

    def _read_entry(self, entry: Entry, begin: int, end: int) -> bytes:
        return self.file.read(entry.offset + begin, end - begin)

    def _find_root(self) -> str:
        """The folder inside the archive that holds data.pkl; its name is not fixed."""
        roots = [
            name[: -len("/data.pkl")] for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        names = set(self._entries)
        if any(name.endswith("/constants.pkl") for name in names) or any("/code/" in name for name in names):
            raise UnsupportedCheckpoint(
                f"{self.file.label}: a TorchScript archive, which holds code; save the state dict of the model instead"
            )
        if names and all(name.endswith(".npy") for name in names):
            raise UnsupportedCheckpoint(f"{self.file.label}: a NumPy .npz archive, not a torch checkpoint")
        if any(name.endswith("/models/model.json") for name in names):
            raise UnsupportedCheckpoint(
                f"{self.file.label}: a torch.export archive (.pt2); this version does not read it"
            )
        if len(roots) != 1 or any(not name.startswith(f"{roots[0]}/") for name in names):
            raise UnsupportedCheckpoint(
                f"{self.file.label}: a zip archive, but not one that torch wrote: no single data.pkl"
            )
        return roots[0]

    def _check_byte_order(self) -> None:
        entry = self._entries.get(f"{self._root}/byteorder")
        if entry is not None and (entry.size > 16 or self.file.read(entry.offset, entry.size) != b"little"):
            raise UnsupportedCheckpoint(f"{self.file.label}: written by a big-endian machine; save it again on another")

    def _read_pickle(self) -> bytes:
        entry = self._entries[f"{self._root}/data.pkl"]
        if entry.size > MOST_PICKLE:
            raise BrokenCheckpoint(f"{self.file.label}: data.pkl is larger than 256 MB")
        data = self.file.read(entry.offset, entry.size)
        if entry.crc and zlib.crc32(data) != entry.crc:
            raise BrokenCheckpoint(f"{self.file.label}: data.pkl: its checksum does not match: the file is damaged")
        return data

    def _check_geometry(self, name: str, tensor: TensorRef) -> None:
        label = f"{self.file.label}: tensor {inert(name, longest=200)}"
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise BrokenCheckpoint(f"{label}: its name is not valid text") from None
        storage, width = tensor.storage, tensor.dtype.bits // 8
        entry = self._entries.get(f"{self._root}/data/{storage.key}")
        if entry is None:
            raise BrokenCheckpoint(f"{label}: its storage {inert(storage.key, longest=40)} is not in the file")
        declared = storage.numel * (1 if storage.dtype is None else storage.dtype.bits // 8)
        if declared != entry.size:
            raise BrokenCheckpoint(f"{label}: its storage should have {declared:,} bytes, the file has {entry.size:,}")
        if len(tensor.shape) != len(tensor.strides):
            raise BrokenCheckpoint(f"{label}: shape and strides differ in length")
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
        if prod(tensor.shape) and (tensor.offset + last + 1) * width > entry.size:
            raise BrokenCheckpoint(f"{label}: its shape and strides reach beyond its storage")

    def _check_repetition(self) -> None:
        """Views may repeat bytes, but not so often that a small file becomes a flood."""
        logical = sum(prod(ref.shape) * ref.dtype.bits // 8 for ref in set(self._tensors.values()))
        factor, more = MOST_REPEATED
        if logical > factor * self.file.size + more:
            raise BrokenCheckpoint(f"{self.file.label}: its tensors repeat {logical:,} bytes out of {self.file.size:,}")

    def _tensor_of(self, entry_name: str) -> str:
        return next(n for n, t in self._tensors.items() if f"{self._root}/data/{t.storage.key}" == entry_name)

    def _read_rows(self, entry: Entry, tensor: TensorRef, start: int, stop: int) -> NDArray[Any]:
        """Elements [start, stop) of a tensor with strides, in C order, as bytes: whole rows are read, then cut."""
        import numpy as np

        shape, strides = tensor.shape, tensor.strides
        while len(shape) > 1 and shape[0] == 1:
            shape, strides = shape[1:], strides[1:]
        per_row = prod(shape[1:])
        first, last = start // per_row, -(-stop // per_row)
        element = np.dtype(f"V{tensor.dtype.bits // 8}")
        begin = tensor.offset + first * strides[0]
        rows = self._gather(entry, element, begin, (last - first, *shape[1:]), strides)
        self._ledger.note(entry.name, 0, b"")
        return rows.reshape(-1)[start - first * per_row : stop - first * per_row].view(np.uint8)

    def _gather(
        self, entry: Entry, element: np.dtype[Any], begin: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> NDArray[Any]:
        """Read a strided view; split along its widest stride until what is fetched is mostly what is needed."""
        import numpy as np

        extent = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
        width = element.itemsize
        if extent * width <= max(SMALL_READ, WASTE * prod(shape) * width):
            data = np.frombuffer(self.file.read(entry.offset + begin * width, extent * width), element)
            view = np.lib.stride_tricks.as_strided(data, shape, [stride * width for stride in strides])
            return np.ascontiguousarray(view)
        out = np.empty(shape, element)
        axis = max((axis for axis, size in enumerate(shape) if size > 1), key=lambda axis: strides[axis])
        inner = (*shape[:axis], 1, *shape[axis + 1 :])
        for index in range(shape[axis]):
            place = (slice(None),) * axis + (slice(index, index + 1),)
            out[place] = self._gather(entry, element, begin + index * strides[axis], inner, strides)
        return out


def _is_contiguous(tensor: TensorRef) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != expected:
            return prod(tensor.shape) == 0
        expected *= size
    return True


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of a tensor in C order."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides)) if shape else ()


def _ties(weights: Mapping[str, TensorRef]) -> dict[str, str]:
    """Map every later name of the same view (storage, offset, shape, strides) to the first."""
    owners: dict[TensorRef, str] = {}
    ties = {}
    for name, ref in weights.items():
        owner = owners.setdefault(ref, name)
        if owner != name and 0 not in ref.shape:
            ties[name] = owner
    return ties


def _our_metadata(tree: Tree) -> dict[str, str]:
    """The text pairs that our own torch outputs keep under `__metadata__`."""
    others = {key: value for _, key, value in tree.others} if isinstance(tree, Weights) else {}
    found = others.get(METADATA)
    if not isinstance(found, dict) or not all(isinstance(item, str) for pair in found.items() for item in pair):
        return {}
    return found


def _warnings(opaque: list[str]) -> tuple[str, ...]:
    if not opaque:
        return ()
    shown = ", ".join(inert(name, longest=80) for name in opaque[:8]) + (", ..." if len(opaque) > 8 else "")
    kinds = "class was" if len(opaque) == 1 else "classes were"
    return (f"objects of {len(opaque)} other {kinds} not read and will be missing: {shown}",)


class TorchSink:
    """Writes tensors as zip entries one after the other; data.pkl and the directory come last."""

    container = "torch"

    def __init__(self, path: Path, *, replace: bool) -> None:
        self.output = AtomicFile(path, replace=replace)
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
