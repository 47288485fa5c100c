"""What the calls in a pickle stand for: tensors, a few containers, and `Opaque` for everything else.

Source: PyTorch, torch/_utils.py (`_rebuild_tensor`, `_v2`, `_v3`, `_rebuild_parameter`) and torch/storage.py. Functions
here are ours; a name in a pickle only chooses among them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from modelzip_cli.containers.tree import CALLS, Call, Global, Opaque, StorageRef, StorageView, TensorRef
from modelzip_cli.tensors import DTYPES, DType

MOST_IN_KEY = 64

STORAGES: dict[str, DType | None] = {
    **{
        f"torch.{name}Storage": DTYPES[dtype]
        for name, dtype in {
            "Double": "f64",
            "Float": "f32",
            "Half": "f16",
            "BFloat16": "bf16",
            "Long": "i64",
            "Int": "i32",
            "Short": "i16",
            "Char": "i8",
            "Byte": "u8",
            "Bool": "bool",
            "ComplexFloat": "c64",
            "ComplexDouble": "c128",
        }.items()
    },
    "torch.storage.UntypedStorage": None,
}
TORCH_DTYPES = {f"torch.{dtype.torch}": dtype for dtype in DTYPES.values() if dtype.torch}


class BadPickle(ValueError):
    """The bytes are not a pickle that we follow; the message says where and why."""


class EndsEarly(BadPickle):
    """The bytes end before the pickle does."""

    def __init__(self) -> None:
        super().__init__("the pickle ends early")


def as_key(value: Any, depth: int = 0) -> Any:
    """Return `value` if it may be a key or an item of a set: hashing it must cost next to nothing."""
    if isinstance(value, tuple):
        if depth > 1 or len(value) > MOST_IN_KEY:
            raise BadPickle("a key that is nested too deeply")
        for item in value:
            as_key(item, depth + 1)
    elif not isinstance(value, (type(None), bool, int, float, complex, str, bytes, Global, Opaque)):
        raise BadPickle("a key that is neither text nor a number")
    return value


def as_count(value: Any) -> int:
    """Return `value` if it may be a size, a stride or an offset."""
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise BadPickle("a size, stride or offset is not a whole number in range")
    return value


def _counts(value: Any) -> tuple[int, ...]:
    if isinstance(value, Call):
        (value,) = value.arguments
    if not isinstance(value, (tuple, list)) or len(value) > 64:
        raise BadPickle("a shape or stride is not a tuple of at most 64 numbers")
    return tuple(as_count(item) for item in value)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorRef:
    if isinstance(storage, StorageView):
        last = sum((size - 1) * stride for size, stride in zip(_counts(shape), _counts(strides), strict=True))
        if 0 not in _counts(shape) and as_count(offset) + last >= storage.numel:
            raise BadPickle("a tensor beyond its view of a storage")
        storage, offset = storage.storage, storage.offset + as_count(offset)
    if not isinstance(storage, StorageRef) or storage.dtype is None:
        raise BadPickle("a tensor without a typed storage")
    _no_lazy_bits(rest[2:])
    return TensorRef(storage, storage.dtype, as_count(offset), _counts(shape), _counts(strides))


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *rest: Any
) -> TensorRef:
    if not isinstance(storage, StorageRef) or not isinstance(dtype, Global) or dtype.name not in TORCH_DTYPES:
        raise BadPickle("a tensor of an unknown dtype")
    _no_lazy_bits(rest)
    return TensorRef(storage, TORCH_DTYPES[dtype.name], as_count(offset), _counts(shape), _counts(strides))


def _no_lazy_bits(metadata: tuple[Any, ...]) -> None:
    if metadata and isinstance(metadata[0], dict) and any(metadata[0].get(bit) for bit in ("conj", "neg")):
        raise BadPickle("a conjugate or negative view: its bytes have another sign; save tensor.resolve_conj()")


def _from_type(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    return call(function, arguments)


def _ordered_dict(items: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict((as_key(key), value) for key, value in items)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise BadPickle("bytes in an unknown encoding")
    return text.encode("latin-1")


def _collection(kind: type) -> Callable[..., Any]:
    def build(items: Any = ()) -> Any:
        if not isinstance(items, (list, tuple, set, bytes)):  # bytearray(2 ** 31) would take the memory
            raise BadPickle(f"a {kind.__name__} of something that is not a list")
        return kind(map(as_key, items) if kind in (set, frozenset) else items)

    return build


CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch.nn.parameter.Parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "collections.OrderedDict": _ordered_dict,
    "_codecs.encode": _encode,
    "builtins.set": _collection(set),
    "builtins.frozenset": _collection(frozenset),
    "builtins.list": _collection(list),
    "builtins.tuple": _collection(tuple),
    "builtins.bytearray": _collection(bytearray),
    "builtins.dict": lambda items=(): dict(_ordered_dict(items.items() if isinstance(items, dict) else items)),
    "builtins.complex": lambda real, imag: complex(float(real), float(imag)),
}


def _is_plain(value: Any, *, inside: bool = False) -> bool:
    """Whether `value` is what a size or a device is made of: a number, a text, or a few of them."""
    if isinstance(value, (tuple, list)):
        return not inside and len(value) <= MOST_IN_KEY and all(_is_plain(item, inside=True) for item in value)
    return isinstance(value, (type(None), bool, int, str))


RECONSTRUCTORS = ("copyreg._reconstructor", "copyreg.__newobj__")  # of any class, their first argument


def call(function: Any, arguments: Any) -> Any:
    """What a call of `function` stands for; nothing is run but the constructors above. Raises BadPickle."""
    if not isinstance(function, Global):
        return Opaque(function.name if isinstance(function, Opaque) else "an object", [arguments])
    if not isinstance(arguments, tuple):
        raise BadPickle("arguments that are not a tuple")
    if function.name in CONSTRUCTORS:
        return CONSTRUCTORS[function.name](*arguments)
    if function.name in RECONSTRUCTORS and arguments and isinstance(arguments[0], Global):
        return Opaque(arguments[0].name, [*arguments[1:]])
    if function.name in CALLS and all(map(_is_plain, arguments)):
        return Call(function.name, arguments)
    return Opaque(function.name, [*arguments])
