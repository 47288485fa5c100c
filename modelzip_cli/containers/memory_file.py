"""A file in memory: read like one on the disk, written like an output."""

from __future__ import annotations

import io

from modelzip_cli.errors import BrokenCheckpoint


class MemoryFile:
    """Bytes under a label for messages. `buffer` is the file object for libraries that want one."""

    def __init__(self, label: str, content: bytes = b"") -> None:
        self.label = label
        self.buffer = io.BytesIO(content)

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.buffer.getbuffer().nbytes

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises BrokenCheckpoint when the file ends before."""
        if offset + length > self.size:
            raise BrokenCheckpoint(f"{self.label}: the file ends {offset + length - self.size:,} bytes early")
        self.buffer.seek(offset)
        return self.buffer.read(length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put `data` at `offset`; what lies between the end and it is zero."""
        self.buffer.seek(offset)
        self.buffer.write(data)
