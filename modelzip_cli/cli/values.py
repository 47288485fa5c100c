"""What option texts mean: sizes, gates, forms of the report."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

from modelzip_cli.errors import OutputIsSource, UsageError, did_you_mean, inert

FORMS = ("auto", "rich", "plain", "json", "jsonl", "md")
UNITS = {"": 1, "b": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for kind, base in (("b", 1000), ("", 1000), ("ib", 1024))
}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_size(text: str, option: str) -> int:
    """Return bytes: `25kB` is 10^3, `25KiB` is 2^10. Raises UsageError."""
    found = SIZE.fullmatch(text.strip())
    if not found or found[2].lower() not in UNITS:
        raise UsageError(f"{option} {inert(text)!r}: write a size such as 25MB, 25MiB or 1.5GB")
    return int(float(found[1]) * UNITS[found[2].lower()])


def parse_ratio(text: str) -> float:
    """Read `8x` or `8`. Raises UsageError for what is no number above 1."""
    try:
        ratio = float(text.strip().removesuffix("x"))
    except ValueError:
        ratio = math.nan
    if not 1 < ratio < 1e6:
        raise UsageError(f"--ratio {inert(text)!r}: write a number above 1, such as 8x")
    return ratio


def parse_duration(text: str | None) -> float | None:
    """Seconds: `90s`, `30m`, `2h`, or a number of seconds. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found or float(found[1]) <= 0:
        raise UsageError(f"--time {inert(text)!r}: write a time such as 90s, 30m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def parse_temperature(text: str | None) -> float | None:
    """A number above 0; 0 for `auto`. Raises UsageError."""
    if text is None or text == "auto":
        return None if text is None else 0.0
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1000:
        raise UsageError(f"--temperature {inert(text)!r}: write a number above 0, such as 4, or auto")
    return value


def check_between(value: float | None, option: str, least: float, most: float) -> None:
    """Refuse a number outside of a range, and what is none. Raises UsageError."""
    if value is not None and not least <= value <= most:
        raise UsageError(f"{option} {value:g}: write a number from {least:g} to {most:g}")


def parse_gate(text: str, metrics: tuple[str, ...]) -> tuple[str, float]:
    """Read `METRIC=VALUE`. Raises UsageError."""
    metric, separator, value = text.partition("=")
    if metric not in metrics:
        raise UsageError(
            f"--fail-under {inert(text)!r}: no metric {inert(metric)!r}{did_you_mean(metric, metrics)}; "
            f"there are {', '.join(metrics)}"
        )
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not separator or not math.isfinite(number):
        raise UsageError(f"--fail-under {inert(text)!r}: write METRIC=VALUE, such as sqnr=20")
    return metric, number


def parse_form(form: str, json: bool) -> str:
    """Check --format and --json. Raises UsageError."""
    if form not in FORMS:
        raise UsageError(f"--format {inert(form)!r}: there are {', '.join(FORMS)}")
    if json and form not in ("auto", "json"):
        raise UsageError(f"--json and --format {form} exclude each other")
    return "json" if json else form


def parse_report_files(paths: list[Path] | None, kinds: tuple[str, ...]) -> tuple[Path, ...]:
    """Check the files of --report by their suffix, which says what is written. Raises UsageError."""
    for path in paths or ():
        if path.suffix.removeprefix(".") not in kinds:
            raise UsageError(f"--report {inert(str(path))}: name a file that ends in .{', .'.join(kinds)}")
        if not path.parent.is_dir():
            raise UsageError(f"--report {inert(str(path))}: the folder {inert(str(path.parent))} does not exist")
    return tuple(paths or ())


def check_report_files(files: Iterable[Path], sources: Iterable[Path], outputs: Iterable[Path] = ()) -> None:
    """Refuse a report that would change a source or an output, or that cannot be a file. Raises UsageError."""
    for file in files:
        shown = f"--report {inert(str(file))}"
        if file.exists() and not file.is_file():
            raise UsageError(f"{shown}: is not a regular file")
        for source in sources:
            if _is_at(file, source):
                raise OutputIsSource(f"{shown}: would change the source {inert(str(source))}; choose another name")
        for output in outputs:
            if _is_at(file, output):
                raise UsageError(f"{shown}: would change the output {inert(str(output))}; choose another name")


def _is_at(file: Path, path: Path) -> bool:
    """Whether `file` is `path`, by this or another name, or lies in it."""
    if file.exists() and path.exists() and file.samefile(path):
        return True
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(path))


def parse_jobs(jobs: int | None) -> int:
    """The number of worker threads. Raises UsageError below 1."""
    from modelzip_cli.single import default_jobs

    if jobs is not None and not 1 <= jobs <= 1024:
        raise UsageError(f"--jobs {jobs}: write a number from 1 to 1024")
    return jobs or default_jobs()
