"""Pictures: where the bytes are, what became of them by group, and size against error."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10, prod
from unicodedata import east_asian_width

from modelzip_cli.errors import inert
from modelzip_cli.figures import decibel, size
from modelzip_cli.grouping import Group, group
from modelzip_cli.html.markup import LONGEST, plural, safe, times
from modelzip_cli.html.treemap import Box, Module, at_same_scale, layout, modules
from modelzip_cli.report import Report, TensorRow

MOST_GROUPS = 40
MOST_POINTS = 400
CHART = (560, 340)  # the units of a picture: pixels on a wide screen
BITS = ((2, "up to 2"), (3, "2 to 3"), (4.5, "3 to 4.5"), (6, "4.5 to 6"), (9, "6 to 9"), (17, "9 to 17"))
MOST_BITS = "over 17"
FONTS = (("wide", 11.0), ("narrow", 16.5))  # the size of text in a picture on a wide and on a narrow screen
ADVANCE = 0.605  # of a monospaced character, in its font size


def size_bars(before: int, after: int, word: str) -> str:
    """Two bars for the bytes of a file before and after; `word`: what after is called."""
    largest = max(before, after, 1)
    lines = [
        f'<li><span>{label}</span><svg height="20" aria-hidden="true"><rect class="{kind}" width="{width:.2f}%" '
        f'height="20"/></svg><b>{size(value)}</b></li>\n'
        for label, kind, value, width in (
            ("Before", "was", before, 100 * before / largest),
            (word, "now", after, 100 * after / largest),
        )
    ]
    return f'<ul class="sizes">\n{"".join(lines)}</ul>\n'


def treemaps(report: Report) -> str:
    """Where the bytes are, by module: a map before and one after, at one scale."""
    found = modules(report.tensors)
    before, after = sum(module.before for module in found), sum(module.after for module in found)
    if not before and not after:
        return ""
    changed = any(module.before != module.after for module in found)
    boxes = at_same_scale(before, after if changed else before, *CHART)
    sides = [("Before", before, boxes[0], False), ("After", after, boxes[1], True)] if changed else []
    sides = sides or [("Before and after: the same bytes", before, boxes[0], True)]
    seen: set[int | str] = set()
    pictures = []
    for label, total, box, is_after in sides:
        picture = _treemap(found, box, is_after, seen) if total else ""
        caption = f"{label} <b>{size(total)}</b>"
        pictures.append(f"<figure><figcaption>{caption}</figcaption>\n{picture}</figure>\n")
    names = [name for _, name in BITS] + [MOST_BITS]
    keys = [
        f'<li><svg width="12" height="12" aria-hidden="true" class="b{number}"><rect width="12" height="12"/></svg>'
        f"{names[number]}</li>"
        for number in sorted(number for number in seen if isinstance(number, int))
    ]
    if "dropped" in seen:
        swatch = '<svg width="12" height="12" aria-hidden="true" class="gone"><rect width="12" height="12"/></svg>'
        keys.append(f"<li>{swatch}dropped</li>")
    legend = f'<ul class="legend"><li>Bits a weight:</li>{"".join(keys)}</ul>\n'
    note = "Area is bytes of tensors, at the same scale before and after; names are those of modules."
    return f'<p class="note">{note}</p>\n{legend}<div class="pair">\n{"".join(pictures)}</div>\n'


def _treemap(found: Sequence[Module], box: Box, is_after: bool, seen: set[int | str]) -> str:
    leaves, frames = layout(found, lambda module: module.after if is_after else module.before, box)
    shared = _shared_start([module.parts for module in found])
    out = []
    for module, place in leaves:
        stored = module.after if is_after else module.before
        bits = _bits(module, stored)
        kind: int | str = "dropped" if module.dropped else _bits_class(bits)
        seen.add(kind)
        what = f"{size(stored)}, {plural(module.tensors, 'tensor')}, " + (
            "dropped" if module.dropped else f"{bits:.2f} bits a weight"
        )
        labels = _label(module.parts[shared:], size(stored), place)
        color = "gone" if module.dropped else f"b{kind}"
        out.append(
            f'<g class="{color}"><title>{safe(module.name, LONGEST)}\n{what}</title>'
            f'<rect x="{place.x:.1f}" y="{place.y:.1f}" width="{place.width:.1f}" height="{place.height:.1f}"/>'
            f"{labels}</g>\n"
        )
    edges = [
        f'<rect x="{f.x:.1f}" y="{f.y:.1f}" width="{f.width:.1f}" height="{f.height:.1f}"/>'
        for f in frames
        if min(f.width, f.height) > 6
    ]
    when = "after" if is_after else "before"
    described = f"Treemap of the bytes {when}, by module; the same figures are in the table of groups"
    return (
        f'<svg class="chart map" viewBox="0 0 {CHART[0]} {ceil(box.height)}" role="img" aria-label="{described}">\n'
        f'{"".join(out)}<g class="frames">{"".join(edges)}</g></svg>\n'
    )


def _bits_class(bits: float) -> int:
    return next((number for number, (top, _) in enumerate(BITS) if bits <= top), len(BITS))


def _bits(module: Module, stored: int) -> float:
    return 8 * stored / module.weights if module.weights else 0.0


def _shared_start(names: Sequence[tuple[str, ...]]) -> int:
    """How many first components all names have, leaving one of each."""
    shared = 0
    while names and all(len(parts) > shared + 1 for parts in names) and len({parts[shared] for parts in names}) == 1:
        shared += 1
    return shared


def _label(parts: Sequence[str], figure: str, box: Box) -> str:
    """The text in a rectangle, where it fits: the name, or the end of it, and the size; one for each screen."""
    out = []
    for screen, font in FONTS:
        most = (box.width - 9) / (ADVANCE * font)
        lines = _fitting(parts, most, floor((box.height - 7) / (1.25 * font)))
        if lines and _advance(figure) <= most and (len(lines) + 1) * 1.25 * font <= box.height - 7:
            lines = [*lines, figure]
        if lines:
            x = f'x="{box.x + 5:.1f}"'
            spans = "".join(f'<tspan {x} dy="1.25em">{safe(line)}</tspan>' for line in lines[1:])
            out.append(f'<text {x} y="{box.y + 5:.1f}" dy=".85em" class="{screen}">{safe(lines[0])}{spans}</text>')
    return "".join(out)


def _fitting(parts: Sequence[str], most: float, lines: int) -> list[str]:
    """As much of a name as `lines` of `most` characters can hold: all, else its end, else parts before it."""
    for start in range(len(parts)):
        found = _wrapped(parts[start:], most)
        if found and len(found) <= lines:
            return found
    for end in range(len(parts) - 1, 1, -1):
        for start in range(end - 1):
            if lines > 1 and _advance(shown := ".".join(parts[start:end])) <= most:
                return [shown, "\u2026"]
    return []


def _wrapped(parts: Sequence[str], most: float) -> list[str]:
    """Lines of at most `most` characters, broken at dots; none where a part is too long or a number alone."""
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}.{part}" if lines[-1] else part
        if _advance(joined) > most:
            lines.append(part)
        else:
            lines[-1] = joined
    lines = [line for line in lines if line]
    lonely = len(lines) > 1 and any(line.isdigit() for line in lines)
    return [] if lonely or any(_advance(line) > most for line in lines) else lines


def _advance(text: str) -> int:
    """How many characters wide a text is."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in inert(text))


def groups_by_size(rows: Sequence[TensorRow], keys: Sequence[tuple[object, ...]]) -> list[Group]:
    """Tensors grouped by name and key; those with the most bytes before come first."""
    found = group([row.name for row in rows], keys)
    return sorted(found, key=lambda item: -sum(rows[place].bytes_before for place in item.members))


def bars(report: Report) -> str:
    """Bytes before and after, by group."""
    rows = report.tensors
    found = groups_by_size(rows, [(row.shape, row.dtype, row.scheme, row.status, row.reason) for row in rows])
    lines = [(safe(item.label, LONGEST), [rows[place] for place in item.members]) for item in found]
    if len(lines) > MOST_GROUPS + 1:
        rest = [row for _, members in lines[MOST_GROUPS:] for row in members]
        lines = [*lines[:MOST_GROUPS], (f"({len(lines) - MOST_GROUPS} smaller groups)", rest)]
    sums = [[sum(row.bytes_before for row in m), sum(row.bytes_after for row in m)] for _, m in lines]
    largest = max((value for pair in sums for value in pair), default=0) or 1
    out = []
    for (label, members), (before, after) in zip(lines, sums, strict=True):
        kinds = {row.scheme or row.status for row in members}
        worst = min((row.sqnr_db for row in members if row.sqnr_db is not None), default=None)
        what = [plural(len(members), "tensor"), kinds.pop() if len(kinds) == 1 else "several schemes"]
        what += [f"{worst:.1f} dB" + (" at worst" if len(members) > 1 else "")] if worst is not None else []
        figures = size(before) if before == after else f"{size(before)} &rarr; {size(after)}"
        out.append(
            f'<li><span class="label"><code>{label.replace(".", ".<wbr>")}</code><small>{safe(", ".join(what))}'
            '</small></span><svg height="16" aria-hidden="true">'
            f'<rect class="was" width="{100 * before / largest:.2f}%" height="7"/>'
            f'<rect class="now" y="9" width="{100 * after / largest:.2f}%" height="7"/></svg>'
            f'<span class="figure">{figures}</span><b>{times(before / after) if after else "-"}</b></li>\n'
        )
    legend = (
        '<ul class="legend"><li><svg width="12" height="12" aria-hidden="true"><rect class="was" width="12" '
        'height="12"/></svg>before</li><li><svg width="12" height="12" aria-hidden="true"><rect class="now" width="12" '
        'height="12"/></svg>after</li></ul>\n'
    )
    return f'{legend}<ul class="bars">\n{"".join(out)}</ul>\n' if out else ""


def scatter(rows: Sequence[TensorRow]) -> str:
    """Size against SQNR. Points that nearly cover each other are one, with all their names."""
    points = [(log10(max(row.bytes_before, 1)), row.sqnr_db or 0.0, row) for row in rows]
    if not points:
        return ""
    width, height = CHART
    left, right, top, bottom = 48, width - 14, 30, height - 56
    step, low, high = scale_of([y for _, y, _ in points])
    first, last = min(x for x, _, _ in points) - 0.25, max(x for x, _, _ in points) + 0.25

    def across(x: float) -> float:
        return left + (x - first) / (last - first) * (right - left)

    def up(y: float) -> float:
        return bottom - (y - low) / (high - low) * (bottom - top)

    out = [
        f'<text class="title" x="0" y="14">SQNR, dB</text><text class="title end" x="{right}" y="{height - 6}">size '
        "before</text>"
    ]
    for number in range(round((high - low) / step) + 1):
        y = low + number * step
        out.append(
            f'<path d="M{left} {up(y):.1f}H{right}"/><text class="end" x="{left - 8}" y="{up(y):.1f}" dy=".35em">'
            f"{y:.{max(0, -floor(log10(step)))}f}</text>"
        )
    for value in _decades(first, last):
        x, name = across(log10(value)), size(value).replace(".00 ", " ").replace(".0 ", " ")
        out.append(f'<text class="middle" x="{x:.1f}" y="{bottom + 24}">{name}</text>')
    cells: dict[tuple[int, int], list[TensorRow]] = {}
    grid = 2.0
    while True:
        cells.clear()
        for x, y, row in points:
            cells.setdefault((round(across(x) / grid), round(up(y) / grid)), []).append(row)
        if len(cells) <= MOST_POINTS:
            break
        grid *= 1.5
    marks = []
    for inside in cells.values():
        one = min(inside, key=lambda row: row.sqnr_db or 0.0)
        x, y = across(log10(max(one.bytes_before, 1))), up(one.sqnr_db or 0.0)
        names = [f"{safe(row.name, 120)}, {decibel(row.sqnr_db)} dB" for row in inside[:4]]
        names += [f"and {len(inside) - 4} more"] if len(inside) > 4 else []
        bits = one.bits_per_weight or 8 * one.bytes_after / max(prod(one.shape), 1)
        title = "\n".join([*names, f"{size(one.bytes_before)}, {safe(one.scheme or one.status)}"])
        marks.append(
            f'<circle class="b{_bits_class(bits)}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{title}</title></circle>\n'
        )
    described = "Size of each tensor against its SQNR; the same figures are in the table of all tensors"
    return (
        f'<svg class="chart scatter" viewBox="0 0 {width} {height}" role="img" aria-label="{described}">\n'
        f'<g class="axes">{"".join(out)}</g>\n<g>{"".join(marks)}</g></svg>\n'
    )


def scale_of(values: Sequence[float]) -> tuple[float, float, float]:
    """A step of 1, 2 or 5 times a power of ten, and the multiples of it around `values`: at most six steps."""
    low, high = min(values), max(values)
    span = max(high - low, 0.5)
    power = 10.0 ** floor(log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 5)
    first, last = floor(low / step), ceil(high / step)
    return step, first * step, max(last, first + 1) * step


def _decades(first: float, last: float) -> list[float]:
    """Round numbers of bytes between two powers of ten: at most five."""
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**power for power in range(floor(first), ceil(last) + 1) for f in factors]
        found = [value for value in found if first <= log10(value) <= last]
        if len(found) <= 5:
            return found
    return found[:: ceil(len(found) / 5)]
