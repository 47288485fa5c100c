"""`modelzip inspect`: what a file is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelzip_cli.cli.options import Debug, Format, Jobs, Json, Key, Paths, ReportFiles, Verbose

if TYPE_CHECKING:
    from modelzip_cli.render import Block


def inspect(
    paths: Paths,
    stats: Annotated[
        bool,
        typer.Option("--stats", help="Read the weights: ranges, zeros, outliers, and what each scheme would give."),
    ] = False,
    key: Key = None,
    jobs: Jobs = None,
    form: Format = "auto",
    json: Json = False,
    report: ReportFiles = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Say what a checkpoint holds.

    Only its header is read: tensors in groups, dtypes, what is beside the weights. With --stats, its weights as well.
    """
    from modelzip_cli.cli.show import show, write_reports
    from modelzip_cli.cli.values import check_report_files, parse_form, parse_jobs, parse_report_files
    from modelzip_cli.inspection import inspect_file
    from modelzip_cli.report import SCHEMA_VERSION

    chosen, files = parse_form(form, json), parse_report_files(report, ("json", "md"))
    check_report_files(files, paths)
    if stats:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(parse_jobs(jobs)) as executor:
            found = [inspect_file(path, key=key, executor=executor) for path in paths]
    else:
        found = [inspect_file(path, key=key) for path in paths]

    def values() -> dict[str, object]:
        runs = [inspection.to_json() for inspection in found]
        return runs[0] if len(runs) == 1 else {"schema_version": SCHEMA_VERSION, "runs": runs}

    def blocks() -> list[Block]:
        from modelzip_cli.pages.inspection import inspection_blocks

        return [block for inspection in found for block in inspection_blocks(inspection, verbose=verbose)]

    show(chosen, values, blocks)
    write_reports(files, values, blocks)
