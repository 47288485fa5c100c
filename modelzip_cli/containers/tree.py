"""What a torch file holds beside its weights, as inert values, and the same as JSON.

A tree is made of None, bool, int, float, complex, str, bytes, bytearray, tuple, list, dict, OrderedDict, set,
frozenset and of the classes below. Nothing in it can run: `Call` and `Global` are names. Types survive the way
through JSON: int keys stay int, tuples stay tuples, floats keep all digits.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from modelzip_cli.tensors import DType

Tree = Any


@dataclass(frozen=True)
class Global:
    """The name of something in a Python module, such as `torch.float32`. Never imported."""

    name: str


@dataclass(frozen=True)
class Call:
    """A value that is written as a call of a well-known constructor: `torch.Size`, `torch.device`."""

    name: str
    arguments: tuple[Tree, ...]


@dataclass(eq=False)  # compared by identity, so that one may be a key
class Opaque:
    """An object of a class that we do not construct. `contents` are the values that came with it."""

    name: str
    contents: list[Tree] = field(default_factory=list)


@dataclass(frozen=True)
class StorageRef:
    """A storage of a torch file: entry `data/KEY`, `numel` elements of `dtype` (None: untyped, `numel` bytes)."""

    key: str
    dtype: DType | None
    numel: int


@dataclass(frozen=True)
class StorageView:
    """A part of a storage, as the oldest files name it: `numel` elements from element `offset` on."""

    storage: StorageRef
    offset: int
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage; `offset` and `strides` count elements of `dtype`."""

    storage: StorageRef
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Named:
    """In place of a tensor beside the weights: the name that it is read and written by."""

    name: str


@dataclass(frozen=True)
class Weights:
    """In place of the state dict. `kind` is dict, OrderedDict or tensor (the file is one bare tensor).

    `others` are its entries that are not tensors: (position, key, value). `metadata` is torch's `_metadata` attribute.
    """

    kind: str
    others: tuple[tuple[int, Tree, Tree], ...] = ()
    metadata: Tree = None


CALLS = frozenset({"torch.Size", "torch.device"})  # what Call may name
LIMIT_DEPTH = 200  # deeper than any real file, and below Python's recursion limit

TAG = "$"  # marks an object that is not a plain dict with text keys


def to_json(tree: Tree, depth: int = 0) -> Any:
    """Return `tree` as JSON values. Raises ValueError for what a tree cannot hold or for endless nesting."""
    if depth > LIMIT_DEPTH:
        raise ValueError("nested too deeply")

    def each(values: Any) -> list[Any]:
        return [to_json(value, depth + 1) for value in values]

    if tree is None or isinstance(tree, (bool, int)):
        return tree
    if isinstance(tree, str):
        return tree if _is_unicode(tree) else {TAG: "str", "hex": tree.encode("utf-8", "surrogatepass").hex()}
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else {TAG: "float", "value": repr(tree)}
    if isinstance(tree, list):
        return each(tree)
    if type(tree) is dict and all(isinstance(key, str) and _is_unicode(key) for key in tree) and TAG not in tree:
        return {key: to_json(value, depth + 1) for key, value in tree.items()}
    if type(tree) is dict:
        return {TAG: "dict", "items": [each(pair) for pair in tree.items()]}
    if isinstance(tree, OrderedDict):
        state = to_json(getattr(tree, "_metadata", None), depth + 1)
        return {TAG: "OrderedDict", "items": [each(pair) for pair in tree.items()], "metadata": state}
    if type(tree) is tuple:
        return {TAG: "tuple", "items": each(tree)}
    if isinstance(tree, (set, frozenset)):
        return {TAG: type(tree).__name__, "items": each(in_order(tree))}
    if isinstance(tree, (bytes, bytearray)):
        return {TAG: type(tree).__name__, "hex": tree.hex()}
    if isinstance(tree, complex):
        return {TAG: "complex", "parts": each([tree.real, tree.imag])}
    if isinstance(tree, Global):
        return {TAG: "global", "name": tree.name}
    if isinstance(tree, Call):
        return {TAG: "call", "name": tree.name, "arguments": each(tree.arguments)}
    if isinstance(tree, Named):
        return {TAG: "tensor", "name": tree.name}
    if isinstance(tree, Weights):
        others = [[position, *each((key, value))] for position, key, value in tree.others]
        return {TAG: "weights", "kind": tree.kind, "others": others, "metadata": to_json(tree.metadata, depth + 1)}
    raise ValueError(f"{type(tree).__name__} has no place in a tree")


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON as UTF-8 cannot hold."""
    return text.isascii() or text.encode("utf-8", "replace").decode() == text


def in_order(values: Iterable[Tree]) -> list[Tree]:
    """The values of a set in an order that does not depend on the hash seed of this process."""
    return sorted(values, key=lambda value: (type(value).__name__, repr(value)))


def from_json(value: Any) -> Tree:
    """Return the tree that `to_json` wrote. Raises ValueError or TypeError for anything else."""
    _check_depth(value, 0)
    return _from_json(value)


def _check_depth(value: Any, depth: int) -> None:
    if depth > LIMIT_DEPTH:
        raise ValueError("nested too deeply")
    for inside in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(inside, (dict, list)):
            _check_depth(inside, depth + 1)


def _from_json(value: Any) -> Tree:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: _from_json(item) for key, item in value.items()}
    tag = value[TAG]
    if not isinstance(tag, str) or tag not in _TAGGED:
        raise ValueError(f"unknown tag {tag!r}")
    try:
        return _TAGGED[tag](value)
    except KeyError as error:
        raise ValueError(f"{tag} lacks {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name is not text")
    return value


def _ordered(value: dict[str, Any]) -> OrderedDict[Any, Any]:
    found = OrderedDict((_from_json(key), _from_json(item)) for key, item in value["items"])
    if value["metadata"] is not None:
        found._metadata = _from_json(value["metadata"])  # type: ignore[attr-defined]
    return found


def _call(value: dict[str, Any]) -> Call:
    if value["name"] not in CALLS:
        raise ValueError(f"no call of {value['name']!r}")
    return Call(value["name"], tuple(_from_json(value["arguments"])))


def _global(value: dict[str, Any]) -> Global:
    if not is_dtype_name(value["name"]):
        raise ValueError(f"no global {value['name']!r}")
    return Global(value["name"])


def _weights(value: dict[str, Any]) -> Weights:
    if value["kind"] not in ("dict", "OrderedDict", "tensor"):
        raise ValueError(f"no weights of kind {value['kind']!r}")
    if not all(type(position) is int and 0 <= position < 1 << 31 for position, _, _ in value["others"]):
        raise ValueError("a position is not a number")
    others = tuple((position, _from_json(key), _from_json(item)) for position, key, item in value["others"])
    return Weights(value["kind"], others, _from_json(value["metadata"]))


_TAGGED: dict[str, Callable[[dict[str, Any]], Tree]] = {
    "str": lambda value: bytes.fromhex(value["hex"]).decode("utf-8", "surrogatepass"),
    "float": lambda value: float(_text(value["value"])),
    "dict": lambda value: {_from_json(key): _from_json(item) for key, item in value["items"]},
    "OrderedDict": _ordered,
    "tuple": lambda value: tuple(_from_json(value["items"])),
    "set": lambda value: set(_from_json(value["items"])),
    "frozenset": lambda value: frozenset(_from_json(value["items"])),
    "bytes": lambda value: bytes.fromhex(value["hex"]),
    "bytearray": lambda value: bytearray.fromhex(value["hex"]),
    "complex": lambda value: complex(*_from_json(value["parts"])),
    "global": _global,
    "call": _call,
    "tensor": lambda value: Named(_text(value["name"])),
    "weights": _weights,
}


def is_dtype_name(name: object) -> bool:
    """Say whether `name` is that of a torch dtype, the only globals that stand for themselves."""
    from modelzip_cli.tensors import DTYPES

    return isinstance(name, str) and name in {f"torch.{dtype.torch}" for dtype in DTYPES.values() if dtype.torch}
