"""Figures as people read them: bytes, counts, times, dB and shapes."""

from __future__ import annotations

from collections.abc import Sequence


def size(value: float) -> str:
    """Bytes as disks and hubs count them: three significant digits of B, kB, MB, GB, TB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {unit}"
        value /= 1000
    raise AssertionError


def count(value: float) -> str:
    """A number of weights: 174 k, 46.7 M, 7.24 B."""
    for unit in ("", " k", " M", " B"):
        if value < 999.5 or unit == " B":
            digits = 0 if not unit or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f}{unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def decibel(value: float | None) -> str:
    """A figure in dB, or a dash."""
    return "-" if value is None else f"{value:.1f}"


def shape(sizes: Sequence[int]) -> str:
    """512x256, or a word for a single number."""
    return "x".join(map(str, sizes)) or "scalar"
