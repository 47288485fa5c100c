"""A tree written as the pickle inside a torch file, protocol 2, in the opcodes that `weights_only=True` accepts."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from modelzip_cli.containers.pickle_calls import STORAGES
from modelzip_cli.containers.tree import Call, Global, Named, StorageRef, TensorRef, Tree, Weights, in_order

TYPED = {dtype: name for name, dtype in STORAGES.items() if dtype is not None}


def write_pickle(tree: Tree, tensors: Mapping[str, TensorRef], weights: Mapping[str, TensorRef]) -> bytes:
    """Return the pickle of `tree`.

    `Named` stands for one of `tensors`; `Weights` for the state dict that holds `weights`, in their order.
    """
    writer = _Writer(tensors, weights)
    writer.put(tree)
    return b"\x80\x02" + b"".join(writer.out) + b"."


class _Writer:
    def __init__(self, tensors: Mapping[str, TensorRef], weights: Mapping[str, TensorRef]) -> None:
        self.tensors, self.weights = tensors, weights
        self.out: list[bytes] = []

    def put(self, tree: Tree) -> None:
        """Emit the opcodes that leave `tree` on the stack."""
        if tree is None:
            self.out.append(b"N")
        elif isinstance(tree, bool):
            self.out.append(b"\x88" if tree else b"\x89")
        elif isinstance(tree, int):
            self.out.append(_integer(tree))
        elif isinstance(tree, float):
            self.out.append(b"G" + struct.pack(">d", tree))
        elif isinstance(tree, str):
            self.out.append(_text(tree))
        elif isinstance(tree, OrderedDict):
            self.ordered_dict(tree.items(), getattr(tree, "_metadata", None))
        elif isinstance(tree, dict):
            self.out.append(b"}")
            self.items(tree.items())
        elif isinstance(tree, list):
            self.out.append(b"](")
            self.each(tree)
            self.out.append(b"e")
        elif isinstance(tree, tuple):
            self.out.append(b"(")
            self.each(tree)
            self.out.append(b"t")
        elif isinstance(tree, (set, frozenset)):
            self.call(f"builtins.{type(tree).__name__}", [in_order(tree)])
        elif isinstance(tree, bytearray):
            self.call("builtins.bytearray", [bytes(tree)])
        elif isinstance(tree, bytes):
            self.call("_codecs.encode", [tree.decode("latin-1"), "latin1"])
        elif isinstance(tree, complex):
            self.call("builtins.complex", [tree.real, tree.imag])
        elif isinstance(tree, Global):
            self.name(tree.name)
        elif isinstance(tree, Call):
            self.call(tree.name, tree.arguments)
        elif isinstance(tree, Named):
            self.tensor(self.tensors[tree.name])
        elif isinstance(tree, TensorRef):
            self.tensor(tree)
        elif isinstance(tree, StorageRef):
            self.storage(tree)
        elif isinstance(tree, Weights):
            self.state_dict(tree)
        else:
            raise ValueError(f"{type(tree).__name__} has no place in a pickle")

    def each(self, values: Any) -> None:
        for value in values:
            self.put(value)

    def items(self, pairs: Any) -> None:
        self.out.append(b"(")
        for key, value in pairs:
            self.put(key)
            self.put(value)
        self.out.append(b"u")

    def name(self, name: str) -> None:
        module, _, attribute = name.rpartition(".")
        self.out.append(f"c{module}\n{attribute}\n".encode())

    def call(self, name: str, arguments: Any) -> None:
        self.name(name)
        self.put(tuple(arguments))
        self.out.append(b"R")

    def ordered_dict(self, pairs: Any, metadata: Tree) -> None:
        self.call("collections.OrderedDict", ())
        self.items(pairs)
        if metadata is not None:
            self.put({"_metadata": metadata})
            self.out.append(b"b")

    def state_dict(self, place: Weights) -> None:
        if place.kind == "tensor":
            (tensor,) = self.weights.values()
            self.tensor(tensor)
            return
        pairs: list[tuple[Tree, Tree]] = list(self.weights.items())
        for position, key, value in sorted(place.others, key=lambda other: other[0]):
            pairs.insert(position, (key, value))
        if place.kind == "OrderedDict":
            self.ordered_dict(pairs, place.metadata)
        else:
            self.out.append(b"}")
            self.items(pairs)

    def tensor(self, tensor: TensorRef) -> None:
        arguments = [tensor.storage, tensor.offset, tensor.shape, tensor.strides, False, OrderedDict()]
        if tensor.storage.dtype is not None:
            self.call("torch._utils._rebuild_tensor_v2", arguments)
        else:
            self.call("torch._utils._rebuild_tensor_v3", [*arguments, Global(f"torch.{tensor.dtype.torch}")])

    def storage(self, storage: StorageRef) -> None:
        kind = TYPED[storage.dtype] if storage.dtype is not None else "torch.storage.UntypedStorage"
        self.put(("storage", Global(kind), storage.key, "cpu", storage.numel))
        self.out.append(b"Q")


def _integer(value: int) -> bytes:
    if 0 <= value < 256:
        return bytes((0x4B, value))
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes((len(raw),)) + raw if len(raw) < 256 else b"\x8b" + struct.pack("<i", len(raw)) + raw


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw
