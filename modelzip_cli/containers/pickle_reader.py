"""The pickle inside a torch file, read by an opcode loop of our own: nothing is imported, called or constructed.

Source: CPython, Lib/pickletools.py (the opcodes, protocols 0 to 5) and Lib/pickle.py (what they mean); PyTorch,
torch/_weights_only_unpickler.py (which of them torch writes). What is not in the tables below becomes `Opaque`.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modelzip_cli.containers.pickle_calls import STORAGES, BadPickle, EndsEarly, as_count, as_key, call
from modelzip_cli.containers.tree import Global, Opaque, StorageRef, StorageView, TensorRef, Tree

MOST_PICKLE = 256 << 20  # bytes
MOST_OPCODES = 20_000_000
MOST_COPIED = 4, 1_000_000  # items that calls may copy: this many for a byte of the pickle, and this many more
_MARK = object()

PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(frozen=True)
class Pickled:
    """A pickle as a `tree` of inert values, the `storages` that it refers to by key, and the place after its end.

    `names`: all that it names, such as `os.system`, also where nothing of it is left in the tree.
    """

    tree: Tree
    storages: dict[str, StorageRef]
    end: int
    names: frozenset[str]


def read_pickle(data: bytes) -> Tree:
    """Return the value that pickle `data` describes, as a tree of inert values. Raises BadPickle, nothing else."""
    return read_one_pickle(data).tree


def read_one_pickle(data: bytes, place: int = 0) -> Pickled:
    """Read the pickle that begins at `place` of `data`, where others may follow. Raises BadPickle, nothing else."""
    machine = _Machine(data, place)
    try:
        tree = machine.run()
        return Pickled(tree, machine.storages, machine.place, frozenset(machine.names))
    except BadPickle:
        raise
    except (IndexError, KeyError, ValueError, TypeError, OverflowError, struct.error, RecursionError) as error:
        raise BadPickle(f"malformed pickle: {type(error).__name__}") from None


class _Machine:
    """The stack machine of pickle. Each opcode is a method, found by its byte in `_OPCODES`."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data, self.place = data, place
        self.storages: dict[str, StorageRef] = {}
        self.views: dict[str, StorageView] = {}
        self.stack: list[Any] = []
        self.copied = 0
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()

    def run(self) -> Tree:
        for _ in range(MOST_OPCODES):
            if self.place >= len(self.data):
                raise EndsEarly
            opcode = self.data[self.place]
            self.place += 1
            if opcode == 0x2E:  # STOP
                return self.stack.pop()
            step = _OPCODES.get(opcode)
            if step is None:
                raise BadPickle(f"opcode 0x{opcode:02x} at byte {self.place - 1} is not one that torch writes")
            step(self)
        raise BadPickle(f"more than {MOST_OPCODES:,} opcodes")

    # Arguments

    def take(self, length: int) -> bytes:
        end = self.place + length
        if length < 0 or end > len(self.data):
            raise EndsEarly
        piece = self.data[self.place : end]
        self.place = end
        return piece

    def number(self, width: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.place)
        if end < 0:
            raise EndsEarly
        piece = self.data[self.place : end]
        self.place = end + 1
        return piece

    def until_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        items.reverse()
        return items

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def text(self, width: int) -> None:
        self.push(self.take(self.number(width)).decode("utf-8", "surrogatepass"))

    def python_2_text(self, width: int) -> None:
        raw = self.take(self.number(width))
        try:
            self.push(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.push(raw)

    # Containers

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            target.contents.extend(items)
        elif isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[as_key(key)] = value
        else:
            raise BadPickle("SETITEM on something that is not a dict")

    def append_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            target.contents.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(as_key, items))
        else:
            raise BadPickle("APPEND on something that is not a list")

    def take_dict(self) -> None:
        items = self.until_mark()
        self.push({})
        self.set_items(items)

    def take_tuple(self, length: int) -> None:
        items = tuple(self.stack[-length:]) if length else ()
        if _MARK in items or len(items) < length:
            raise BadPickle("a tuple reaches below its mark")
        if length:
            del self.stack[-length:]
        self.push(items)

    # Names and what stands for objects

    def find(self, module: str, name: str) -> None:
        dotted = f"{PYTHON_2.get(module, module)}.{name}"
        self.names.add(dotted)
        self.push(Global(dotted))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise BadPickle("a global whose name is not text")
        self.find(module, name)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(arguments, tuple):
            sized = (list, tuple, dict, set, frozenset, str, bytes, bytearray)
            self.copied += len(arguments) + sum(len(argument) for argument in arguments if isinstance(argument, sized))
            factor, more = MOST_COPIED
            if self.copied > factor * len(self.data) + more:
                raise BadPickle("calls copy the same values again and again")
        self.push(call(function, arguments))

    def new_object(self, *, keywords: bool = False) -> None:
        if keywords:
            self.stack.pop()
        self.reduce()

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Opaque):
            target.contents.append(state)
        elif isinstance(target, OrderedDict):
            if isinstance(state, dict) and "_metadata" in state:  # what torch hangs on a state dict; nothing else
                target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif not isinstance(target, TensorRef):
            raise BadPickle("BUILD on something that has no state")

    def persistent(self) -> None:
        """A storage: ("storage", type, key, location, numel). Old files also have the class of a module, with its code.

        A sixth item makes it a view of the storage: (its own key, offset, numel), in elements.
        """
        match self.stack.pop():
            case ("storage", Global(name=kind), str(key), str() | None, int(numel), *view) if kind in STORAGES:
                storage = StorageRef(key, STORAGES[kind], as_count(numel))
                if self.storages.setdefault(key, storage) != storage or key in self.views:
                    raise BadPickle("two storages with one key")
                match view:
                    case [] | [None]:
                        self.push(storage)
                    case [(str(own), int(offset), int(length))]:
                        part = StorageView(storage, as_count(offset), as_count(length))
                        if self.views.setdefault(own, part) != part or own in self.storages:
                            raise BadPickle("two storages with one key")
                        if offset + length > numel:
                            raise BadPickle("a view beyond its storage")
                        self.push(part)
                    case _:
                        raise BadPickle("a view of a storage that is none")
            case ("module", Global() as kind, *_):
                self.push(kind)
            case _:
                raise BadPickle("a persistent id that is not a storage of a known type")


def _values(items: list[Any]) -> list[Any]:
    if any(item is _MARK for item in items):
        raise BadPickle("a mark where a value should be")
    return items


def _float(machine: _Machine) -> None:
    machine.push(struct.unpack(">d", machine.take(8))[0])


def _global_line(machine: _Machine) -> None:
    module, name = machine.line().decode("utf-8"), machine.line().decode("utf-8")
    machine.find(module, name)


def _int_line(machine: _Machine) -> None:
    line = machine.line()
    machine.push({b"00": False, b"01": True}.get(line) if line in (b"00", b"01") else int(line))


_OPCODES: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    0x28: lambda m: m.push(_MARK),
    0x30: lambda m: m.stack.pop(),  # POP
    0x31: lambda m: m.until_mark(),  # POP_MARK
    0x32: lambda m: m.push(m.stack[-1]),  # DUP
    0x4E: lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    0x49: _int_line,
    0x4A: lambda m: m.push(m.number(4, signed=True)),
    0x4B: lambda m: m.push(m.number(1)),
    0x4D: lambda m: m.push(m.number(2)),
    0x4C: lambda m: m.push(int(m.line().rstrip(b"L"))),
    0x8A: lambda m: m.push(int.from_bytes(m.take(m.number(1)), "little", signed=True)),
    0x8B: lambda m: m.push(int.from_bytes(m.take(m.number(4)), "little", signed=True)),
    0x46: lambda m: m.push(float(m.line())),
    0x47: _float,
    0x55: lambda m: m.python_2_text(1),  # SHORT_BINSTRING
    0x54: lambda m: m.python_2_text(4),  # BINSTRING
    0x56: lambda m: m.push(m.line().decode("raw-unicode-escape")),
    0x58: lambda m: m.text(4),
    0x8C: lambda m: m.text(1),
    0x8D: lambda m: m.text(8),
    0x42: lambda m: m.push(m.take(m.number(4))),
    0x43: lambda m: m.push(m.take(m.number(1))),
    0x8E: lambda m: m.push(m.take(m.number(8))),
    0x96: lambda m: m.push(bytearray(m.take(m.number(8)))),
    0x5D: lambda m: m.push([]),
    0x6C: lambda m: m.push(m.until_mark()),
    0x61: lambda m: m.append_items(_values([m.stack.pop()])),
    0x65: lambda m: m.append_items(m.until_mark()),
    0x29: lambda m: m.push(()),
    0x74: lambda m: m.push(tuple(m.until_mark())),
    0x85: lambda m: m.take_tuple(1),
    0x86: lambda m: m.take_tuple(2),
    0x87: lambda m: m.take_tuple(3),
    0x7D: lambda m: m.push({}),
    0x64: lambda m: m.take_dict(),
    0x73: lambda m: m.set_items(_values([m.stack.pop(-2), m.stack.pop()])),
    0x75: lambda m: m.set_items(m.until_mark()),
    0x8F: lambda m: m.push(set()),
    0x90: lambda m: m.append_items(m.until_mark()),
    0x91: lambda m: m.push(frozenset(map(as_key, m.until_mark()))),
    0x67: lambda m: m.push(m.memo[int(m.line())]),
    0x68: lambda m: m.push(m.memo[m.number(1)]),
    0x6A: lambda m: m.push(m.memo[m.number(4)]),
    0x70: lambda m: m.memoize(int(m.line())),
    0x71: lambda m: m.memoize(m.number(1)),
    0x72: lambda m: m.memoize(m.number(4)),
    0x94: lambda m: m.memoize(len(m.memo)),
    0x63: _global_line,
    0x93: lambda m: m.stack_global(),
    0x52: lambda m: m.reduce(),
    0x81: lambda m: m.new_object(),
    0x92: lambda m: m.new_object(keywords=True),
    0x62: lambda m: m.build(),
    0x51: lambda m: m.persistent(),
}
