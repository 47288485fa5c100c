"""`modelzip diff`: how far apart two checkpoints are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelzip_cli.cli.options import Debug, FailUnder, Format, Jobs, Json, OnePath, Verbose

if TYPE_CHECKING:
    from modelzip_cli.diff import Difference

from pathlib import Path


def diff(
    first: OnePath,
    second: Annotated[
        Path, typer.Argument(metavar="OTHER", help="The checkpoint to compare with it, compressed or not.")
    ],
    fail_under: FailUnder = None,
    jobs: Jobs = None,
    form: Format = "auto",
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compare two checkpoints.

    Tensor by tensor, by name and by value; the first is the reference for the error.
    """
    from concurrent.futures import ThreadPoolExecutor

    from modelzip_cli.cli.show import show
    from modelzip_cli.cli.values import parse_form, parse_gate, parse_jobs
    from modelzip_cli.diff import compare_sources
    from modelzip_cli.errors import GateFailed, inert
    from modelzip_cli.report import SCHEMA_VERSION
    from modelzip_cli.reporting import describe_source
    from modelzip_cli.single import METRICS
    from modelzip_cli.source import open_source

    chosen = parse_form(form, json)
    gates = [parse_gate(text, METRICS) for text in fail_under or ()]
    one = open_source(first)
    try:
        other = open_source(second)
        try:
            with ThreadPoolExecutor(parse_jobs(jobs)) as executor:
                found = compare_sources(one, other, executor)
            sides = [describe_source(one), describe_source(other)]
        finally:
            other.close()
    finally:
        one.close()

    def values() -> dict[str, object]:
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "diff",
            "source": sides[0].to_json(source=True),
            "other": sides[1].to_json(source=True),
            "totals": found.totals,
            "tensors": [row.to_json() for row in found.rows],
            "only_in": {"source": [*found.only_in[0]], "other": [*found.only_in[1]]},
        }

    from modelzip_cli.pages.comparison import difference_blocks

    show(chosen, values, lambda: difference_blocks((sides[0].path, sides[1].path), found, verbose=verbose))
    for metric, least in gates:
        value = _figure(found, metric)
        if value is not None and value < least:
            what = f"{inert(str(second))}: {metric} is {value:.6g}, --fail-under asks for {least:g}"
            raise GateFailed(what, reported=True)


def _figure(found: Difference, metric: str) -> float | None:
    if metric == "sqnr-min":
        return min((row.sqnr_db for row in found.rows if row.sqnr_db is not None), default=None)
    return found.totals["sqnr_db" if metric == "sqnr" else metric]
