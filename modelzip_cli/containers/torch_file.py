"""Torch files as named tensors, whichever of torch's formats holds them; no torch is needed.

`torch_zip.py`, `torch_legacy.py` and `torch_export.py` find the tree of values and the storages in a file; here a
tensor becomes a view of a storage. Source: PyTorch, torch/_utils.py (`_rebuild_tensor_v2`, `_v3`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from modelzip_cli.containers.ledger import Ledger
from modelzip_cli.containers.nesting import Nested, take_apart
from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.safetensors_file import METADATA
from modelzip_cli.containers.source_file import Readable, SourceFile
from modelzip_cli.containers.tree import TensorRef, Tree, Weights
from modelzip_cli.containers.zip_file import Entry
from modelzip_cli.errors import BrokenCheckpoint, inert
from modelzip_cli.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from modelzip_cli.tensors import Bits

MOST_REPEATED = 4, 64 << 20  # logical bytes of all tensors: this many file sizes and this many bytes more
WASTE = 4  # a strided read may fetch this many times what it needs, or
SMALL_READ = 64 << 10  # this many bytes, before it is split


@dataclass(frozen=True)
class Archive:
    """What a reader of one of torch's formats finds: a `tree` with `TensorRef`s, and the storages by key.

    `sha256` is that of the pickle, or of the JSON that stands for it.
    """

    tree: Tree
    storages: Mapping[str, Entry]
    sha256: str
    container: str = "torch"


class TorchFile:
    """A torch file as named tensors. All geometry is checked against the storages before anything is read."""

    compressed = False

    def __init__(
        self, file: SourceFile, archive: Archive, *, key: str | None = None, keep_extras: bool = False
    ) -> None:
        self.file = file
        self.container = archive.container
        self.sha256 = archive.sha256
        self._storages = archive.storages
        nested = take_apart(archive.tree, label=file.label, key=key, keep_extras=keep_extras)
        self._tensors = dict(nested.weights)
        beside = {}
        for name, tensor in nested.beside.items():
            beside[name] = self._tensors[name] = tensor
        for name, tensor in self._tensors.items():
            check_geometry(file.label, name, tensor, self._storages)
        check_repetition(file, self._tensors.values())
        self.specs = {name: TensorSpec(name, ref.dtype, ref.shape) for name, ref in nested.weights.items()}
        self.beside = {name: TensorSpec(name, ref.dtype, ref.shape) for name, ref in beside.items()}
        self.outer: Outer | None = Outer(nested.tree, tuple(nested.weights), ties_of(nested.weights))
        self.metadata = _our_metadata(nested.tree)
        self.state_dict = nested.path
        self.warnings = _warnings(nested)
        self._ledger = Ledger()

    def read(self, name: str, start: int, stop: int) -> Bits:
        import numpy as np

        tensor = self._tensors[name]
        key, entry = tensor.storage.key, self._storages[tensor.storage.key]
        unit, width = tensor.dtype.unit, tensor.dtype.bits // 8
        first, last = start * tensor.dtype.unit_bytes, stop * tensor.dtype.unit_bytes
        if not _is_contiguous(tensor):
            flat = self._read_rows(entry, tensor, first // width, -(-last // width))
            skipped = first % width  # of an element wider than its unit
            return flat[skipped : skipped + last - first].view(unit)
        begin = tensor.offset * width
        data = self.file.read(entry.offset + begin + first, last - first)
        if entry.crc:
            self._ledger.note(key, begin + first, data)
        return np.frombuffer(data, unit)

    def finish(self) -> None:
        """Check the CRC of every storage that was read, then that the file did not change."""
        for key in self._ledger.names():
            entry = self._storages[key]
            if entry.crc and self._ledger.crc(key, entry.size, partial(self._read_entry, entry)) != entry.crc:
                raise BrokenCheckpoint(
                    f"{self.file.label}: tensor {inert(self._tensor_of(key))}: its checksum does not match: "
                    "the file is damaged"
                )
        self.file.check_unchanged()

    def close(self) -> None:
        self.file.close()

    def _read_entry(self, entry: Entry, begin: int, end: int) -> bytes:
        return self.file.read(entry.offset + begin, end - begin)

    def _tensor_of(self, key: str) -> str:
        return next(name for name, tensor in self._tensors.items() if tensor.storage.key == key)

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
        self._ledger.note(tensor.storage.key, 0, b"")
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


def check_geometry(label: str, name: str, tensor: TensorRef, storages: Mapping[str, Entry]) -> None:
    """Raise BrokenCheckpoint unless the view lies in its storage; `label` and `name` are for the message."""
    label = f"{label}: tensor {inert(name, longest=200)}"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise BrokenCheckpoint(f"{label}: its name is not valid text") from None
    storage, width = tensor.storage, tensor.dtype.bits // 8
    entry = storages.get(storage.key)
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


def check_repetition(file: Readable, tensors: Iterable[TensorRef]) -> None:
    """Views may repeat bytes, but not so often that a small file becomes a flood. Raises BrokenCheckpoint."""
    logical = sum(prod(ref.shape) * ref.dtype.bits // 8 for ref in set(tensors))
    factor, more = MOST_REPEATED
    if logical > factor * file.size + more:
        raise BrokenCheckpoint(f"{file.label}: its tensors repeat {logical:,} bytes out of {file.size:,}")


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


def ties_of(weights: Mapping[str, TensorRef]) -> dict[str, str]:
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


def _warnings(nested: Nested) -> tuple[str, ...]:
    warnings = []
    for name in nested.modules:
        whole = inert(name, longest=80)
        warnings.append(f"the model was saved whole, as an object of class {whole}: only its state dict is taken")
    if nested.opaque:
        shown = ", ".join(inert(name, longest=80) for name in nested.opaque[:8])
        shown += ", ..." if len(nested.opaque) > 8 else ""
        kinds = "class was" if len(nested.opaque) == 1 else "classes were"
        warnings.append(f"objects of {len(nested.opaque)} other {kinds} not read and will be missing: {shown}")
    return tuple(warnings)
