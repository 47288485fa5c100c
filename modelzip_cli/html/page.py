"""Reports as one HTML page that needs nothing else: it opens offline, prints, and is the same for the same reports.

The page may load nothing: its Content-Security-Policy allows one style and one script, by their hashes.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256

from modelzip_cli.figures import count, decibel, duration, size
from modelzip_cli.html.charts import bars, scatter, size_bars, treemaps
from modelzip_cli.html.markup import (
    code_block,
    file_name,
    plural,
    safe,
    safe_name,
    section,
    sortable_head,
    tile_list,
    times,
    words,
)
from modelzip_cli.html.script import SCRIPT
from modelzip_cli.html.style import STYLE
from modelzip_cli.html.tables import full_table, gates_and_warnings, left_alone, worst_tensors
from modelzip_cli.recipe_file import to_toml
from modelzip_cli.report import Report

NOT_ACCURACY = (
    "SQNR compares the stored weights with those of the source; 6 dB more is half the error. "
    "It is not the accuracy of the model: only an evaluation on data tells that."
)
FILES = (
    ("Source", "name"),
    ("Output", "name"),
    ("Before", "bytes"),
    ("After", "bytes"),
    ("Ratio", "two"),
    ("SQNR, dB", "two"),
    ("Status", "word"),
    ("Message", "message"),
)


def html_page(
    reports: Sequence[Report],
    *,
    command_line: str,
    failed: Sequence[tuple[str, str]] = (),
    skipped: Sequence[tuple[str, str]] = (),
    environment: Sequence[tuple[str, str]] = (),
) -> str:
    """The page about one run, or about a batch of them.

    `failed`: path and message of every file that has no report; `skipped`: path and reason of every file that was left
    alone; `environment`: more lines for the versions.
    """
    if len(reports) == 1 and not failed and not skipped:
        report = reports[0]
        title = f"{file_name(report.source.path)}: modelzip {report.command}"
        body = _headline(report, 1) + _blocks(report, 2, command_line, environment)
    else:
        title = f"modelzip: {len(reports) + len(failed) + len(skipped)} files"
        body = _batch(reports, command_line, failed, skipped, environment)
    return document(title, body)


def document(title: str, body: str) -> str:
    """A page of its own around `body`."""
    policy = (
        f"default-src 'none'; style-src '{_hash(STYLE)}'; script-src '{_hash(SCRIPT)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{safe(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


def _headline(report: Report, level: int) -> str:
    target, after = _target(report)
    totals = report.totals
    weights = [row for row in report.tensors if row.status != "dropped"]
    treated = [row for row in weights if row.status == "compressed"]
    badges = []
    if report.output is None:
        badges.append('<span class="badge">Dry run: nothing was written</span>')
    if report.gates:
        missed = sum(not gate.passed for gate in report.gates)
        what = f"{plural(missed, 'gate')} not met" if missed else "All gates passed"
        badges.append(f'<span class="badge {"bad" if missed else "good"}">{what}</span>')
    if report.warnings:
        badges.append(f'<span class="badge warn">{plural(len(report.warnings), "warning")}</span>')
    tiles = [("Ratio", times(totals.get("ratio")), "before / after, files on disk")]
    measured = totals.get("sqnr_db")
    if measured is not None:
        cosine = totals.get("cosine")
        tiles.append(("SQNR", f"{measured:.1f} dB", "of the weights" + (f", cosine {cosine:.5f}" if cosine else "")))
    elif treated and report.output:
        tiles.append(("SQNR", "exact", "every weight is restored exactly"))
    elif treated or report.command != "restore":
        tiles.append(("SQNR", "-", "a dry run measures nothing" if treated else "no weight was changed"))
    bits = totals.get("bits_per_weight")
    if bits is not None:
        tiles.append(("Bits a weight", f"{bits:.2f}", f"{count(totals.get('treated_parameters') or 0)} weights"))
    if treated or report.command != "restore":
        share = f"{totals.get('coverage') or 0:.1%} of the weight bytes"
        tiles.append(("Compressed", f"{len(treated):,} of {len(weights):,}", f"tensors, {share}"))
    else:
        tiles.append(("Tensors", f"{len(weights):,}", f"{count(totals.get('parameters') or 0)} weights"))
    if totals.get("sparsity"):
        tiles.append(("Zeros", f"{totals['sparsity']:.1%}", f"before: {totals.get('sparsity_before') or 0:.1%}"))
    notes = [NOT_ACCURACY] if measured is not None else []
    if any(row.status == "dropped" for row in report.tensors) and totals.get("weight_ratio"):
        notes.append(f"Part of the ratio is what was dropped; the weights alone: {times(totals['weight_ratio'])}.")
    paths = f"<code>{safe_name(report.source.path)}</code> <span>to</span> <code>{safe_name(target)}</code>"
    took = [f"Took {duration(report.seconds)}"] if report.seconds else []
    took += [f"peak memory {size(report.peak_rss_bytes)}"] if report.peak_rss_bytes else []
    return (
        "<header>\n"
        f'<p class="kicker">modelzip {safe(report.command)}</p>\n'
        f"<h{level}>{safe_name(file_name(report.source.path))}</h{level}>\n"
        f'<p class="paths">{paths}</p>\n'
        + (f'<p class="badges">{" ".join(badges)}</p>\n' if badges else "")
        + size_bars(report.source.bytes, after, "Planned" if report.output is None else "After")
        + tile_list(tiles)
        + "".join(f'<p class="note">{note}</p>\n' for note in notes)
        + (f'<p class="timing">{"; ".join(took)}</p>\n' if took else "")
        + "</header>\n"
    )


def _blocks(report: Report, level: int, command_line: str | None, environment: Sequence[tuple[str, str]]) -> str:
    """All that follows the headline. `command_line` None: it stands elsewhere."""
    errors = [row for row in report.tensors if row.sqnr_db is not None]
    chart = section(
        level,
        "Error by size",
        scatter(errors),
        "Each point is a tensor: its size before, and its SQNR. Lower is worse. All figures are in the full table.",
    )
    worst = section(level, "Worst tensors", worst_tensors(errors))
    recipe = code_block("recipe, TOML", _toml(report))
    command = code_block("command line", words(command_line)) if command_line else ""
    judged = "Gates and warnings" if report.gates else "Warnings"
    return (
        section(level, "Where the bytes are", treemaps(report))
        + section(level, "Before and after, by group", bars(report))
        + (f'<div class="pair uneven">\n{chart}{worst}</div>\n' if errors else "")
        + section(level, "Kept and dropped", left_alone(report.tensors))
        + section(level, judged, gates_and_warnings(report.gates, report.warnings))
        + section(level, "Recipe and command" if command else "Recipe", f'<div class="pair">{recipe}{command}</div>\n')
        + section(level, "All tensors", full_table(report.tensors))
        + section(level, "Versions", _versions(report, environment))
    )


def _toml(report: Report) -> str:
    return "\n".join(safe(line) for line in to_toml(report.recipe).rstrip("\n").split("\n"))


def _versions(report: Report, environment: Sequence[tuple[str, str]]) -> str:
    source, output = report.source, report.output
    made = "compressed by modelzip before" if source.compressed else ""
    sizes = f"{source.bytes:,} bytes, {plural(source.tensors, 'tensor')}, {count(source.parameters)} weights"
    pairs = [
        ("modelzip", report.modelzip),
        ("source", ", ".join(filter(None, (source.container, sizes, made)))),
    ]
    if output:
        layout_name = f"{output.layout} layout" if output.layout else ""
        pairs.append(("output", ", ".join(filter(None, (output.container, layout_name, f"{output.bytes:,} bytes")))))
    lines = [f"<div><dt>{safe(key)}</dt><dd>{safe(value)}</dd></div>\n" for key, value in [*pairs, *environment]]
    return f'<dl class="pairs">\n{"".join(lines)}</dl>\n'


def _target(report: Report) -> tuple[str, int]:
    """Path and bytes of the output, written or planned."""
    if report.output:
        return report.output.path, report.output.bytes
    planned = report.extra.get("planned", {})
    return str(planned.get("path", "")), int(planned.get("bytes", 0))


def _batch(
    reports: Sequence[Report],
    command_line: str,
    failed: Sequence[tuple[str, str]],
    skipped: Sequence[tuple[str, str]],
    environment: Sequence[tuple[str, str]],
) -> str:
    before = sum(report.source.bytes for report in reports)
    after = sum(_target(report)[1] for report in reports)
    commands = sorted({report.command for report in reports})
    planned = sum(report.output is None for report in reports)
    fates = (
        (len(reports) - planned, "done"),
        (planned, "planned"),
        (len(skipped), "skipped"),
        (len(failed), "failed"),
    )
    files = sum(number for number, _ in fates)
    fate = ", ".join(f"{number} {word}" for number, word in fates if number) or "none"
    tiles = [("Files", f"{files}", fate)]
    if after:
        tiles.insert(0, ("Ratio", times(before / after), "before / after, files on disk"))
    lowest = min((r.totals["sqnr_db"] for r in reports if r.totals.get("sqnr_db") is not None), default=None)  # type: ignore[type-var]
    if lowest is not None:
        tiles.append(("Lowest SQNR", f"{lowest:.1f} dB", "of the weights of a file"))
    rows = [_file_row(report) for report in reports]
    rows += [_row_without_report(path, message, "failed", "bad") for path, message in failed]
    rows += [_row_without_report(path, reason, "skipped", "plain") for path, reason in skipped]
    head = sortable_head(FILES)
    lines = "".join("<tr>" + "".join(f"<td{more}>{text}</td>" for text, more in row) + "</tr>\n" for row in rows)
    table = (
        '<div class="sheet files">\n<div class="tools" hidden><label>Filter <input type="search" autocomplete="off" '
        'spellcheck="false" placeholder="words of a path, status, message"></label><output></output></div>\n'
        '<div class="scroll tall" tabindex="0" role="region" aria-label="Files"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>\n</div>\n"
    )
    parts = []
    for report in reports:
        figures = [f"{size(report.source.bytes)} &rarr; {size(_target(report)[1])}", times(report.totals.get("ratio"))]
        if report.totals.get("sqnr_db") is not None:
            figures.append(f"{decibel(report.totals['sqnr_db'])} dB")
        parts.append(
            f'<details class="report">\n<summary><code>{safe_name(report.source.path)}</code> '
            f"<span>{', '.join(figures)}</span></summary>\n{_headline(report, 2)}"
            f"{_blocks(report, 3, None, environment)}</details>\n"
        )
    return (
        f'<header>\n<p class="kicker">modelzip {safe(", ".join(commands))}</p>\n'
        f"<h1>{plural(files, 'file')}</h1>\n"
        + (f'<p class="badges"><span class="badge bad">{len(failed)} failed</span></p>\n' if failed else "")
        + (size_bars(before, after, "After") if reports else "")
        + tile_list(tiles)
        + (f'<p class="note">{NOT_ACCURACY}</p>\n' if lowest is not None else "")
        + "</header>\n"
        + section(2, "Files", table if rows else '<p class="note">No file was found.</p>\n')
        + section(2, "Command", code_block("command line", words(command_line)))
        + section(2, "Reports", "".join(parts))
    )


def _number(value: float | int | None, text: str) -> tuple[str, str]:
    return text, f' class="n" data-value="{"" if value is None else value}"'


def _file_row(report: Report) -> list[tuple[str, str]]:
    target, after = _target(report)
    missed = any(not gate.passed for gate in report.gates)
    status = "gate not met" if missed else "done" if report.output else "planned"
    ratio, sqnr = report.totals.get("ratio"), report.totals.get("sqnr_db")
    return [
        (f"<code>{safe_name(report.source.path)}</code>", ' class="name"'),
        (f"<code>{safe_name(target)}</code>", ' class="name"'),
        _number(report.source.bytes, size(report.source.bytes)),
        _number(after, size(after)),
        _number(ratio, times(ratio)),
        _number(sqnr, decibel(sqnr)),
        (f'<span class="{"bad" if missed else "good" if report.output else "plain"}">{status}</span>', ""),
        (safe("; ".join(report.warnings)), ' class="message"'),
    ]


def _row_without_report(path: str, message: str, status: str, color: str) -> list[tuple[str, str]]:
    none = _number(None, "-")
    shown = message.removeprefix(f"{path}: ")
    return [
        (f"<code>{safe_name(path)}</code>", ' class="name"'),
        ("-", ' class="name"'),
        *[none] * 4,
        (f'<span class="{color}">{status}</span>', ""),
        (safe(shown), ' class="message"'),
    ]
