"""The pictures of docs/quality.md: size across, loss of quality down, in SVG. Imports nothing but the library.

Size is on a logarithmic axis. Loss is on one that is linear near 0 and logarithmic beyond (asinh), so that schemes
which cost nothing and schemes which cost everything can be told apart in one picture. The steps of `ecq` are joined by
a line. Light and dark mode are told by the viewer; the picture paints its own background.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 1000, 640
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 52, 84  # margins
LETTER, LINE = 6.65, 13  # of a label: 11 px monospace
TOGETHER = 5  # pixels between points that share a label
FAMILIES = (  # name, schemes, marker
    ("original", ("original",), "ring"),
    ("floats", ("fp16", "bf16", "fp8"), "diamond"),
    ("integers", ("int",), "circle"),
    ("fixed point", ("fixed",), "square"),
    ("codebooks", ("nf4", "codebook"), "triangle"),
    ("ternary, binary", ("ternary", "binary"), "wedge"),
    ("ecq", ("ecq",), "hexagon"),
    ("lossless", ("lossless",), "bar"),
)
STYLE = """
  svg { --back: #ffffff; --ink: #1f2328; --soft: #59636e; --grid: #e4e8ec; --front: #8c959f;
        --f0: #1f2328; --f1: #1a7f37; --f2: #0969da; --f3: #9a6700; --f4: #8250df; --f5: #cf222e;
        --f6: #bf3989; --f7: #1b7c83; }
  @media (prefers-color-scheme: dark) {
    svg { --back: #0d1117; --ink: #e6edf3; --soft: #9198a1; --grid: #262c36; --front: #6e7681;
          --f0: #e6edf3; --f1: #3fb950; --f2: #58a6ff; --f3: #d29922; --f4: #bc8cff; --f5: #ff7b72;
          --f6: #f778ba; --f7: #39c5cf; } }
  .back { fill: var(--back); } .grid { stroke: var(--grid); fill: none; } .zero { stroke: var(--soft); }
  .front { stroke: var(--front); stroke-width: 1.5; stroke-dasharray: 5 3; fill: none; }
  .curve { stroke-width: 1.5; opacity: 0.7; fill: none; }
  text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; }
  .title { fill: var(--ink); font-size: 15px; font-weight: 600; }
  .label { font: 11px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; paint-order: stroke;
           stroke: var(--back); stroke-width: 3px; stroke-linejoin: round; }
  .bold { font-weight: 700; } .lead { stroke-width: 0.8; opacity: 0.6; }
  .ring { fill: var(--back); }
""" + "".join(f"  .f{i} {{ fill: var(--f{i}); }} .l{i} {{ stroke: var(--f{i}); }}\n" for i in range(len(FAMILIES)))


@dataclass(frozen=True)
class Point:
    """A file: its scheme, its size, what it loses (less than 0: it gained), and whether it is on the front."""

    label: str
    bytes: int
    loss: float
    on_front: bool


@dataclass(frozen=True)
class Box:
    """A rectangle in the picture."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlap(self, other: Box) -> float:
        """The area that both have."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(width, 0) * max(height, 0)

    def holds(self, x: float, y: float) -> bool:
        """Whether a point is inside."""
        return self.x0 < x < self.x1 and self.y0 < y < self.y1


@dataclass(frozen=True)
class Label:
    """The names of points that lie together, in their place: box, and the line that leads to it."""

    box: Box
    line: tuple[float, float, float, float]


class Scale:
    """Bytes and losses to pixels."""

    def __init__(self, points: Sequence[Point], step: float) -> None:
        self.step = step
        self.low, self.high = (math.log(f(p.bytes for p in points)) for f in (min, max))
        self.low, self.high = self.low - 0.08 * (self.high - self.low), self.high + 0.1 * (self.high - self.low)
        self.best, self.worst = (math.asinh(f(p.loss for p in points) / step) for f in (min, max))
        self.best, self.worst = min(self.best, 0) - 0.45, max(self.worst, 1) + 0.35

    def x(self, size: float) -> float:
        """Across, logarithmic."""
        return LEFT + (math.log(size) - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        """Down, asinh."""
        share = (math.asinh(loss / self.step) - self.best) / (self.worst - self.best)
        return TOP + share * (HEIGHT - TOP - BOTTOM)

    def sizes(self) -> list[int]:
        """Round sizes in range: 1, 1.5, 2, 3, 4, 5, 7 times a power of ten."""
        tens = [10**power for power in range(2, 12)]
        found = [int(ten * times) for ten in tens for times in (1, 1.5, 2, 3, 4, 5, 7)]
        return [size for size in found if LEFT <= self.x(size) <= WIDTH - RIGHT]

    def losses(self) -> list[float]:
        """Round losses in range."""
        steps = [self.step * times for times in (-2, -1, 0, 1, 2, 4, 10, 20, 40, 100, 160)]
        return [loss for loss in steps if TOP < self.y(loss) < HEIGHT - BOTTOM]


def family(label: str) -> int:
    """Which of FAMILIES a label belongs to."""
    return next(i for i, (_, names, _) in enumerate(FAMILIES) if label.startswith(names))


def draw(title: str, points: Sequence[Point], step: float, axis: str) -> str:
    """The picture as SVG. `step`: the loss up to which the axis is linear, more or less."""
    scale = Scale(points, step)
    places = {point: (scale.x(point.bytes), scale.y(point.loss)) for point in points}
    heaps = gather(places)
    zero = scale.y(0)
    labels = place(places, heaps, Box(LEFT, zero - 1, WIDTH - RIGHT, zero + 1))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
        text(LEFT, 22, title, "title", "start"),
        text(LEFT, 40, f"{axis}; up and left is better; dashed: no smaller file scores as well", "", "start"),
        *grid(scale),
        front(points, scale),
        *curves(points, scale),
    ]
    for heap, label in zip(heaps, labels, strict=True):
        x0, y0, x1, y1 = label.line
        parts.append(f'<path class="lead l{family(heap[0].label)}" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
    parts += [marker(family(point.label), *places[point]) for point in points]
    for heap, label in zip(heaps, labels, strict=True):
        parts += names(heap, label)
    return "\n".join([*parts, *legend(), "</svg>"]) + "\n"


def rows(heap: Sequence[Point]) -> list[Sequence[Point]]:
    """The names of a heap in rows of three."""
    return [heap[first : first + 3] for first in range(0, len(heap), 3)]


def names(heap: Sequence[Point], label: Label) -> Iterable[str]:
    """The names of a heap in their colours, at the end of the line that leads to them."""
    leftward = label.box.x1 <= label.line[0]
    x, anchor = (label.box.x1, "end") if leftward else (label.box.x0, "start")
    for number, row in enumerate(rows(heap)):
        spans = [
            f'<tspan class="f{family(point.label)}{" bold" if point.on_front else ""}">{escape(point.label)}</tspan>'
            for point in row
        ]
        y = label.box.y0 + (number + 1) * LINE - 3.5
        yield f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{", ".join(spans)}</text>'


def text(x: float, y: float, content: str, kind: str, anchor: str) -> str:
    """A line of text."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def grid(scale: Scale) -> Iterable[str]:
    """Lines and figures of both axes."""
    for size in scale.sizes():
        x = scale.x(size)
        yield f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        shown = f"{size / 1e6:g} MB" if size >= 1e6 else f"{size / 1e3:g} kB"
        yield text(x, HEIGHT - BOTTOM + 17, shown, "", "middle")
    for loss in scale.losses():
        y = scale.y(loss)
        yield f'<path class="grid{" zero" if loss == 0 else ""}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        shown = "0" if loss == 0 else f"{loss:g}" if loss > 0 else f"\N{MINUS SIGN}{-loss:g}"
        yield text(LEFT - 8, y + 4, shown, "", "end")
    yield text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 36, "size of the file", "", "middle")


def front(points: Sequence[Point], scale: Scale) -> str:
    """A staircase through the points on the front: down in size at equal quality, then down in quality."""
    found = sorted((scale.x(point.bytes), scale.y(point.loss)) for point in points if point.on_front)
    x, y = found[0]
    path = f"M{x:.1f} {y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in found[1:])
    return f'<path class="front" d="{path}"/>'


def curves(points: Sequence[Point], scale: Scale) -> Iterable[str]:
    """A line through the steps of `ecq`, and one through those with words beside the scheme."""
    steps = [point for point in points if point.label.startswith("ecq")]
    for words in sorted({point.label.partition(" ")[2] for point in steps}):
        line = sorted((scale.x(p.bytes), scale.y(p.loss)) for p in steps if p.label.partition(" ")[2] == words)
        kind = family(steps[0].label)
        yield f'<path class="curve l{kind}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in line)}"/>'


def marker(kind: int, x: float, y: float) -> str:
    """The marker of a family around x, y."""
    shape = FAMILIES[kind][2]
    if shape == "ring":
        return f'<circle class="ring l{kind}" stroke-width="2" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    if shape == "circle":
        return f'<circle class="f{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    corners = {
        "square": ((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)),
        "diamond": ((0, -5.2), (5.2, 0), (0, 5.2), (-5.2, 0)),
        "triangle": ((0, -5), (4.8, 3.6), (-4.8, 3.6)),
        "wedge": ((0, 5), (4.8, -3.6), (-4.8, -3.6)),
        "hexagon": ((-5, 0), (-2.5, -4.4), (2.5, -4.4), (5, 0), (2.5, 4.4), (-2.5, 4.4)),
        "bar": ((-5.5, -2.5), (5.5, -2.5), (5.5, 2.5), (-5.5, 2.5)),
    }[shape]
    outline = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="f{kind}" points="{outline}"/>'


def legend() -> Iterable[str]:
    """What the markers mean, in a row below the axis."""
    x = float(LEFT)
    for kind, (name, _, _) in enumerate(FAMILIES):
        yield marker(kind, x + 5, HEIGHT - 18)
        yield text(x + 15, HEIGHT - 14, name, "", "start")
        x += 40 + 6 * len(name)
    yield text(WIDTH - RIGHT, HEIGHT - 14, "bold: on the dashed line", "", "end")


# --- where labels go ------------------------------------------------------------------------------------------------


def gather(places: Mapping[Point, tuple[float, float]]) -> list[list[Point]]:
    """Points whose markers would cover each other, in heaps; the others are heaps of one."""
    heaps: list[list[Point]] = []
    for point in sorted(places, key=lambda point: (places[point], point.label)):
        for heap in heaps:
            if math.dist(places[heap[0]], places[point]) < TOGETHER:
                heap.append(point)
                break
        else:
            heaps.append([point])
    return heaps


def place(places: Mapping[Point, tuple[float, float]], heaps: Sequence[Sequence[Point]], axis: Box) -> list[Label]:
    """Put a label near each heap, so that none covers another, a point, the axis, or the line that leads to another.

    The most crowded choose first, each the nearest free place of all directions.
    """
    at = [places[heap[0]] for heap in heaps]
    markers = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in places.values()]
    near = [len(heap) + sum(math.dist(here, there) < 60 for there in at) for heap, here in zip(heaps, at, strict=True)]
    placed: dict[int, Label] = {}
    for i in sorted(range(len(heaps)), key=lambda i: (-near[i], at[i])):
        lines = [", ".join(point.label for point in row) for row in rows(heaps[i])]
        width, height = max(map(len, lines)) * LETTER, len(lines) * LINE
        others = [
            box for box in markers if math.dist(at[i], ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)) >= TOGETHER
        ]
        options = candidates(*at[i], width, height)
        placed[i] = min(options, key=lambda label: cost(label, [*markers, axis], others, placed.values()))
    return [placed[i] for i in range(len(heaps))]


def candidates(x: float, y: float, width: float, height: float) -> Iterable[Label]:
    """Places for a label around x, y, nearest first, inside the axes."""
    for distance in (8, 13, 19, 26, 34, 43, 53, 64, 76, 89, 103, 118, 134, 151, 169, 190):
        for turn in range(24):
            angle = math.pi * turn / 12
            cos, sin = math.cos(angle), math.sin(angle)
            middle = x + distance * cos + (width / 2 * cos if abs(cos) < 0.5 else math.copysign(width / 2, cos))
            level = y + (distance + (height - LINE) / 2) * sin
            box = Box(middle - width / 2, level - height / 2, middle + width / 2, level + height / 2)
            if box.x0 > LEFT and box.x1 < WIDTH - 4 and box.y0 > TOP and box.y1 < HEIGHT - BOTTOM:
                end = min(max(x, box.x0), box.x1), min(max(y, box.y0 + LINE / 2), box.y1 - LINE / 2)
                yield Label(box, (x, y, *end))


def cost(label: Label, obstacles: Sequence[Box], markers: Sequence[Box], placed: Iterable[Label]) -> float:
    """Length of the line that leads to a label, and a great deal for all that the label or the line covers."""
    covered = sum(label.box.overlap(box) for box in obstacles)
    touched = sum(box.holds(*at) for box in markers for at in along(label.line))
    crossed = 0
    for other in placed:
        covered += label.box.overlap(other.box)
        touched += sum(other.box.holds(*at) for at in along(label.line))
        crossed += sum(label.box.holds(*at) for at in along(other.line)) + 2 * cross(label.line, other.line)
    x0, y0, x1, y1 = label.line
    return math.hypot(x1 - x0, y1 - y0) + 40 * covered + 12 * touched + 100 * crossed


def along(line: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    """13 places on a line."""
    x0, y0, x1, y1 = line
    return [(x0 + (x1 - x0) * i / 12, y0 + (y1 - y0) * i / 12) for i in range(13)]


def cross(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two lines cross."""

    def side(line: tuple[float, ...], x: float, y: float) -> float:
        return (line[2] - line[0]) * (y - line[1]) - (line[3] - line[1]) * (x - line[0])

    return (
        side(one, other[0], other[1]) * side(one, other[2], other[3]) < 0
        and side(other, one[0], one[1]) * side(other, one[2], one[3]) < 0
    )
