"""The front of size against error, and what to take."""

from __future__ import annotations

from modelzip_cli.figures import count, decibel, size
from modelzip_cli.front import Front
from modelzip_cli.render import Block, Heading, Pairs, Table


def front_blocks(found: Front) -> list[Block]:
    """A table of points, the recommendation and its command."""
    source = found.source
    name = "standard input" if source.path == "-" else source.path
    title = f"{name}  {source.container}, {size(source.bytes)}, {count(source.parameters)} weights"
    rows = []
    for place, point in enumerate(found.points):
        marks = ["knee"] * (place == found.knee) + ["recommended"] * (place == found.choice)
        bits = "-" if point.bits_per_weight is None else f"{point.bits_per_weight:.2f}"
        error = "exact" if point.sqnr_db is None else decibel(point.sqnr_db)
        rows.append((bits, size(point.bytes), f"{point.ratio:.2f}x", error, ", ".join(marks)))
    exact = found.lossless
    mark = "recommended" if found.choice is None else ""
    rows.append(("lossless", size(exact.bytes), f"{exact.ratio:.2f}x", "exact", mark))
    pairs = [("why", found.reason), *(("warning", warning) for warning in found.warnings)]
    if found.command:
        pairs.append(("next", found.command))
    return [
        Heading(title),
        Table(("bits a weight", "predicted size", "ratio", "dB", ""), "rrrrl", tuple(rows)),
        Pairs(tuple(pairs), (("warning", "warn"),)),
    ]
