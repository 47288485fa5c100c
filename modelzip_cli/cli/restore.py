"""`modelzip restore`: back to plain tensors."""

from __future__ import annotations

from typing import Annotated

import typer

from modelzip_cli.cli.options import (
    Debug,
    DryRun,
    Exclude,
    FileList,
    Force,
    Format,
    Include,
    Jobs,
    Json,
    ManyPaths,
    NoProgress,
    Output,
    OutputDir,
    Quiet,
    Recursive,
    ReportFiles,
    SkipExisting,
    Verbose,
)
from modelzip_cli.errors import UsageError, inert


def restore(
    paths: ManyPaths = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="f32|f16|bf16", help="Float tensors in this dtype instead of their own."),
    ] = None,
    max_output_size: Annotated[
        str | None,
        typer.Option(
            "--max-output-size",
            metavar="SIZE",
            help="Refuse to write more than this; without it, more than an honest file can need.",
        ),
    ] = None,
    output: Output = None,
    output_dir: OutputDir = None,
    force: Force = False,
    skip_existing: SkipExisting = False,
    recursive: Recursive = False,
    filelist: FileList = None,
    include: Include = None,
    exclude: Exclude = None,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    form: Format = "auto",
    json: Json = False,
    quiet: Quiet = False,
    report: ReportFiles = None,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Write plain tensors again.

    Container, nesting and dtypes are those of the original source. A file that is not compressed is converted, as in
    `modelzip restore model.bin -o model.safetensors`. Every checksum is verified; a damaged file is refused.
    """
    from modelzip_cli.batch.names import restored_name
    from modelzip_cli.cli.many import Shown, run_many, select
    from modelzip_cli.cli.values import parse_form, parse_jobs, parse_report_files, parse_size
    from modelzip_cli.single import Settings, restore_file

    if dtype not in (None, "f32", "f16", "bf16"):
        raise UsageError(f"--dtype {inert(dtype)!r}: there are f32, f16, bf16")
    most_bytes = None if max_output_size is None else parse_size(max_output_size, "--max-output-size")
    files = parse_report_files(report, ("json", "md", "html"))
    selection = select(
        paths,
        filelist,
        recursive,
        include,
        exclude,
        output,
        output_dir,
        force=force,
        skip_existing=skip_existing,
        dry_run=dry_run,
        of_compressed=True,
    )
    run_many(
        selection,
        restored_name,
        lambda job, running: restore_file(job.path, job.output, running, dtype=dtype, most_bytes=most_bytes),
        Settings(parse_jobs(jobs), force, dry_run, output_dir is not None),
        Shown(parse_form(form, json), quiet, verbose, not (no_progress or quiet), files),
        command="restore",
        recipe={"dtype": dtype},
    )
