"""Where the weights are inside a torch file, and what is kept of the rest.

People save a bare state dict, a trainer checkpoint with the state dict under some key, or one bare tensor
(docs/format.md, section 4, has the rules).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from modelzip_cli.containers.tree import (
    Call,
    Global,
    Named,
    Opaque,
    StorageRef,
    StorageView,
    TensorRef,
    Tree,
    Weights,
    is_dtype_name,
)
from modelzip_cli.errors import BrokenCheckpoint, UnsafeInput, UnsupportedCheckpoint, UsageError, did_you_mean, inert

PREFERRED = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params")
NOT_WEIGHTS = ("optim", "sched", "scaler", "ema", "average", "shadow", "momentum", "rng", "loops", "callbacks")
MODULE_ATTRIBUTES = ("_parameters", "_buffers", "_modules")
MOST_IN_MODULES = 1_000_000  # modules and what is in them, counted wherever a shared one stands
MOST_VALUES = 5_000_000
MOST_NESTING = 64
MOST_TEXT = 64 << 20  # characters, counted wherever a shared text stands
MOST_INTEGER = 13_000  # bits: Python writes and reads up to 4,300 digits
NOT_IN_A_TREE = (Opaque, StorageRef, StorageView, TensorRef)
BARE = "tensor"  # the name of the one tensor of a file that is a bare tensor


@dataclass
class Nested:
    """A torch file taken apart: named tensors, and the `tree` of the rest, with `Weights` where the state dict was."""

    tree: Tree = None
    path: str = ""
    weights: dict[str, TensorRef] = field(default_factory=dict)
    beside: dict[str, TensorRef] = field(default_factory=dict)
    opaque: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)  # classes of models that were saved whole


def take_apart(root: Tree, *, label: str, key: str | None, keep_extras: bool) -> Nested:
    """Find the state dict in `root` and clean the rest of it.

    `key` names the state dict, dots between levels. With `keep_extras`, tensors beside the weights stay in the tree as
    `Named`; without, they are left out. Raises UnsafeInput where an object of an unknown class stands for the weights,
    UsageError where several state dicts could be meant.
    """
    if isinstance(root, TensorRef):
        return Nested(Weights("tensor"), "", {BARE: root})
    found = Nested()
    root = _Unfolder(found, label).unfold(root)
    path = _choose(root, label, key)
    found.path = ".".join(path)
    state_dict = root
    for part in path:
        state_dict = state_dict[part]
    found.tree = _Cleaner(found, path, set(filter(_is_text, state_dict)), label, keep_extras).clean(root, ())
    return found


class _Unfolder:
    """Put the state dict of a model in place of one that was saved whole: the root, or a value of the root."""

    def __init__(self, found: Nested, label: str) -> None:
        self.found, self.label = found, label
        self.visited = self.characters = 0
        self.unfolded: dict[int, OrderedDict[str, TensorRef]] = {}

    def unfold(self, root: Tree) -> Tree:
        if isinstance(root, Opaque):
            return self.model(root)
        if not isinstance(root, dict):
            return root
        unfolded: dict[Any, Any] = type(root)()
        for name, value in root.items():
            unfolded[name] = self.model(value) if isinstance(value, Opaque) else value
        if hasattr(root, "_metadata"):
            unfolded._metadata = root._metadata  # type: ignore[attr-defined]
        return unfolded

    def model(self, value: Opaque) -> Tree:
        state = _module_state(value)
        if state is None:
            return value
        if value.name not in self.found.modules:
            self.found.modules.append(value.name)
        if id(value) not in self.unfolded:
            self.unfolded[id(value)] = self.state_dict(state)
        return self.unfolded[id(value)]

    def state_dict(self, state: dict[str, Any]) -> OrderedDict[str, TensorRef]:
        """What `state_dict()` of a module would give, from its attributes. Source: torch/nn/modules/module.py."""
        weights: OrderedDict[str, TensorRef] = OrderedDict()
        waiting = [("", state, 0)]
        while waiting:
            prefix, attributes, depth = waiting.pop()
            passing = attributes.get("_non_persistent_buffers_set", ())
            passing = set(filter(_is_text, passing)) if isinstance(passing, (set, list)) else ()
            self.count(prefix, (passing, *(attributes[kind] for kind in MODULE_ATTRIBUTES)), depth)
            for kind in ("_parameters", "_buffers"):
                for name, tensor in attributes[kind].items():
                    if tensor is None or (kind == "_buffers" and name in passing):
                        continue
                    if not isinstance(tensor, TensorRef):
                        raise _only_its_code(f"{self.label}: {inert(f'{prefix}{name}', longest=200)} is", tensor)
                    weights[f"{prefix}{name}"] = tensor
            inside = []
            for name, module in attributes["_modules"].items():
                below = _module_state(module)
                if below is not None:
                    inside.append((f"{prefix}{name}.", below, depth + 1))
                elif module is not None:
                    raise _only_its_code(f"{self.label}: {inert(f'{prefix}{name}', longest=200)} is", module)
            waiting += reversed(inside)
        return weights

    def count(self, prefix: str, contents: tuple[Collection[Any], ...], depth: int) -> None:
        """Hold what is in a module against the limits, before a name is made of it."""
        self.visited += 1 + sum(map(len, contents))
        for names in contents:
            if not all(map(_is_text, names)):
                raise BrokenCheckpoint(f"{self.label}: something in a module of its model has a name that is not text")
            self.characters += len(names) * (len(prefix) + 1) + sum(map(len, names))
        if depth > MOST_NESTING or self.visited > MOST_IN_MODULES or self.characters > MOST_TEXT:
            raise BrokenCheckpoint(f"{self.label}: the modules of its model are too many or nested too deeply")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _module_state(value: Tree) -> dict[str, Any] | None:
    """The attributes of an `nn.Module`, whatever its class: it has parameters, buffers and modules."""
    for state in value.contents if isinstance(value, Opaque) else ():
        if isinstance(state, dict) and all(isinstance(state.get(name), dict) for name in MODULE_ATTRIBUTES):
            return state
    return None


def _only_its_code(what: str, value: Tree) -> UnsafeInput:
    kind = inert(str(getattr(value, "name", type(value).__name__)), longest=200)
    return UnsafeInput(
        f"{what} an object of class {kind}, which only its own code can rebuild; nothing was run; "
        "save model.state_dict() instead of the model"
    )


def _choose(root: Tree, label: str, key: str | None) -> tuple[str, ...]:
    candidates = dict(_state_dicts(root, (), set()))
    if sum(len(part) + 1 for path in candidates for part in path) > MOST_TEXT:
        raise BrokenCheckpoint(f"{label}: its state dicts are too many or nested too deeply")
    if key is not None:
        for path in candidates:
            if ".".join(path) == key:
                return path
        names = [".".join(path) for path in candidates if path]
        hint = did_you_mean(key, [name for name in names[:1000] if len(name) <= 200])
        raise UsageError(f"{label}: --key {key!r} names no state dict{hint}; there {_list(names)}")
    unknown = next(_opaque_objects(root, 0, set()), None)
    if isinstance(root, dict):
        for name in PREFERRED:
            if any(path[:1] == (name,) for path in candidates):
                break  # what stands under a less usual name is something else, such as `params`
            if isinstance(root.get(name), Opaque):
                unknown = root[name]
                candidates = {}
                break
    elif isinstance(root, Opaque):
        unknown = root
    likely = [path for path in candidates if not any(word in part.lower() for part in path for word in NOT_WEIGHTS)]
    preferred = [path for path in likely if path and all(part in PREFERRED for part in path)]
    if preferred:
        return min(preferred, key=lambda path: (PREFERRED.index(path[0]), len(path)))
    if () in candidates or len(likely) == 1:
        return () if () in candidates else likely[0]
    if likely:
        names = [".".join(path) for path in likely]
        raise UsageError(f"{label}: holds {len(names)} state dicts; choose with --key: {_few(names)}")
    if not _holds_tensor(root, set()):
        what = f"{label}: holds no state dict, and no tensors at all"
        if unknown is not None and (
            unknown is root or (isinstance(root, dict) and unknown in map(root.get, PREFERRED))
        ):
            raise _only_its_code(f"{what}, but", unknown)
        raise UnsupportedCheckpoint(what)
    if unknown is not None:
        raise _only_its_code(f"{label}: the weights are inside", unknown)
    raise UnsupportedCheckpoint(f"{label}: holds no state dict (a dict from names to tensors)")


def _holds_tensor(root: Tree, seen: set[int]) -> bool:
    """Whether there is a tensor anywhere, in objects of unknown classes too; `seen`: values known to have none."""
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (TensorRef, StorageRef, StorageView)):
            return True
        if not isinstance(value, (Opaque, Call, dict, list, tuple, set, frozenset)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Opaque):
            waiting += value.contents
        elif isinstance(value, Call):
            waiting += value.arguments
        else:
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
    return False


def _list(names: list[str]) -> str:
    return f"are {_few(names)}" if names else "is only the file itself"


def _few(names: list[str]) -> str:
    return ", ".join(inert(name, longest=80) for name in names[:20]) + (", ..." if len(names) > 20 else "")


def _state_dicts(tree: Tree, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the path and the number of tensors of each dict that maps text to tensors."""
    if not isinstance(tree, dict) or id(tree) in seen or len(path) > MOST_NESTING:
        return
    seen.add(id(tree))
    tensors = sum(isinstance(name, str) and isinstance(value, TensorRef) for name, value in tree.items())
    if tensors:
        yield path, tensors
    for name, value in tree.items():
        if isinstance(name, str):
            yield from _state_dicts(value, (*path, name), seen)


def _opaque_objects(tree: Tree, depth: int, seen: set[tuple[int, int]]) -> Iterator[Opaque]:
    if isinstance(tree, Opaque):
        yield tree
    elif depth < 3 and isinstance(tree, (dict, list, tuple)) and (id(tree), depth) not in seen:
        seen.add((id(tree), depth))
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _opaque_objects(value, depth + 1, seen)


def _holds(tree: Tree, kinds: tuple[type, ...]) -> bool:
    """Whether a key, an item of a set or an argument is or holds one of `kinds`."""
    if isinstance(tree, Call):
        return _holds(tree.arguments, kinds)
    if isinstance(tree, (tuple, list)):
        return any(_holds(item, kinds) for item in tree)
    return isinstance(tree, kinds)


class _Cleaner:
    """Rebuild a tree without tensors and unknown objects, filling a `Nested` on the way."""

    def __init__(
        self, found: Nested, path: tuple[str, ...], weight_names: set[str], label: str, keep_extras: bool
    ) -> None:
        self.found, self.path, self.label, self.keep_extras = found, path, label, keep_extras
        self.weight_names = weight_names
        self.values = self.characters = 0
        self.taken: dict[str, int] = {}
        self.unknown_names: set[str] = set()
        self.without_tensors: set[int] = set()

    def clean(self, tree: Tree, path: tuple[str, ...]) -> Tree:
        """Return `tree` with only values that a tree may hold; what may not be kept becomes None."""
        self.values += 1
        self.check_limits(path)
        if isinstance(tree, TensorRef):
            return self.tensor_beside(tree, path)
        if self.is_unknown(tree):
            return None
        if isinstance(tree, dict):
            return self.state_dict(tree, path) if path == self.path else self.plain_dict(tree, path)
        if isinstance(tree, (list, tuple)):
            items = [self.clean(value, (*path, str(place))) for place, value in enumerate(tree)]
            return items if isinstance(tree, list) else tuple(items)
        if isinstance(tree, (set, frozenset)):
            kept = type(tree)(value for value in tree if not self.is_unknown_key(value))
            self.count((*kept,), path)
            return kept
        self.count(tree, path)
        return tree

    def check_limits(self, path: tuple[str, ...]) -> None:
        if self.values > MOST_VALUES or self.characters > MOST_TEXT or len(path) > MOST_NESTING:
            raise BrokenCheckpoint(f"{self.label}: the values beside the weights are too many or nested too deeply")

    def count(self, value: Any, path: tuple[str, ...]) -> None:
        """Hold a plain value, a key or the items of a set against the limits: one may stand in many places."""
        self.values += 1
        if isinstance(value, Call):
            value = value.arguments
        if isinstance(value, (tuple, list)):
            for item in value:
                self.count(item, path)
        elif isinstance(value, (str, bytes, bytearray)):
            self.characters += len(value)
        elif isinstance(value, int):
            if value.bit_length() > MOST_INTEGER:
                where = inert(".".join(path), longest=200)
                raise UnsupportedCheckpoint(f"{self.label}: {where}: a whole number of too many digits")
            self.characters += max(0, value.bit_length() - 64) // 3
        self.check_limits(path)

    def is_unknown(self, tree: Tree) -> bool:
        """Note the name of an object that is not kept."""
        unknown = isinstance(tree, (Opaque, StorageRef, StorageView)) or (
            isinstance(tree, Global) and not is_dtype_name(tree.name)
        )
        unknown = unknown or (isinstance(tree, Call) and _holds(tree, NOT_IN_A_TREE))
        name = getattr(tree, "name", "torch.storage")
        if unknown and name not in self.unknown_names:
            self.unknown_names.add(name)
            self.found.opaque.append(name)
        return unknown

    def is_unknown_key(self, key: Tree) -> bool:
        """The same of a key or an item of a set, which may hold nothing that the cleaner would have to replace."""
        return self.is_unknown(key) or _holds(key, NOT_IN_A_TREE)

    def drops(self, value: Any) -> bool:
        return self.is_unknown(value) or (isinstance(value, TensorRef) and not self.keep_extras)

    def plain_dict(self, tree: dict[Any, Any], path: tuple[str, ...]) -> dict[Any, Any]:
        cleaned: dict[Any, Any] = OrderedDict() if isinstance(tree, OrderedDict) else {}
        for key, value in tree.items():
            if self.is_unknown_key(key):
                continue
            kept = self.clean(value, (*path, self.part(key, path)))
            if not self.drops(value):
                cleaned[key] = kept
        if hasattr(tree, "_metadata"):
            cleaned._metadata = self.clean(tree._metadata, (*path, "_metadata"))  # type: ignore[attr-defined]
        return cleaned

    def state_dict(self, tree: dict[Any, Any], path: tuple[str, ...]) -> Weights:
        others: list[tuple[int, Any, Any]] = []
        for key, value in tree.items():
            if isinstance(key, str) and isinstance(value, TensorRef):
                self.found.weights[key] = value
                continue
            known = not self.is_unknown_key(key)
            if isinstance(value, Opaque) and _holds_tensor(value, self.without_tensors):  # such as a sparse tensor
                what = inert(self.part(key, path), longest=200) if known else "a weight"
                raise _only_its_code(f"{self.label}: {what} is", value)
            if not known:
                continue
            kept = self.clean(value, (*path, self.part(key, path)))
            if not self.drops(value):
                others.append((len(self.found.weights) + len(others), key, kept))
        metadata = self.clean(getattr(tree, "_metadata", None), (*path, "_metadata"))
        return Weights("OrderedDict" if isinstance(tree, OrderedDict) else "dict", tuple(others), metadata)

    def part(self, key: Any, path: tuple[str, ...]) -> str:
        """A key as a part of a name, which is a copy of all in it: counted before it is made."""
        self.count(key, path)
        return key if isinstance(key, str) else str(key)

    def tensor_beside(self, tensor: TensorRef, path: tuple[str, ...]) -> Named | None:
        self.characters += sum(len(part) + 1 for part in path)
        self.check_limits(path)
        plain = ".".join(path)
        quotes = self.taken.get(plain, 0)
        while (name := plain + "'" * quotes) in self.found.beside or name in self.weight_names:
            quotes += 1
        self.taken[plain] = quotes + 1
        self.characters += quotes
        self.found.beside[name] = tensor
        return Named(name) if self.keep_extras else None
