"""Archives that readers disagree on: refused, because a scanner and a loader would see two different files."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from modelzip_cli.containers.zip_file import CENTRAL, END, END64, LOCATOR
from modelzip_cli.errors import BrokenCheckpoint, ModelzipError, UnsupportedCheckpoint
from tests.hostile.makers import (
    Member,
    call,
    mapping,
    pickle_of,
    read_all,
    tensor,
    text,
    torch_members,
    zip_of,
)

PICKLE = pickle_of(mapping({"w": tensor()}))
OTHER = pickle_of(mapping({"v": tensor()}))
DATA = struct.pack("<4f", 1, 2, 3, 4)


def members(**changes) -> list[Member]:
    """The entries of a torch file; `changes` replace fields of one, by its name without folder and with `_` for `/`."""
    found = torch_members(PICKLE)
    for key, fields in changes.items():
        place = next(
            n for n, m in enumerate(found) if m.name.partition("/")[2].replace("/", "_").replace(".", "_") == key
        )
        found[place] = replace(found[place], **fields)
    return found


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_the_archive_that_these_tests_damage_is_fine(tmp_path):
    path = write(tmp_path / "fine.pth", zip_of(members()))
    assert read_all(path).tensors["w"][2] == DATA
    assert zipfile.ZipFile(path).testzip() is None


DEFLATED = zlib.compressobj(wbits=-15)
DEFLATED_PICKLE = DEFLATED.compress(PICKLE) + DEFLATED.flush()

TRICKS = {
    "a compressed entry": zip_of(members(data_pkl={"method": 8, "data": DEFLATED_PICKLE, "size": len(PICKLE)})),
    "an encrypted entry": zip_of(members(data_pkl={"flags": 1})),
    "an unknown flag": zip_of(members(data_0={"flags": 0x40})),
    "a size below the stored size": zip_of(members(data_0={"size": 8})),
    "a stored size beyond the file": zip_of(members(data_0={"size": 1 << 20, "stored": 1 << 20})),
    "another local name": zip_of(members(data_pkl={"local_name": "archive/atad.pkl"})),
    "one name twice": zip_of([*members(), *members()[:1]]),
    "one record twice": zip_of(members(data_0={"twice": True})),
    "two pickles of one name": zip_of([*members(), Member("archive/data.pkl", OTHER)]),
    "two pickles in two folders": zip_of([*members(), Member("other/data.pkl", OTHER)]),
    "a pickle deeper inside": zip_of([*members()[1:], Member("archive/a/data.pkl", PICKLE)]),
    "no pickle": zip_of(members()[1:]),
    "overlapping entries": zip_of(members(data_0={"header": 0})),
    "an entry inside another": zip_of(
        [Member("archive/data/0", zip_of(members())), *members(data_pkl={"header": 30 + len("archive/data/0")})]
    ),
    "an entry beyond the file": zip_of(members(data_0={"header": 1 << 30})),
    "a comment": zip_of(members(), comment=b"hello"),
    "junk after the archive": zip_of(members(), after=b"\0"),
    "another archive after it": zip_of(members(), after=zip_of(torch_members(OTHER))),
    "junk between entries and directory": zip_of(members(), shift=-1),
    "a directory past its place": zip_of(members(), shift=1),
    "fewer entries than there are": zip_of(members(), count=3),
    "more entries than there are": zip_of(members(), count=6),
    "65,535 entries": zip_of(members(), count=0xFFFF),
    "a path that climbs": zip_of([*members(), Member("../data.pkl", PICKLE)]),
    "a name that is not UTF-8": zip_of(members()).replace(b"archive/version", b"archive/\xff\xff\xff\xff\xff\xff\xff"),
    "big-endian numbers": zip_of(members(byteorder={"data": b"big"})),
    "a byte order of a gigabyte": zip_of(members(byteorder={"size": 1 << 30, "stored": 1 << 30})),
    "another file in the end record's 64-bit twin": None,
}


def twin() -> bytes:
    """Two pickles under one name: the directory of the end record lists the first, that of its 64-bit twin the second.

    Both directories end at the same byte. The first hides a record of the second in the comment of one of its own.
    """
    whole = zip_of([Member("archive/data.pkl", OTHER), *members()])
    number, _, size, offset = END.unpack(whole[-END.size :])[3:7]
    length = CENTRAL.size + len("archive/data.pkl")
    records = whole[offset : offset + size]
    hidden, honest, others = records[:length], bytearray(records[length : 2 * length]), records[2 * length :]
    struct.pack_into("<H", honest, 32, length)  # of the comment
    at = offset + size
    out = whole[:offset] + bytes(honest) + hidden + others
    out += END64.pack(
        b"PK\x06\x06", END64.size - 12, 45, 45, 0, 0, number - 1, number - 1, size - length, offset + length
    )
    out += LOCATOR.pack(b"PK\x06\x07", 0, at, 1)
    return out + END.pack(b"PK\x05\x06", 0, 0, number - 1, number - 1, size, offset, 0)


def test_python_reads_the_second_pickle_of_the_twin(tmp_path):
    with zipfile.ZipFile(write(tmp_path / "twin.pth", twin())) as archive:
        assert archive.read("archive/data.pkl") == OTHER


@pytest.mark.parametrize("trick", TRICKS)
def test_an_archive_that_torch_never_writes_is_refused(trick, tmp_path):
    data = TRICKS[trick]
    with pytest.raises((BrokenCheckpoint, UnsupportedCheckpoint)):
        read_all(write(tmp_path / "trick.pth", twin() if data is None else data))


def test_a_wrong_checksum_of_a_storage_is_refused_and_names_the_tensor(tmp_path):
    with pytest.raises(BrokenCheckpoint, match="tensor w: its checksum does not match"):
        read_all(write(tmp_path / "rot.pth", zip_of(members(data_0={"crc": 1}))))


def test_a_wrong_checksum_of_the_pickle_is_refused(tmp_path):
    with pytest.raises(BrokenCheckpoint, match=r"data\.pkl: its checksum does not match"):
        read_all(write(tmp_path / "rot.pth", zip_of(members(data_pkl={"crc": 1}))))


def test_a_checksum_of_zero_means_that_torch_did_not_compute_one(tmp_path):
    data = zip_of([replace(member, crc=0) for member in members()])
    assert read_all(write(tmp_path / "fast.pth", data)).tensors["w"][2] == DATA


def test_a_prefix_before_the_archive_is_refused(tmp_path):
    with pytest.raises(ModelzipError):
        read_all(write(tmp_path / "prefix.pth", b"#!/bin/sh\n" + zip_of(members())))


def test_the_folder_inside_the_archive_may_have_any_name(tmp_path):
    data = zip_of(torch_members(PICKLE, root="my model é"))
    assert list(read_all(write(tmp_path / "root.pth", data)).tensors) == ["w"]


def test_the_error_about_an_entry_shows_its_name_inert(tmp_path):
    data = zip_of([*members(), Member("archive/\x1b[31mred\n", b"", method=8)])
    with pytest.raises(UnsupportedCheckpoint) as caught:
        read_all(write(tmp_path / "red.pth", data))
    assert str(caught.value).isprintable()


def test_a_payload_in_an_unused_entry_is_neither_run_nor_read(tmp_path):
    canary = tmp_path / "canary"
    payload = Member("archive/data/payload.pkl", pickle_of(call("os.system", text(f"touch {canary}"))), crc=1)
    assert list(read_all(write(tmp_path / "payload.pth", zip_of([*members(), payload]))).tensors) == ["w"]
    assert not canary.exists()
