"""A signal to stop that lets what is under way come to an end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def interruptible() -> Iterator[Callable[[], int | None]]:
    """Give what tells the number of the first signal to stop, if one came; a second one stops at once, as before."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for watched in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(watched) is not signal.SIG_IGN:
            before[watched] = signal.signal(watched, note)
    try:
        yield lambda: caught[0] if caught else None
    finally:
        restore()
