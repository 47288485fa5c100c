"""Checksums of whole arrays from the pieces that happened to be read, on whatever thread and in whatever order."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from threading import Lock

from modelzip_cli.containers.checksum import combine

CHUNK = 4 << 20


class Ledger:
    """Notes which bytes of which array were read and their CRC-32."""

    def __init__(self) -> None:
        self._pieces: dict[str, dict[tuple[int, int], int]] = {}
        self._lock = Lock()

    def note(self, name: str, begin: int, data: bytes | memoryview) -> None:
        """Note that `data` was read at byte `begin` of array `name`. A piece of no bytes marks the array as used."""
        crc = zlib.crc32(data)
        with self._lock:
            pieces = self._pieces.setdefault(name, {})
            if len(data):
                pieces[begin, begin + len(data)] = crc

    def names(self) -> list[str]:
        """The arrays of which something was read."""
        return list(self._pieces)

    def crc(self, name: str, size: int, read: Callable[[int, int], bytes]) -> int:
        """Return the CRC-32 of the whole array of `size` bytes; `read(begin, end)` brings what was not read yet."""
        total, position = 0, 0
        for (begin, end), crc in sorted(self._pieces[name].items()):
            if begin < position:  # two cuts of one array: go through it once more
                return _crc_through(0, 0, size, read)
            total = combine(_crc_through(total, position, begin, read), crc, end - begin)
            position = end
        return _crc_through(total, position, size, read)


def _crc_through(total: int, begin: int, end: int, read: Callable[[int, int], bytes]) -> int:
    for start in range(begin, end, CHUNK):
        total = zlib.crc32(read(start, min(start + CHUNK, end)), total)
    return total
