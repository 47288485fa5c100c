"""Run one command over the inputs of a command line and show what became of each."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from modelzip_cli.cli.show import form_for, show, write_reports
from modelzip_cli.containers.atomic import STANDARD
from modelzip_cli.errors import Stopped, UsageError, inert

if TYPE_CHECKING:
    from modelzip_cli.batch.jobs import Job, Selection
    from modelzip_cli.batch.journal import Journal
    from modelzip_cli.batch.run import Result
    from modelzip_cli.report import Report
    from modelzip_cli.single import Settings


@dataclass(frozen=True)
class Shown:
    """How the outcome is shown: `form` on standard output, and the files of --report."""

    form: str
    quiet: bool
    verbose: bool
    progress: bool
    files: tuple[Path, ...] = ()


def select(
    paths: list[Path] | None,
    filelist: Path | None,
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
    from modelzip_cli.batch.jobs import Selection, read_filelist

    if force and skip_existing:
        raise UsageError("-f replaces existing outputs, --skip-existing leaves them: choose one")
    if output is not None and output_dir is not None:
        raise UsageError("-o names one output, --output-dir a folder for all: choose one")
    if (include or exclude) and not recursive:
        raise UsageError("--include and --exclude choose among the files of directories: they need -r")
    found = (*(paths or ()), *(read_filelist(filelist) if filelist else ()))
    if not found:
        raise UsageError("no input: name a checkpoint" + (" in the file list" if filelist else ", or give --filelist"))
    globs = tuple(include or ()), tuple(exclude or ())
    return Selection(found, recursive, *globs, output, output_dir, force, skip_existing, dry_run)


def run_many(
    selection: Selection,
    name_of: Callable[[Path], str],
    do: Callable[[Job, Settings], Report],
    settings: Settings,
    shown: Shown,
    *,
    command: str,
    recipe: Mapping[str, Any],
) -> None:
    """Find inputs, give them outputs, do them, show reports. Raises the error of a single input, or BatchFailed."""
    from modelzip_cli.batch.jobs import find_inputs, plan_jobs
    from modelzip_cli.batch.journal import Journal
    from modelzip_cli.batch.run import output_folders, raise_for

    items = find_inputs(selection)
    single = len(items) == 1 and not selection.recursive
    folder = None if single or selection.dry_run else selection.journal_folder
    journal = None if folder is None else Journal(folder, command, recipe)
    jobs = plan_jobs(items, selection, name_of, journal)
    sends = single and jobs[0].output == STANDARD  # the report then goes where it does not mix with the weights
    stream = sys.stderr if sends and not settings.dry_run else sys.stdout
    form = form_for(shown.form, stream)
    results: list[Result] = []
    with output_folders(jobs, make=settings.make_folders and not settings.dry_run):
        try:
            for result in _results(jobs, do, settings, progress_shown=shown.progress):
                results.append(result)
                if journal is not None:
                    _note(journal, result)
                if shown.quiet:
                    if not sends and result.report is not None and result.report.output is not None:
                        print(result.job.output)
                elif not single:
                    _show_line(result, form)
        except Stopped:
            if journal is not None:
                done = f"{len(results)} of {len(jobs)} files done"
                print(f"modelzip: {done}; the same command line goes on from there", file=sys.stderr)
            raise
    if not single:
        _show_batch(results, form, shown)
    elif results[0].error is None:
        _show_single(results[0], form, stream, shown)
    raise_for(results, reported=sends or not single)


def _results(
    jobs: list[Job], do: Callable[[Job, Settings], Report], settings: Settings, *, progress_shown: bool
) -> Iterator[Result]:
    from modelzip_cli.batch.run import run_jobs
    from modelzip_cli.cli.progress import progress

    with progress(shown=progress_shown) as begin:

        def attempt(job: Job, threads: int) -> Report:
            beside_others = threads < settings.jobs  # one bar cannot show several files
            alone = settings if beside_others else replace(settings, begin=begin)
            return do(job, replace(alone, jobs=threads))

        yield from run_jobs(jobs, attempt, settings.jobs)


def _note(journal: Journal, result: Result) -> None:
    if result.report is not None and result.report.output is not None:
        totals = result.report.totals
        more = {"ratio": totals["ratio"], "sqnr_db": totals["sqnr_db"], "seconds": round(result.report.seconds, 3)}
        journal.note(result.job.path, result.job.output, "ok", more)
    elif result.error is not None:
        from modelzip_cli.batch.run import describe_error

        journal.note(result.job.path, result.job.output, "failed", {"error": describe_error(result.error)})


def _show_single(result: Result, form: str, stream: TextIO, shown: Shown) -> None:
    from modelzip_cli.pages.run import report_blocks

    report = result.report
    if report is None:
        if not shown.quiet and form in ("json", "jsonl"):
            print(json.dumps(result.to_json()))
        elif not shown.quiet:
            print(f"{inert(str(result.job.output))}: {result.job.skipped}")
        return
    if not shown.quiet:
        show(form, report.to_json, lambda: report_blocks(report, verbose=shown.verbose), stream)
    write_reports(
        shown.files, report.to_json, lambda: report_blocks(report, verbose=shown.verbose), lambda: _html([result])
    )


def _show_batch(results: list[Result], form: str, shown: Shown) -> None:
    from modelzip_cli.batch.run import summarize
    from modelzip_cli.pages.batch import batch_blocks, batch_summary
    from modelzip_cli.report import SCHEMA_VERSION

    summary = summarize(results)

    def values() -> dict[str, Any]:
        runs = [result.to_json() for result in results]
        return {"schema_version": SCHEMA_VERSION, "runs": runs, "summary": summary}

    if not shown.quiet:
        if form == "json":
            print(json.dumps(values(), indent=1))
        elif form == "jsonl":
            print(json.dumps({"schema_version": SCHEMA_VERSION, "summary": summary}))
        else:
            print(batch_summary(summary))
    write_reports(shown.files, values, lambda: batch_blocks(results, summary), lambda: _html(results))


def _html(results: list[Result]) -> str:
    import platform

    import numpy as np

    from modelzip_cli.html.page import html_page

    return html_page(
        [result.report for result in results if result.report is not None],
        command_line=shlex.join(["modelzip", *map(inert, sys.argv[1:])]),
        failed=[(inert(str(r.job.path)), str(r.error)) for r in results if r.error is not None],
        skipped=[(inert(str(r.job.path)), r.job.skipped) for r in results if r.error is None and r.job.skipped],
        environment=(("Python", platform.python_version()), ("numpy", np.__version__), ("system", platform.platform())),
    )


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
