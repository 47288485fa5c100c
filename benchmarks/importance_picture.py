"""The picture of importance pruning: a metric over sparsity by criterion and stage, in SVG. Imports nothing but the
library.

The colour is that of the criterion; what a model does as it is is dotted, repaired dashed, recovered drawn through.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT, PANEL = 980, 420, 450
LEFT, RIGHT, TOP, BOTTOM = 48, 18, 62, 84
STAGES = ("as is", "repaired", "recovered")
STYLE = """
  svg { --back: #ffffff; --ink: #1f2328; --soft: #59636e; --grid: #e4e8ec; --c0: #0969da; --c1: #bc4c00; }
  @media (prefers-color-scheme: dark) {
    svg { --back: #0d1117; --ink: #e6edf3; --soft: #9198a1; --grid: #262c36; --c0: #58a6ff; --c1: #f0883e; } }
  .back { fill: var(--back); } .grid { stroke: var(--grid); } .dense { stroke: var(--ink); stroke-dasharray: 1 3; }
  .c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .line { fill: none; stroke-width: 2; }
  .dot { fill: var(--back); stroke-width: 1.5; } .s0 { stroke-dasharray: 2 4; } .s1 { stroke-dasharray: 8 4; }
  text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; }
  .title { fill: var(--ink); font-size: 15px; font-weight: 600; }
"""


@dataclass(frozen=True)
class Panel:
    """Curves of one model: a value a share of zeros, by criterion and stage; `dense`: that of the dense model."""

    title: str
    dense: float
    shares: Sequence[float]
    curves: Mapping[tuple[str, str], Sequence[float]]


def picture(panels: Sequence[Panel]) -> str:
    """Panels side by side, and what lines mean below them."""
    criteria = list(dict.fromkeys(criterion for panel in panels for criterion, _ in panel.curves))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Pruned by what matters</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
    ]
    for place, panel in enumerate(panels):
        parts += drawn(panel, 16 + place * (PANEL + 32), criteria)
    return "\n".join([*parts, *legend(criteria), "</svg>"]) + "\n"


def drawn(panel: Panel, left: float, criteria: Sequence[str]) -> Iterator[str]:
    """One panel whose left edge is at `left`."""
    values = [panel.dense, *(value for curve in panel.curves.values() for value in curve)]
    step = tick_step(max(values) - min(values))
    low, high = math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step
    right, bottom = left + PANEL - RIGHT, HEIGHT - BOTTOM
    first, last = panel.shares[0], panel.shares[-1]

    def across(share: float) -> float:
        return left + LEFT + (share - first) / (last - first) * (PANEL - LEFT - RIGHT)

    def down(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - TOP)

    yield f'<text class="title" x="{left}" y="26">{escape(panel.title)}</text>'
    for count in range(round((high - low) / step) + 1):
        y = down(low + count * step)
        yield f'<line class="grid" x1="{left + LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{left + LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{low + count * step:g}</text>'
    for share in panel.shares:
        yield f'<text x="{across(share):.1f}" y="{bottom + 18}" text-anchor="middle">{100 * share:g} %</text>'
    y = down(panel.dense)
    yield f'<line class="dense" x1="{left + LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    for (criterion, stage), curve in panel.curves.items():
        colour, points = criteria.index(criterion), list(zip(map(across, panel.shares), map(down, curve), strict=True))
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        yield f'<path class="line c{colour} s{STAGES.index(stage)}" d="M{path}"/>'
        for x, y in points:
            yield f'<circle class="dot c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'


def tick_step(span: float) -> float:
    """A round distance of 4 to 10 lines over `span`."""
    power = 10.0 ** math.floor(math.log10(span))
    return next(step for step in (power / 5, power / 2, power, 2 * power) if span / step <= 8)


def legend(criteria: Sequence[str]) -> Iterator[str]:
    """What the lines mean, in a row below the panels."""
    x, y = 16.0, HEIGHT - 22
    for colour, criterion in enumerate(criteria):
        for number, stage in enumerate(STAGES):
            name = f"{criterion}, {stage}"
            yield f'<path class="line c{colour} s{number}" d="M{x:.1f} {y - 4}h28"/>'
            yield f'<text x="{x + 34:.1f}" y="{y}">{escape(name)}</text>'
            x += 46 + 6.4 * len(name)
    yield f'<text x="16" y="{y - 24}">share of zeros across; thin dotted: the dense model</text>'
