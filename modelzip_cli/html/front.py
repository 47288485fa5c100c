"""The front of size against error as a page: a curve with its knee and the recommended point, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

from modelzip_cli import __version__
from modelzip_cli.figures import count, decibel, size
from modelzip_cli.front import Front, Point
from modelzip_cli.html.charts import CHART, scale_of
from modelzip_cli.html.markup import (
    Cell,
    code_block,
    file_name,
    plural,
    safe,
    safe_name,
    section,
    table,
    tile_list,
    times,
    words,
)
from modelzip_cli.html.page import NOT_ACCURACY, document
from modelzip_cli.predict import ENOUGH_DB

COLUMNS = (
    ("Bits a weight", "n"),
    ("Predicted size", "n"),
    ("Ratio", "n"),
    ("SQNR, dB", "n"),
    ("Error, %", "n"),
    ("", "word"),
)
ABOUT = (
    "Each point is a file that ecq would make: its predicted size, and the error of the weights in percent of their "
    f"size (root mean square); 10 % are {ENOUGH_DB:g} dB. The knee lies farthest below the line from the first point "
    "to the last."
)


def front_page(fronts: Sequence[Front], *, command_line: str) -> str:
    """The page about the front of one file, or about those of several."""
    if len(fronts) == 1:
        title = f"{file_name(fronts[0].source.path)}: modelzip compress"
        body = _front(fronts[0], 1)
    else:
        title = f"modelzip: {plural(len(fronts), 'file')}"
        intro = (
            f'<header>\n<p class="kicker">modelzip compress</p>\n<h1>{plural(len(fronts), "file")}</h1>\n</header>\n'
        )
        body = intro + "".join(f"<section>\n{_front(front, 2)}</section>\n" for front in fronts)
    body += section(2, "Command", code_block("command line", words(command_line)))
    versions = f'<dl class="pairs">\n<div><dt>modelzip</dt><dd>{safe(__version__)}</dd></div>\n</dl>\n'
    return document(title, body + section(2, "Versions", versions))


def _front(found: Front, level: int) -> str:
    source, best = found.source, found.recommended
    exact = best.sqnr_db is None
    tiles = [
        ("Recommended", "lossless" if found.choice is None else f"{best.bits_per_weight or 0:.2f}", "bits a weight"),
        ("Predicted size", size(best.bytes), f"of {size(source.bytes)}, {times(best.ratio)} smaller"),
        ("Predicted SQNR", "exact" if exact else f"{decibel(best.sqnr_db)} dB", "of the weights"),
        ("Lossless", times(found.lossless.ratio), size(found.lossless.bytes)),
    ]
    if found.choice is None:
        tiles[0] = ("Recommended", "lossless", "every bit is kept")
    badge = f'<span class="badge warn">{plural(len(found.warnings), "warning")}</span>' if found.warnings else ""
    warnings = "".join(f"<li>{safe(text)}</li>\n" for text in found.warnings)
    return (
        "<header>\n"
        f'<p class="kicker">modelzip compress, {safe(source.container)}, {count(source.parameters)} weights</p>\n'
        f"<h{level}>{safe_name(file_name(source.path))}</h{level}>\n"
        f'<p class="paths"><code>{safe_name(source.path)}</code></p>\n'
        f'<p class="badges"><span class="badge">Nothing was written</span> {badge}</p>\n'
        + tile_list(tiles)
        + f'<p class="note">Recommended is {safe(found.reason)}.</p>\n<p class="note">{NOT_ACCURACY}</p>\n</header>\n'
        + (section(level + 1, "Next", code_block("command", words(found.command))) if found.command else "")
        + '<div class="pair uneven">\n'
        + section(level + 1, "Size against error", curve(found), ABOUT)
        + section(level + 1, "Points", _table(found))
        + "</div>\n"
        + section(level + 1, "Warnings", f'<ul class="warnings">\n{warnings}</ul>\n' if warnings else "")
    )


def _table(found: Front) -> str:
    rows: list[list[Cell]] = []
    for place, point in enumerate(found.points):
        bits = "-" if point.bits_per_weight is None else f"{point.bits_per_weight:.2f}"
        rows.append([bits, *_figures(point), safe(", ".join(marks_of(found, place)))])
    mark = "recommended" if found.choice is None else ""
    rows.append(["lossless", *_figures(found.lossless), mark])
    return table(COLUMNS, rows, "Points")


def _figures(point: Point) -> list[Cell]:
    exact = point.sqnr_db is None
    error = "0" if exact else f"{100 * point.error:.2g}"
    return [size(point.bytes), times(point.ratio), "exact" if exact else decibel(point.sqnr_db), error]


def marks_of(found: Front, place: int) -> list[str]:
    """What is said of a point."""
    return ["knee"] * (place == found.knee) + ["recommended"] * (place == found.choice)


def curve(found: Front) -> str:
    """Size against error in percent: a line through the points, without the lossless one, which lies far away."""
    if not found.points:
        return ""
    width, height = CHART
    left, right, top, bottom = 48, width - 14, 30, height - 56
    x_step, x_low, x_high = scale_of([0.0, *(float(point.bytes) for point in found.points)])
    y_step, y_low, y_high = scale_of([0.0, *(100 * point.error for point in found.points)])

    def place_of(point: Point) -> tuple[float, float]:
        across = left + (point.bytes - x_low) / (x_high - x_low) * (right - left)
        return across, bottom - (100 * point.error - y_low) / (y_high - y_low) * (bottom - top)

    axes = [
        f'<text class="title" x="0" y="14">error, %</text><text class="title end" x="{right}" y="{height - 6}">'
        "predicted size</text>"
    ]
    for number in range(round((y_high - y_low) / y_step) + 1):
        value = y_low + number * y_step
        y = bottom - number * y_step / (y_high - y_low) * (bottom - top)
        axes.append(
            f'<path d="M{left} {y:.1f}H{right}"/><text class="end" x="{left - 8}" y="{y:.1f}" dy=".35em">'
            f"{value:.{max(0, -floor(log10(y_step)))}f}</text>"
        )
    for number in range(round((x_high - x_low) / x_step) + 1):
        x = left + number * x_step / (x_high - x_low) * (right - left)
        name = size(x_low + number * x_step).replace(".00 ", " ").replace(".0 ", " ")
        axes.append(f'<text class="middle" x="{x:.1f}" y="{bottom + 24}">{name}</text>')
    places = [place_of(point) for point in found.points]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    marks = [_mark(point, place_of(point), marks_of(found, place)) for place, point in enumerate(found.points)]
    described = "Predicted size against error; the same figures are in the table of points"
    return (
        f'<svg class="chart front" viewBox="0 0 {width} {height}" role="img" aria-label="{described}">\n'
        f'<g class="axes">{"".join(axes)}</g>\n<path class="line" d="M{line}"/>\n<g>{"".join(marks)}</g></svg>\n'
    )


def _mark(point: Point, at: tuple[float, float], said: Sequence[str]) -> str:
    """A point with its figures, and its name where it has one."""
    x, y = at
    bits = f"{point.bits_per_weight or 0:.2f} bits a weight"
    error = "exact" if point.sqnr_db is None else f"{decibel(point.sqnr_db)} dB, error {100 * point.error:.2g} %"
    title = "\n".join([", ".join([bits, *said]), f"{size(point.bytes)}, {times(point.ratio)} smaller", error])
    end = ' class="end"' if x > CHART[0] - 150 else ""
    label = f'<text{end} x="{x - 8 if end else x + 8:.1f}" y="{y - 10:.1f}">{", ".join(said)}</text>' if said else ""
    kind = "best" if "recommended" in said else "knee" if said else "point"
    return (
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{7 if said else 5}"><title>{title}</title></circle>'
        f"{label}\n"
    )
