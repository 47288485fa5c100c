"""The torch format from before version 1.6: five pickles, then the storages one after the other.

Source: PyTorch, torch/serialization.py (`_legacy_save`, `_legacy_load`). Its predecessor, a tar archive of torch 0.1,
is not read.
"""

from __future__ import annotations

import hashlib
from typing import Any

from modelzip_cli.containers.pickle_calls import BadPickle, EndsEarly
from modelzip_cli.containers.pickle_reader import MOST_PICKLE, Pickled, read_one_pickle
from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.containers.torch_file import Archive
from modelzip_cli.containers.zip_file import Entry
from modelzip_cli.errors import BrokenCheckpoint, UnsupportedCheckpoint, inert

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
FIRST_WINDOW, GROWTH = 1 << 20, 4  # bytes that are read to find the end of the pickles; more where they are longer
LONGEST_START = 64  # bytes within which the first pickle, the magic number, must end


def is_legacy(start: bytes) -> bool:
    """Say whether a file that begins with `start` is one: its first pickle is the magic number."""
    if start[:1] != b"\x80":
        return False
    try:
        return bool(read_one_pickle(start[:LONGEST_START]).tree == MAGIC)
    except BadPickle:
        return False


def read_legacy(file: SourceFile) -> Archive:
    """Find the tree of values and where the storages lie. Raises BrokenCheckpoint when they do not fill the file."""
    window = FIRST_WINDOW
    while True:
        head = file.read(0, min(window, file.size))
        try:
            return _read(file, head)
        except EndsEarly:
            if len(head) == file.size or window >= MOST_PICKLE:
                raise BrokenCheckpoint(f"{file.label}: cut short; download or copy it again") from None
            window *= GROWTH
        except BadPickle as error:
            raise BrokenCheckpoint(f"{file.label}: {inert(str(error), longest=200)}") from None


def _read(file: SourceFile, head: bytes) -> Archive:
    pickles: list[Pickled] = []
    place = 0
    for _ in range(5):  # magic number, protocol, what machine wrote it, the object, the keys of its storages
        pickles.append(read_one_pickle(head, place))
        place = pickles[-1].end
    _, protocol, machine, found, keys = (pickle.tree for pickle in pickles)
    if type(protocol) is not int or protocol != PROTOCOL:
        raise UnsupportedCheckpoint(f"{file.label}: a torch format of an unknown version")
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise UnsupportedCheckpoint(f"{file.label}: written by a big-endian machine; save it again on another")
    sha256 = hashlib.sha256(head[:place]).hexdigest()
    return Archive(found, _storages(file, keys, pickles[3], place), sha256)


def _storages(file: SourceFile, keys: Any, found: Pickled, place: int) -> dict[str, Entry]:
    """Follow the storages from `place` to the end of the file: a count of elements, then the elements."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise BrokenCheckpoint(f"{file.label}: the keys of its storages are not a list of different texts")
    entries = {}
    for key in keys:
        if place + 8 > file.size:
            raise BrokenCheckpoint(f"{file.label}: cut short: a storage is missing; download or copy it again")
        storage = found.storages.get(key)
        if storage is None:
            raise BrokenCheckpoint(f"{file.label}: storage {inert(key, longest=40)} belongs to no tensor")
        width = 1 if storage.dtype is None else storage.dtype.bits // 8
        size = int.from_bytes(file.read(place, 8), "little") * width
        if place + 8 + size > file.size:
            raise BrokenCheckpoint(
                f"{file.label}: cut short: a storage needs {size:,} bytes, {file.size - place - 8:,} are left; "
                "download or copy it again"
            )
        entries[key] = Entry(key, place + 8, size, 0)
        place += 8 + size
    if place != file.size:
        raise BrokenCheckpoint(f"{file.label}: {file.size - place:,} bytes follow its last storage")
    return entries
