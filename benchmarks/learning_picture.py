"""The picture of students: what they score before and after they learnt, in SVG. Imports nothing but the library."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP, ROW = 860, 190, 60, 58, 34
STYLE = """
  svg { --back: #ffffff; --ink: #1f2328; --soft: #59636e; --grid: #e4e8ec; --after: #0969da; --before: #8c959f; }
  @media (prefers-color-scheme: dark) {
    svg { --back: #0d1117; --ink: #e6edf3; --soft: #9198a1; --grid: #262c36; --after: #58a6ff; --before: #6e7681; } }
  .back { fill: var(--back); } .grid { stroke: var(--grid); } .teacher { stroke: var(--ink); stroke-dasharray: 4 3; }
  .after { fill: var(--after); } .before { fill: var(--before); }
  text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; }
  .title { fill: var(--ink); font-size: 15px; font-weight: 600; } .name { fill: var(--ink); }
  .inside { fill: var(--back); text-anchor: end; }
"""


def picture(rows: Sequence[tuple[str, float, float]], teacher: float) -> str:
    """Bars of accuracy in percent: (name, after, before) from top to bottom, and a line where the teacher is."""
    height = TOP + ROW * len(rows) + 34

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / 100

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}"/>',
        '<text class="title" x="16" y="26">Students of an eighth of the parameters: accuracy on test data</text>',
    ]
    bottom = TOP + ROW * len(rows)
    for value in range(0, 101, 20):
        x = across(value)
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{value} %</text>')
    for place, (name, after, before) in enumerate(rows):
        y = TOP + ROW * place
        out.append(f'<text class="name" x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        out.append(f'<rect class="after" x="{LEFT}" y="{y}" width="{across(after) - LEFT:.1f}" height="13" rx="2"/>')
        out.append(
            f'<rect class="before" x="{LEFT}" y="{y + 15}" width="{across(before) - LEFT:.1f}" height="5" rx="1"/>'
        )
        out.append(f'<text class="inside" x="{across(after) - 6:.1f}" y="{y + 11}">{after:.1f}</text>')
    x = across(teacher)
    out.append(f'<line class="teacher" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}"/>')
    out.append(f'<text x="{x:.1f}" y="{TOP - 14}" text-anchor="middle">teacher {teacher:.1f}</text>')
    out.append(f'<text x="{WIDTH - 16}" y="26" text-anchor="end">thick: after training; thin: before it</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
