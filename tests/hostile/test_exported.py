"""Hostile exported programs (.pt2): an archive with raw storages and a JSON list of what they are."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelzip_cli.containers import torch_export
from modelzip_cli.errors import BrokenCheckpoint, ModelzipError, UnsafeInput, UnsupportedCheckpoint
from modelzip_cli.source import open_source
from tests.hostile.makers import Member, mapping, pickle_of, read_all, tensor, zip_of

DATA = struct.pack("<4f", 1, 2, 3, 4)
FOLDER = "m/data/weights/"
LIST = f"{FOLDER}model_weights_config.json"


def whole(*values: Any) -> list[dict[str, Any]]:
    """Sizes as the schema writes them."""
    return [{"as_int": value} for value in values]


def payload(**changes: Any) -> dict[str, Any]:
    """What the list says of one weight of four floats; `changes` are to the meta-data, `path_name` or `use_pickle`."""
    meta: dict[str, Any] = {
        "dtype": 7,
        "sizes": whole(2, 2),
        "strides": whole(2, 1),
        "storage_offset": {"as_int": 0},
        "requires_grad": False,
    }
    outer = {key: changes.pop(key) for key in ("path_name", "use_pickle") if key in changes}
    return {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": meta | changes} | outer


def members(listed: Any, weights: dict[str, bytes] | None = None) -> list[Member]:
    text = listed if isinstance(listed, bytes) else json.dumps({"config": listed}).encode()
    entries = {"m/archive_format": b"pt2", "m/archive_version": b"0", "m/models/model.json": b"{}", LIST: text}
    entries |= {FOLDER + key: data for key, data in ({"weight_0": DATA} if weights is None else weights).items()}
    return [Member(key, data) for key, data in entries.items()]


def pt2(path: Path, listed: Any, weights: dict[str, bytes] | None = None) -> Path:
    """An archive around a list of weights: bytes as they are, anything else as the value of `config`."""
    path.write_bytes(zip_of(members(listed, weights)))
    return path


def test_what_the_others_are_made_from_is_read(tmp_path):
    found = read_all(pt2(tmp_path / "m.pt2", {"w": payload()}))
    assert found.tensors == {"w": ("f32", (2, 2), DATA)}


WRONG_LISTS: dict[str, Any] = {
    "a negative size": payload(sizes=whole(-2, -2)),
    "a size that is true": payload(sizes=whole(True, 1)),
    "a size with a fraction": payload(sizes=whole(2.0, 2)),
    "a size that is text": payload(sizes=whole("2", 2)),
    "a size that is null": payload(sizes=whole(None, 2)),
    "a size of 2^62": payload(sizes=whole(1 << 62, 1)),
    "a size of 2^64 + 2": payload(sizes=whole((1 << 64) + 2, 2)),
    "sizes that multiply to little modulo 2^64": payload(sizes=whole(1 << 32, 1 << 32)),
    "sizes that are a number": payload(sizes=4),
    "sizes that are a dict": payload(sizes={"as_int": 4}),
    "sizes that are text": payload(sizes="22"),
    "a symbol": payload(sizes=[{"as_expr": "s0"}, {"as_int": 2}]),
    "65 dimensions": payload(sizes=whole(*[1] * 65), strides=whole(*[1] * 65)),
    "65 dimensions with strides": payload(sizes=whole(*[1] * 63, 2, 2), strides=whole(*[1] * 63, 1, 2)),
    "a negative stride": payload(strides=whole(-2, 1), storage_offset={"as_int": 2}),
    "a stride beyond the file": payload(strides=whole(3, 1)),
    "a huge stride": payload(strides=whole((1 << 62) - 1, 1)),
    "fewer strides than sizes": payload(strides=whole(1)),
    "a flood by strides of none": payload(sizes=whole(1 << 20, 1 << 20), strides=whole(0, 0)),
    "an offset beyond the file": payload(storage_offset={"as_int": 1}),
    "a huge offset": payload(storage_offset={"as_int": (1 << 62) - 1}),
    "a negative offset": payload(storage_offset={"as_int": -1}),
    "an offset that is false": payload(storage_offset={"as_int": False}),
    "no offset": payload(storage_offset={}),
    "a dtype that there is not": payload(dtype=99),
    "a negative dtype": payload(dtype=-1),
    "a dtype of unknown kind (0)": payload(dtype=0),
    "a dtype that is true": payload(dtype=True, sizes=whole(16), strides=whole(1)),
    "a dtype with a fraction": payload(dtype=7.0),
    "a dtype that is text": payload(dtype="7"),
    "a dtype that is a list": payload(dtype=[7]),
    "a dtype that is null": payload(dtype=None),
    "a wider dtype": payload(dtype=8),
    "a path that climbs": payload(path_name="../../models/model.json"),
    "a path that climbs and returns": payload(path_name="../weights/weight_0"),
    "an absolute path": payload(path_name="/etc/passwd"),
    "a path with a backslash": payload(path_name="..\\weight_0"),
    "a path with a zero byte": payload(path_name="weight_0\0"),
    "an empty path": payload(path_name=""),
    "a dot": payload(path_name="."),
    "a path from the root of the archive": payload(path_name=f"{FOLDER}weight_0"),
    "a path that is a number": payload(path_name=0),
    "a path that is a list": payload(path_name=["weight_0"]),
    "a file that is not there": payload(path_name="weight_1"),
    "no tensor": {},
    "a list for a tensor": [],
    "null for a tensor": None,
    "no meta-data": {"path_name": "weight_0", "use_pickle": False},
    "meta-data that is a list": {"path_name": "weight_0", "use_pickle": False, "tensor_meta": []},
}


@pytest.mark.parametrize("wrong", WRONG_LISTS)
def test_a_list_that_does_not_fit_its_files_is_refused(wrong, tmp_path):
    with pytest.raises(BrokenCheckpoint) as caught:
        read_all(pt2(tmp_path / "m.pt2", {"w": WRONG_LISTS[wrong]}))
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


TEXTS = {
    "nothing": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "null": b"null",
    "no config": b"{}",
    "a config that is a list": b'{"config": []}',
    "a config that is text": b'{"config": "w"}',
    "a key twice": b'{"config": {"w": {}, "w": {}}}',
    "a key twice by an escape": b'{"config": {"w": {}, "\\u0077": {}}}',
    "NaN": b'{"config": NaN}',
    "a lone surrogate": b'{"config": {"\\ud800": {}}}',
    "not UTF-8": b'{"config": {"\xff": {}}}',
    "a mark of byte order": b"\xef\xbb\xbf{}",
    "100,000 lists in lists": b'{"config": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of 5,000 digits": b'{"config": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_list_that_is_not_one_is_refused(kind, tmp_path):
    with pytest.raises(BrokenCheckpoint):
        read_all(pt2(tmp_path / "m.pt2", TEXTS[kind]))


@pytest.mark.parametrize("value", [True, 1, 0, None, "false", []])
def test_only_a_plain_no_to_pickles_is_taken(value, tmp_path):
    with pytest.raises(UnsafeInput, match="tensor w"):
        open_source(pt2(tmp_path / "m.pt2", {"w": payload(use_pickle=value)}))


def test_names_are_shown_without_their_escape_sequences(tmp_path):
    for change in ({"use_pickle": True}, {"path_name": "\x1b[2J"}, {"storage_offset": {"as_int": 1}}):
        with pytest.raises(ModelzipError) as caught:
            read_all(pt2(tmp_path / "m.pt2", {"w\x1b[2J\u202e": payload(**change)}))
        assert caught.value.args[0].isprintable()


@pytest.mark.parametrize("count", [0, 2])
def test_an_archive_without_one_list_of_weights_is_refused(count, tmp_path):
    entries = [member for member in members({"w": payload()}) if member.name != LIST]
    text = json.dumps({"config": {"w": payload()}}).encode()
    entries += [Member(f"{FOLDER}model{number}_weights_config.json", text) for number in range(count)]
    (tmp_path / "m.pt2").write_bytes(zip_of(entries))
    with pytest.raises(UnsupportedCheckpoint, match=f"weights of {count} models"):
        open_source(tmp_path / "m.pt2")


def test_a_list_that_would_be_larger_than_its_limit_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "m.pt2"
    path.write_bytes(zip_of(members({"w": payload()})))
    monkeypatch.setattr(torch_export, "MOST_CONFIG", 100)
    with pytest.raises(BrokenCheckpoint, match="larger"):
        open_source(path)


def test_a_list_that_says_it_has_300_megabytes_is_refused(tmp_path, read_in_a_process):
    for size in (300_000_000, 100_000_000):  # both beyond the end of the file
        forged = [
            Member(member.name, member.data, size=size, stored=size) if member.name == LIST else member
            for member in members({"w": payload()})
        ]
        (tmp_path / "m.pt2").write_bytes(zip_of(forged))
        outcome, _, peak = read_in_a_process(tmp_path / "m.pt2")
        assert outcome == "BrokenCheckpoint"
        assert peak < 1000


BOMBS: dict[str, Callable[[], Any]] = {
    "200,000 dimensions of 2^61": lambda: {"w": payload(sizes=whole(*[1 << 61] * 200_000), strides=whole(1))},
    "200,000 dimensions of both": lambda: {
        "w": payload(sizes=whole(*[1 << 61] * 200_000), strides=whole(*[1 << 61] * 200_000))
    },
    "many names for one file, each another view": lambda: {
        f"w{number}": payload(sizes=whole((1 << 20) - number), strides=whole(0)) for number in range(10_000)
    },
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_list_cannot_take_much_memory_or_time(bomb, tmp_path, read_in_a_process):
    path = pt2(tmp_path / "m.pt2", BOMBS[bomb]())
    outcome, imported, peak = read_in_a_process(path)
    assert outcome in ("BrokenCheckpoint", "read")
    assert imported == ""
    assert peak < 1000


def test_strides_that_overlap_are_read_as_they_are(tmp_path):
    found = read_all(pt2(tmp_path / "m.pt2", {"w": payload(sizes=whole(3, 2), strides=whole(1, 1))}))
    assert found.tensors["w"][2] == struct.pack("<6f", 1, 2, 2, 3, 3, 4)


def test_two_names_for_one_view_are_a_tie(tmp_path):
    found = read_all(pt2(tmp_path / "m.pt2", {"w": payload(), "v": payload()}))
    assert found.ties == {"v": "w"}


def test_an_archive_that_is_a_torch_file_as_well_is_refused(tmp_path):
    both = [*members({"w": payload()}), Member("m/data.pkl", pickle_of(mapping({"w": tensor()})))]
    (tmp_path / "m.pt2").write_bytes(zip_of(both))
    with pytest.raises(UnsupportedCheckpoint):
        open_source(tmp_path / "m.pt2")


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    path = pt2(tmp_path / "m.pt2", {"w": payload()})
    for length in reversed(range(path.stat().st_size)):
        with path.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(ModelzipError):
            read_all(path)


def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    path = pt2(tmp_path / "m.pt2", {"w": payload()})
    good, data, changed = read_all(path), path.read_bytes(), []
    with path.open("r+b", buffering=0) as file:
        for place in range(len(data)):
            for bit in range(8):
                file.seek(place)
                file.write(bytes([data[place] ^ 1 << bit]))
                try:
                    if read_all(path) != good:
                        changed.append((place, bit))
                except ModelzipError:
                    pass
            file.seek(place)
            file.write(data[place : place + 1])
    assert changed == []
