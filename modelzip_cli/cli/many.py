"""Run one command over the inputs of a command line and show what became of each."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from modelzip_cli.cli.show import form_for, show, to_null, write_reports
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.errors import CannotWrite, Stopped, UsageError, inert

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
    of_compressed: bool = False,
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
    return Selection(found, recursive, *globs, output, output_dir, force, skip_existing, dry_run, of_compressed)


def run_many(
    selection: Selection,
    name_of: Callable[[Path], str],
    do: Callable[[Job, Settings], Report],
    settings: Settings,
    shown: Shown,
    *,
    command: str,
    recipe: Mapping[str, Any],
    one_by_one: bool = False,
) -> None:
    """Find inputs, give them outputs, do them, show reports. Raises the error of a single input, or BatchFailed.

    `one_by_one`: small files too, each with all threads.
    """
    from modelzip_cli.batch.jobs import find_inputs, plan_jobs
    from modelzip_cli.batch.journal import Journal
    from modelzip_cli.batch.run import output_folders, raise_for
    from modelzip_cli.cli.values import check_report_files

    items = find_inputs(selection)
    single = len(items) == 1 and not selection.recursive
    folder = None if single else selection.journal_folder
    journal = None if folder is None else Journal(folder, command, recipe)
    jobs = plan_jobs(items, selection, name_of, journal)
    todo = [job for job in jobs if not job.skipped and not job.refused]
    check_report_files(shown.files, [job.path for job in jobs], [job.output for job in todo])
    if selection.dry_run or not todo:
        journal = None  # nothing will be there to note, maybe not even its folder
    sends = single and jobs[0].output == STANDARD  # the report then goes where it does not mix with the weights
    stream = sys.stderr if sends and not settings.dry_run else sys.stdout
    form = form_for(shown.form, stream)
    results: list[Result] = []
    finished: list[Result] = []  # in the order in which they ended; `results` are in the order of the inputs
    makes = settings.make_folders and not settings.dry_run
    folders = [job.output.parent for job in jobs if makes and not job.skipped and not job.refused]
    with output_folders(folders):
        if journal is not None:
            journal.begin()
        try:
            for result in _results(
                jobs, do, settings, journal, finished, progress_shown=shown.progress, one_by_one=one_by_one
            ):
                results.append(result)
                if shown.quiet:
                    if not sends and result.report is not None and result.report.output is not None:
                        _print(str(result.job.output))
                    elif not single and result.error is not None:
                        print(f"modelzip: error: {result.error}", file=sys.stderr)
                elif not single:
                    _show_line(result, form)
        except Stopped:
            if not single:
                done = sum(result.error is None for result in finished)
                rest = "; the same command line goes on from there" if journal and not selection.force else ""
                print(f"modelzip: {done} of {len(jobs)} files done{rest}", file=sys.stderr)
            raise
    if not single:
        _show_batch(results, form, shown)
    elif results[0].error is None:
        _show_single(results[0], form, stream, shown)
    raise_for(results, reported=sends or not single)


def _results(
    jobs: list[Job],
    do: Callable[[Job, Settings], Report],
    settings: Settings,
    journal: Journal | None,
    finished: list[Result],
    *,
    progress_shown: bool,
    one_by_one: bool,
) -> Iterator[Result]:
    from modelzip_cli.batch.run import run_jobs
    from modelzip_cli.cli.progress import progress

    def finish(result: Result) -> None:
        finished.append(result)
        if journal is not None and result.error is not None:
            _note_failed(journal, result)

    with progress(shown=progress_shown) as begin:

        def attempt(job: Job, threads: int) -> Report:
            beside_others = threads < settings.jobs  # one bar cannot show several files
            alone = settings if beside_others else replace(settings, begin=begin)
            if journal is not None:
                alone = replace(alone, ready=partial(_note_done, journal, job))
            return do(job, replace(alone, jobs=threads))

        yield from run_jobs(jobs, attempt, settings.jobs, finish, one_by_one=one_by_one)


def _note_done(journal: Journal, job: Job, report: Report, pending: Path) -> None:
    totals = report.totals
    more = {"ratio": totals["ratio"], "sqnr_db": totals["sqnr_db"], "seconds": round(report.seconds, 3)}
    journal.note_done(job.path, job.output, pending, more)


def _note_failed(journal: Journal, result: Result) -> None:
    from modelzip_cli.batch.run import describe_error

    assert result.error is not None
    with suppress(CannotWrite):  # the file has its row, and is tried again without a line as well
        journal.note_failed(result.job.path, describe_error(result.error))


def _show_single(result: Result, form: str, stream: TextIO, shown: Shown) -> None:
    from modelzip_cli.pages.run import report_blocks
    from modelzip_cli.render import Prose

    report = result.report
    if report is None:
        line = f"{inert(str(result.job.output))}: {result.job.skipped}"
        if not shown.quiet:
            print(json.dumps(result.to_json()) if form in ("json", "jsonl") else line)
        write_reports(shown.files, result.to_json, lambda: [Prose(line)], lambda: _html([result]))
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
            _print(json.dumps(values(), indent=1))
        elif form == "jsonl":
            _print(json.dumps({"schema_version": SCHEMA_VERSION, "summary": summary}))
        elif form == "md":
            show("md", values, lambda: batch_blocks(results, summary))
        else:
            _print(batch_summary(summary))
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
    """One line as soon as a file is done; in JSON and Markdown all come at the end."""
    if form in ("json", "md"):
        return
    if form == "jsonl":
        _print(json.dumps(result.to_json()))
    else:
        from modelzip_cli.pages.batch import batch_line

        _print(batch_line(result))


def _print(text: str) -> None:
    """Print a line at once; where the reader went away (`| head`), the batch goes on without one."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        to_null(1)
