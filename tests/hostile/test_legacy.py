"""Hostile files of torch's format from before 1.6: five pickles, then storages that only their order tells apart."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from modelzip_cli.containers import torch_legacy
from modelzip_cli.errors import BrokenCheckpoint, ModelzipError, UnsupportedCheckpoint
from modelzip_cli.source import open_source
from tests.hostile.makers import (
    POP,
    call,
    integer,
    items,
    mapping,
    name,
    pickle_of,
    read_all,
    sequence,
    storage,
    tensor,
    text,
)
from tests.hostile.test_pickles import attacks, bombs
from tests.real.makers import MAGIC, NONE, SYSTEM, assembled_legacy, held_storage, old_tensor

DATA = struct.pack("<4f", 1, 2, 3, 4)
HELD = held_storage("0", 4, NONE)
STATE = mapping({"w": old_tensor(HELD, (2, 2))})


def legacy_file(
    path: Path,
    root: bytes = STATE,
    storages: Mapping[str, tuple[int, bytes]] | None = None,
    *,
    magic: bytes | None = None,
    protocol: bytes | None = None,
    system: bytes | None = None,
    keys: bytes | None = None,
    tail: bytes = b"",
) -> Path:
    """A legacy file; what is None is what torch would write, storage 0 with four floats."""
    held = {"0": (4, DATA)} if storages is None else storages
    pickles = (
        integer(MAGIC) if magic is None else magic,
        integer(1001) if protocol is None else protocol,
        mapping(SYSTEM) if system is None else system,
        root,
        items(*map(text, held)) if keys is None else keys,
    )
    data = b"".join(struct.pack("<q", count) + content for count, content in held.values())
    path.write_bytes(b"".join(map(pickle_of, pickles)) + data + tail)
    return path


def of_torch(path: Path) -> dict[str, Any] | None:
    """What torch reads, as shapes and bytes by name; None where it refuses."""
    try:
        found = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        return {key: (tuple(value.shape), value.contiguous().numpy().tobytes()) for key, value in found.items()}
    except Exception:  # of many kinds, for a hostile file
        return None


def of_ours(path: Path) -> dict[str, Any] | None:
    try:
        return {key: (shape, data) for key, (_, shape, data) in read_all(path).tensors.items()}
    except ModelzipError:
        return None


def test_what_the_others_are_made_from_is_read_as_torch_reads_it(tmp_path):
    path = legacy_file(tmp_path / "fine.pth")
    assert path.read_bytes() == assembled_legacy(STATE, {"0": (4, DATA)})
    assert of_ours(path) == of_torch(path) == {"w": ((2, 2), DATA)}


# Damage


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    """A file of torch's own: a tie, a view and two storages."""
    base = torch.arange(12.0)
    value = {"w": base.view(3, 4), "v": base[4:8], "t": base.view(3, 4), "n": torch.tensor([7, 8]), "epoch": 3}
    path = tmp_path_factory.mktemp("small") / "small.pth"
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def test_a_file_cut_at_any_byte_is_refused(small, tmp_path):
    path = tmp_path / "cut.pth"
    path.write_bytes(small)
    read_all(path)
    accepted = []
    for length in reversed(range(len(small))):
        with path.open("r+b") as file:
            file.truncate(length)
        if of_ours(path) is not None:
            accepted.append(length)
    assert accepted == []


def test_every_flipped_bit_is_refused_or_leaves_a_model_that_fits_the_file(small, tmp_path):
    path = tmp_path / "flipped.pth"
    first = small.index(struct.pack("<q", 12) + struct.pack("<2f", 0, 1))  # where the storages begin: no checksum there
    refused = 0
    with path.open("wb", buffering=0) as file:
        file.write(small)
        for place in range(first + 8):
            for bit in range(8):
                file.seek(place)
                file.write(bytes([small[place] ^ 1 << bit]))
                try:
                    found = read_all(path)
                    assert sum(len(data) for _, _, data in found.tensors.values()) <= 4 * len(small)
                except ModelzipError:
                    refused += 1
            file.seek(place)
            file.write(small[place : place + 1])
    assert refused > 3 * first


def test_every_flipped_bit_of_a_count_is_refused(small, tmp_path):
    path = tmp_path / "counts.pth"
    for count in (struct.pack("<q", 12) + struct.pack("<2f", 0, 1), struct.pack("<3q", 2, 7, 8)):
        place = small.index(count)
        for bit in range(64):
            damaged = bytearray(small)
            damaged[place + bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert of_ours(path) is None, bit


@pytest.mark.parametrize("tail", [b"\0", b"\x80\x02N.", DATA, bytes(8)])
def test_bytes_after_the_last_storage_are_refused(tail, tmp_path):
    with pytest.raises(BrokenCheckpoint, match="follow its last storage"):
        read_all(legacy_file(tmp_path / "tail.pth", tail=tail))


# Storages

WRONG_STORAGES: dict[str, dict[str, Any]] = {
    "a negative count": {"storages": {"0": (-4, DATA)}},
    "a count of -1": {"storages": {"0": (-1, DATA)}},
    "a huge count": {"storages": {"0": ((1 << 63) - 1, DATA)}},
    "a count whose bytes wrap around at 2^64": {"storages": {"0": ((1 << 62) + 4, DATA)}},
    "a count of one less, and its bytes": {"storages": {"0": (3, DATA[:12])}},
    "a count of one more, and its bytes": {"storages": {"0": (5, DATA + DATA[:4])}},
    "a count of none": {"storages": {"0": (0, b"")}},
    "a key listed twice": {"keys": items(text("0"), text("0")), "tail": struct.pack("<q", 4) + DATA},
    "a key of no tensor": {"keys": items(text("0"), text("1")), "tail": struct.pack("<q", 4) + DATA},
    "a key that is missing": {"storages": {}},
    "another key instead": {"keys": items(text("1"))},
    "keys that are numbers": {"keys": items(integer(0))},
    "keys that are one text": {"keys": text("0")},
    "keys in a tuple of tuples": {"keys": sequence(sequence(text("0")))},
    "keys in a dict": {"keys": mapping({"0": text("0")})},
    "no keys": {"keys": NONE},
    "one key in two sizes": {
        "root": mapping({"w": old_tensor(HELD, (2, 2)), "v": old_tensor(held_storage("0", 8, NONE), (2, 2))})
    },
    "one key of two types": {
        "root": mapping({"w": old_tensor(HELD, (2, 2)), "v": old_tensor(storage("0", 4, "torch.HalfStorage"), (2, 2))})
    },
    "a size that the storage does not have": {"root": mapping({"w": old_tensor(HELD, (2, 3))})},
    "an offset beyond the storage": {"root": mapping({"w": old_tensor(HELD, (2, 2), offset=1)})},
    "a negative size": {"root": mapping({"w": tensor((-2, 2), held=HELD)})},
    "a size of 2^63": {"root": mapping({"w": tensor((1 << 63,), held=HELD)})},
    "a flood from four floats": {"root": mapping({"w": tensor((1 << 20, 1 << 20), (0, 0), held=HELD)})},
    "a storage by a path": {
        "root": mapping({"w": old_tensor(held_storage("/etc/passwd", 4, NONE), (2, 2))}),
        "keys": items(text("0")),
    },
}


@pytest.mark.parametrize("wrong", WRONG_STORAGES)
def test_storages_that_are_not_what_the_pickle_says_are_refused(wrong, tmp_path):
    path = legacy_file(tmp_path / "wrong.pth", **WRONG_STORAGES[wrong])
    with pytest.raises(BrokenCheckpoint):
        read_all(path)


def view_of(key: str, offset: int, length: int, *, root: str = "0", count: int = 4) -> bytes:
    """A storage that is a view of `root`, as torch 0.1 to 0.3 wrote it."""
    return held_storage(root, count, sequence(text(key), integer(offset), integer(length)))


VIEWS = {
    "within": {"w": old_tensor(view_of("1", 1, 2), (2,))},
    "the end of it": {"w": old_tensor(view_of("1", 3, 1), (1,))},
    "two views of one storage": {"w": old_tensor(view_of("1", 0, 2), (2,)), "v": old_tensor(view_of("2", 2, 2), (2,))},
    "one view twice": {"w": old_tensor(view_of("1", 1, 3), (3,)), "v": old_tensor(view_of("1", 1, 3), (2,), offset=1)},
    "beyond the root": {"w": old_tensor(view_of("1", 2, 4), (2,))},
    "beyond the root, and read there": {"w": old_tensor(view_of("1", 2, 4), (4,))},
    "after the root": {"w": old_tensor(view_of("1", 4, 4), (2,))},
    "far away": {"w": old_tensor(view_of("1", 1 << 61, 4), (2,))},
    "a tensor beyond its view": {"w": old_tensor(view_of("1", 0, 2), (4,))},
    "a tensor whose offset is beyond its view": {"w": old_tensor(view_of("1", 0, 2), (2,), offset=2)},
    "a negative offset": {"w": old_tensor(view_of("1", -1, 2), (2,))},
    "a negative length": {"w": old_tensor(view_of("1", 1, -2), (2,))},
    "one key for two views": {"w": old_tensor(view_of("1", 0, 2), (2,)), "v": old_tensor(view_of("1", 2, 2), (2,))},
    "the key of the root": {"w": old_tensor(view_of("0", 2, 2), (2,))},
    "the key of another root": {
        "a": old_tensor(held_storage("5", 2, NONE), (2,)),
        "w": old_tensor(view_of("5", 1, 2), (2,)),
    },
    "a key that is a number": {
        "w": old_tensor(held_storage("0", 4, sequence(integer(1), integer(0), integer(2))), (2,))
    },
    "two numbers": {"w": old_tensor(held_storage("0", 4, sequence(text("1"), integer(2))), (2,))},
    "a text": {"w": old_tensor(held_storage("0", 4, text("1")), (2,))},
    "a true offset": {"w": old_tensor(held_storage("0", 4, sequence(text("1"), b"\x88", integer(2))), (2,))},
    "seven items": {"w": old_tensor(held_storage("0", 4, NONE, NONE), (2, 2))},
}
READABLE = ("within", "the end of it", "two views of one storage", "one view twice")


@pytest.mark.parametrize("view", VIEWS)
def test_views_of_storages_are_read_as_torch_reads_them_or_refused(view, tmp_path):
    storages = {"0": (4, DATA)} | ({"5": (2, DATA[:8])} if "another root" in view else {})
    path = legacy_file(tmp_path / "view.pth", mapping(VIEWS[view]), storages)
    found = of_ours(path)
    if view in READABLE:
        assert found is not None
        assert found == of_torch(path)
    else:
        assert found is None


# The pickles around them

WRONG_STARTS: dict[str, dict[str, bytes]] = {
    "another protocol": {"protocol": integer(1002)},
    "a protocol that is text": {"protocol": text("1001")},
    "a protocol of 10,000 digits": {"protocol": integer(10**9999)},
    "a machine that is big-endian": {"system": mapping(SYSTEM | {"little_endian": b"\x89"})},
    "a machine that says 1": {"system": mapping(SYSTEM | {"little_endian": integer(1)})},
    "a machine that says nothing": {"system": mapping({})},
    "a machine that is a list": {"system": items()},
    "a protocol in 2^60 parts": {"protocol": b")" + b"2\x86" * 60},
    "a protocol that is an endless object": {"protocol": call("a.B", b")" + b"2\x86" * 60)},
}


@pytest.mark.parametrize("wrong", WRONG_STARTS)
def test_a_start_that_torch_never_wrote_is_refused(wrong, tmp_path, read_in_a_process):
    outcome, _, peak = read_in_a_process(legacy_file(tmp_path / "start.pth", **WRONG_STARTS[wrong]))
    assert outcome in ("BrokenCheckpoint", "UnsupportedCheckpoint")
    assert peak < 1000


@pytest.mark.parametrize("magic", [integer(MAGIC + 1), items(integer(MAGIC)), text(str(MAGIC)), integer(MAGIC << 600)])
def test_another_magic_number_makes_it_a_bare_pickle(magic, tmp_path):
    with pytest.raises(UnsupportedCheckpoint, match="bare pickle"):
        open_source(legacy_file(tmp_path / "magic.pth", magic=magic))


@pytest.mark.parametrize("attack", attacks(Path("canary")))
@pytest.mark.parametrize("place", ["machine", "weights", "keys", "beside"])
def test_no_pickle_of_the_five_runs_code(attack, place, tmp_path):
    canary = tmp_path / "canary"
    opcodes = attacks(canary)[attack]
    wrong = {
        "machine": {"system": opcodes + POP + mapping(SYSTEM)},
        "weights": {"root": mapping({"w": opcodes})},
        "keys": {"keys": opcodes + POP + items(text("0"))},
        "beside": {"root": mapping({"model": STATE, "extra": opcodes})},
    }[place]
    of_ours(legacy_file(tmp_path / "attack.pth", **wrong))
    assert not canary.exists()


@pytest.mark.parametrize("bomb", ["a value of 2^60 leaves", "bytes longer than the file", "a list in itself"])
@pytest.mark.parametrize("place", ["system", "keys", "root"])
def test_a_bomb_in_any_of_the_pickles_takes_little(bomb, place, tmp_path, read_in_a_process):
    value = bombs()[bomb]
    value = mapping({"model": STATE, "extra": value}) if place == "root" else value
    outcome, imported, peak = read_in_a_process(legacy_file(tmp_path / "bomb.pth", **{place: value}))
    assert outcome in ("BrokenCheckpoint", "UnsupportedCheckpoint")
    assert imported == ""
    assert peak < 1000


# The window in which the pickles are looked for

ENDLESS = {
    "a text of 2^62 bytes": b"\x8d" + struct.pack("<Q", 1 << 62),
    "a text of 4 GB": b"X" + struct.pack("<I", (1 << 32) - 1),
    "a line without an end": b"cmodule",
    "a frame, then zeros": b"\x95" + struct.pack("<Q", 1 << 40),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_pickle_that_never_ends_is_not_followed_through_a_large_file(kind, tmp_path, read_in_a_process):
    path = legacy_file(tmp_path / "endless.pth")
    start = path.read_bytes().index(pickle_of(STATE))
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\x80\x02" + ENDLESS[kind])
        file.truncate(64 << 30)  # nearly all of it a hole
    outcome, _, peak = read_in_a_process(path)
    assert outcome == "BrokenCheckpoint"
    assert peak < 1000


def test_the_window_grows_to_its_limit_and_no_further(tmp_path, monkeypatch):
    words = mapping({"model": STATE, "words": items(*(text(f"word {number}") for number in range(3000)))})
    path = legacy_file(tmp_path / "words.pth", words)
    monkeypatch.setattr(torch_legacy, "FIRST_WINDOW", 64)
    read_all(path)
    monkeypatch.setattr(torch_legacy, "MOST_PICKLE", 1000)
    with pytest.raises(BrokenCheckpoint):
        read_all(path)


def test_pickles_that_end_at_any_place_of_the_window_are_read(tmp_path, monkeypatch):
    path = legacy_file(tmp_path / "fine.pth")
    expected = of_ours(path)
    for window in range(1, path.stat().st_size + 2):
        monkeypatch.setattr(torch_legacy, "FIRST_WINDOW", window)
        assert of_ours(path) == expected


def test_names_in_the_pickles_are_shown_without_their_escape_sequences(tmp_path):
    path = legacy_file(tmp_path / "evil.pth", keys=items(text("\x1b[2J")))
    with pytest.raises(BrokenCheckpoint) as caught:
        open_source(path)
    assert "\x1b" not in str(caught.value)
    with pytest.raises(UnsupportedCheckpoint) as caught_too:
        open_source(legacy_file(tmp_path / "evil.pth", protocol=name("\x1b[2J.C")))
    assert "\x1b" not in str(caught_too.value)
