"""Run one command over the inputs of a command line and show what became of each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from modelzip_cli.cli.show import form_for, show
from modelzip_cli.containers.atomic import STANDARD
from modelzip_cli.errors import UsageError, inert

if TYPE_CHECKING:
    from modelzip_cli.batch import Job, Result, Selection
    from modelzip_cli.report import Report
    from modelzip_cli.single import Settings


def select(
    paths: list[Path],
    recursive: bool,
    include: list[str] | None,
    exclude: list[str] | None,
    output: Path | None,
    output_dir: Path | None,
    *,
    force: bool,
    skip_existing: bool,
    dry_run: bool,
) -> Selection:
    """The inputs and outputs that the options mean. Raises UsageError for options that exclude each other."""
    from modelzip_cli.batch import Selection

    if force and skip_existing:
        raise UsageError("-f replaces existing outputs, --skip-existing leaves them: choose one")
    if output is not None and output_dir is not None:
        raise UsageError("-o names one output, --output-dir a folder for all: choose one")
    if (include or exclude) and not recursive:
        raise UsageError("--include and --exclude choose among the files of directories: they need -r")
    globs = tuple(include or ()), tuple(exclude or ())
    return Selection(tuple(paths), recursive, *globs, output, output_dir, force, skip_existing, dry_run)


def run_many(
    selection: Selection,
    name_of: Callable[[Path], str],
    do: Callable[[Job, Settings], Report],
    settings: Settings,
    *,
    form: str,
    quiet: bool,
    verbose: bool,
    progress_shown: bool,
) -> None:
    """Find inputs, give them outputs, do them, show reports. Raises the error of a single input, or BatchFailed."""
    from modelzip_cli.batch import find_inputs, plan_jobs, raise_for, run_jobs, summarize
    from modelzip_cli.cli.progress import progress
    from modelzip_cli.report import SCHEMA_VERSION

    items = find_inputs(selection)
    jobs = plan_jobs(items, selection, name_of)
    single = len(jobs) == 1 and not selection.recursive
    sends = single and jobs[0].output == STANDARD  # the report then goes where it does not mix with the weights
    stream = sys.stderr if sends and not settings.dry_run else sys.stdout
    form = form_for(form, stream)
    results: list[Result] = []
    with progress(shown=progress_shown) as begin:
        for result in run_jobs(jobs, lambda job: do(job, replace(settings, begin=begin))):
            results.append(result)
            if quiet:
                if not sends and result.report is not None and result.report.output is not None:
                    print(result.job.output)
            elif not single:
                _show_line(result, form)
    if single and results and results[0].error is None and not quiet:
        _show_single(results[0], form, stream, verbose=verbose)
    elif not quiet and not single:
        summary = summarize(results)
        if form == "json":
            runs = [result.to_json() for result in results]
            print(json.dumps({"schema_version": SCHEMA_VERSION, "runs": runs, "summary": summary}, indent=1))
        elif form == "jsonl":
            print(json.dumps({"schema_version": SCHEMA_VERSION, "summary": summary}))
        else:
            from modelzip_cli.pages.batch import batch_summary

            print(batch_summary(summary))
    raise_for(results, reported=sends or not single)


def _show_single(result: Result, form: str, stream: TextIO, *, verbose: bool) -> None:
    report = result.report
    if report is None:
        if form in ("json", "jsonl"):
            print(json.dumps(result.to_json()))
        else:
            print(f"{inert(str(result.job.output))}: {result.job.skipped}")
        return
    from modelzip_cli.pages.run import report_blocks

    show(form, report.to_json, lambda: report_blocks(report, verbose=verbose), stream)


def _show_line(result: Result, form: str) -> None:
    """One line as soon as a file is done; in JSON all come at the end."""
    if form == "json":
        return
    if form == "jsonl":
        print(json.dumps(result.to_json()))
    else:
        from modelzip_cli.pages.batch import batch_line

        print(batch_line(result))
    sys.stdout.flush()
