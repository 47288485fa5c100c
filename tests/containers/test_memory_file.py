from __future__ import annotations

import pytest

from modelzip_cli.containers.memory_file import MemoryFile
from modelzip_cli.containers.zip_file import ZipWriter, read_directory
from modelzip_cli.errors import BrokenCheckpoint


def test_an_archive_is_written_and_read_in_memory():
    file = MemoryFile("here")
    writer = ZipWriter(file)
    for name, data in (("a/first", b"123"), ("a/empty", b"")):
        writer.add(name, data, 0)
    writer.finish()
    found = read_directory(file)
    assert {name: file.read(entry.offset, entry.size) for name, entry in found.items()} == {
        "a/first": b"123",
        "a/empty": b"",
    }


def test_reading_beyond_the_end_names_the_file():
    file = MemoryFile("here", b"12345")
    assert (file.read(1, 3), file.size) == (b"234", 5)
    with pytest.raises(BrokenCheckpoint, match="here: the file ends 2 bytes early"):
        file.read(4, 3)
