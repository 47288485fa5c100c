"""The zip archive of a torch file: a strict reader of its directory, and a writer of stored, aligned entries.

Source: PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5; the 64-byte alignment by an `FB` extra field is PyTorch's
(caffe2/serialize/inline_container.cc). Readers that disagree on a malformed archive are how scanners are fooled, so
everything that torch never writes is refused: compression, junk, overlaps, two names for one entry.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from modelzip_cli.containers.atomic import AtomicFile
from modelzip_cli.containers.memory_file import MemoryFile
from modelzip_cli.containers.source_file import Readable
from modelzip_cli.containers.streams import StandardOutput
from modelzip_cli.errors import BrokenCheckpoint, UnsupportedCheckpoint, inert

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
MOST_ENTRIES = 1_000_000
MOST_DIRECTORY = 256 << 20
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
UTF8, DESCRIPTOR = 0x0800, 0x0008
ALIGNMENT = 64


@dataclass(frozen=True)
class Entry:
    """A stored file inside the archive: its bytes lie at [offset, offset + size). `crc` 0 means: not computed."""

    name: str
    offset: int
    size: int
    crc: int


TORCHSCRIPT = (
    "a TorchScript archive, which holds code: in Python, torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth'), "
    "and give that file"
)


def read_directory(file: Readable) -> dict[str, Entry]:
    """Return the entries of an archive by name. Raises BrokenCheckpoint, or UnsupportedCheckpoint for compression."""
    count, size, offset = _end(file)
    if count > MOST_ENTRIES or size > MOST_DIRECTORY or offset + size > file.size:
        raise BrokenCheckpoint(f"{file.label}: the zip directory does not fit the file; download or copy it again")
    directory = file.read(offset, size)
    entries: dict[str, Entry] = {}
    ends: list[tuple[int, int]] = []
    place = 0
    for _ in range(count):
        if place + CENTRAL.size > size:
            raise BrokenCheckpoint(f"{file.label}: the zip directory is cut short; download or copy it again")
        fields = CENTRAL.unpack_from(directory, place)
        name_end = place + CENTRAL.size + fields[10]
        extra_end = name_end + fields[11]
        raw_name = directory[place + CENTRAL.size : name_end]
        entry, header = _entry(file, fields, raw_name, directory[name_end:extra_end], offset)
        if entry.name in entries:
            raise BrokenCheckpoint(f"{file.label}: two zip entries are called {inert(entry.name)!r}")
        entries[entry.name] = entry
        ends.append((header, entry.offset + entry.size))
        place = extra_end + fields[12]
    if place != size:
        raise BrokenCheckpoint(f"{file.label}: the zip directory has {size - place} bytes too many")
    ends.sort()
    for (_, end), (start, _) in pairwise(ends):
        if end > start:
            raise BrokenCheckpoint(f"{file.label}: zip entries overlap")
    return entries


def _end(file: Readable) -> tuple[int, int, int]:
    """Number of entries, size and offset of the central directory, from the record that must end the file."""
    broken = BrokenCheckpoint(f"{file.label}: the zip directory is missing: cut short; download or copy it again")
    if file.size < END.size:
        raise broken
    magic, disk, start_disk, here, count, size, offset, comment = END.unpack(file.read(file.size - END.size, END.size))
    if magic != b"PK\x05\x06" or comment or disk or start_disk or here != count:
        raise broken
    end = file.size - END.size
    if count == FULL16 or FULL32 in (size, offset):
        at = file.size - END.size - LOCATOR.size
        if at < END64.size:
            raise broken
        magic, _, at64, _ = LOCATOR.unpack(file.read(at, LOCATOR.size))
        if magic != b"PK\x06\x07" or at64 + END64.size > at:
            raise broken
        magic, _, _, _, _, _, here, count, size, offset = END64.unpack(file.read(at64, END64.size))
        if magic != b"PK\x06\x06" or here != count:
            raise broken
        end = at64
    elif file.size >= END.size + LOCATOR.size + END64.size:  # torch writes the 64-bit records always
        at = file.size - END.size - LOCATOR.size
        magic, _, at64, _ = LOCATOR.unpack(file.read(at, LOCATOR.size))
        if magic == b"PK\x06\x07":
            if at64 + END64.size > at:
                raise broken
            wide = END64.unpack(file.read(at64, END64.size))  # other readers follow this record: it must say the same
            if wide[0] != b"PK\x06\x06" or wide[6:] != (count, count, size, offset):
                raise BrokenCheckpoint(f"{file.label}: the two end records of the zip archive differ")
            end = at64
    if offset + size != end:
        raise BrokenCheckpoint(f"{file.label}: the zip directory is not where the archive ends")
    return count, size, offset


def _entry(file: Readable, fields: tuple[Any, ...], raw_name: bytes, extra: bytes, limit: int) -> tuple[Entry, int]:
    """Check one directory record against its local header; return the entry and where the header begins."""
    _, _, _, flags, method, _, _, crc, stored, size, *_, header = fields
    try:
        name = raw_name.decode("utf-8")
    except UnicodeDecodeError:
        raise BrokenCheckpoint(f"{file.label}: a zip entry has a name that is not UTF-8") from None
    label = f"{file.label}: zip entry {inert(name)!r}"
    if fields[0] != b"PK\x01\x02" or flags & ~(UTF8 | DESCRIPTOR):
        raise BrokenCheckpoint(f"{label}: a malformed directory record")
    if method != 0 and "/code/" in name:
        raise UnsupportedCheckpoint(f"{file.label}: {TORCHSCRIPT}")
    if method != 0:
        raise UnsupportedCheckpoint(
            f"{label} is compressed, which torch never does; save the checkpoint with torch again"
        )
    wide = _zip64(extra, [value for value in (size, stored, header) if value == FULL32], label)
    size = wide.pop(0) if size == FULL32 else size
    stored = wide.pop(0) if stored == FULL32 else stored
    header = wide.pop(0) if header == FULL32 else header
    if stored != size or header + LOCAL.size > limit:
        raise BrokenCheckpoint(f"{label}: does not fit the file")
    local = LOCAL.unpack(file.read(header, LOCAL.size))
    if local[0] != b"PK\x03\x04" or local[3] != 0 or file.read(header + LOCAL.size, local[9]) != raw_name:
        raise BrokenCheckpoint(f"{label}: its own header says something else than the directory")
    offset = header + LOCAL.size + local[9] + local[10]
    if offset + size > limit:
        raise BrokenCheckpoint(f"{label}: does not fit the file")
    return Entry(name, offset, size, crc), header


def _zip64(extra: bytes, needed: list[int], label: str) -> list[int]:
    """The 64-bit values that stand in the extra field for the `needed` full 32-bit ones."""
    if not needed:
        return []
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1 and length >= 8 * len(needed) and place + 4 + length <= len(extra):
            return list(struct.unpack_from(f"<{len(needed)}Q", extra, place + 4))
        place += 4 + length
    raise BrokenCheckpoint(f"{label}: its 64-bit size is missing")


def check_crc(entry: Entry, data: bytes, label: str) -> None:
    """Raise BrokenCheckpoint when `data`, all of `entry`, does not match the checksum of the archive."""
    if entry.crc and zlib.crc32(data) != entry.crc:
        raise BrokenCheckpoint(f"{label}: its checksum does not match: the file is damaged")


class ZipWriter:
    """Appends stored entries to an output. Data of an entry may come in any order; its header is written last."""

    def __init__(self, output: AtomicFile | StandardOutput | MemoryFile) -> None:
        self.output = output
        self.position = 0
        self._entries: list[tuple[bytes, int, int, int]] = []  # name, header offset, size, crc

    def reserve(self, name: str, size: int) -> tuple[int, int]:
        """Make room for an entry of `size` bytes: (offset of its header, offset of its data, a multiple of 64)."""
        header = self.position
        data = header + len(self._local_header(name, size, 0, header))
        self.position = data + size
        return header, data

    def resize(self, name: str, place: tuple[int, int], size: int, new: int) -> None:
        """Let the entry reserved last have `new` bytes instead of `size`."""
        header, data = place
        if header + len(self._local_header(name, new, 0, header)) != data:
            raise UnsupportedCheckpoint("a tensor of 4 GB when compressed: write a safetensors file instead")
        self.position += new - size

    def finish_entry(self, name: str, header: int, size: int, crc: int) -> None:
        """Write the header of an entry whose data is there."""
        self.output.write(header, self._local_header(name, size, crc, header))
        self._entries.append((name.encode(), header, size, crc))

    def add(self, name: str, data: bytes, crc: int) -> None:
        """Append a small entry."""
        header, offset = self.reserve(name, len(data))
        self.output.write(offset, data)
        self.finish_entry(name, header, len(data), crc)

    def finish(self) -> None:
        """Write the directory, with the 64-bit records where they are needed."""
        start = self.position
        records = b"".join(self._central_record(*entry) for entry in self._entries)
        count, size = len(self._entries), len(records)
        tail = b""
        if count >= FULL16 or size >= FULL32 or start >= FULL32:
            tail = END64.pack(b"PK\x06\x06", END64.size - 12, 45, 45, 0, 0, count, count, size, start)
            tail += LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1)
        short = min(count, FULL16)
        tail += END.pack(b"PK\x05\x06", 0, 0, short, short, min(size, FULL32), min(start, FULL32), 0)
        self.output.write(start, records + tail)

    @staticmethod
    def _local_header(name: str, size: int, crc: int, header: int) -> bytes:
        raw = name.encode()
        extra = struct.pack("<2H2Q", 1, 16, size, size) if size >= FULL32 else b""
        short = FULL32 if size >= FULL32 else size
        unpadded = header + LOCAL.size + len(raw) + len(extra) + 4
        padding = -unpadded % ALIGNMENT
        extra += struct.pack("<2H", 0x4246, padding) + b"Z" * padding
        version = 45 if size >= FULL32 else 20
        return (
            LOCAL.pack(b"PK\x03\x04", version, UTF8, 0, 0, 0x21, crc, short, short, len(raw), len(extra)) + raw + extra
        )

    @staticmethod
    def _central_record(name: bytes, header: int, size: int, crc: int) -> bytes:
        wide = [size, size] * (size >= FULL32) + [header] * (header >= FULL32)
        extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        short, at = min(size, FULL32), min(header, FULL32)
        version = 45 if wide else 20
        fields = (version, version, UTF8, 0, 0, 0x21, crc, short, short, len(name), len(extra), 0, 0, 0, 0, at)
        return CENTRAL.pack(b"PK\x01\x02", *fields) + name + extra
