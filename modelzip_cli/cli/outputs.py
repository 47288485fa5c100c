"""What quantize, prune and compress have in common: a recipe and the options of many outputs become files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelzip_cli.recipe import Recipe


def with_choices(
    asked: Recipe,
    *,
    only: list[str] | None,
    skip: list[str] | None,
    set_: list[str] | None,
    key: str | None,
    keep_extras: bool,
    allow_nonfinite: bool,
    **changes: Any,
) -> Recipe:
    """The recipe with what the options say of tensors added to it, and with other `changes` of its fields.

    All at once, since what a recipe says has to fit together. Raises UsageError where it does not.
    """
    from modelzip_cli.recipe import parse_rule

    return replace(
        asked,
        only=(*asked.only, *(only or ())),
        skip=(*asked.skip, *(skip or ())),
        rules=(*asked.rules, *(parse_rule(text) for text in set_ or ())),
        key=key or asked.key,
        keep_extras=keep_extras or asked.keep_extras,
        allow_nonfinite=allow_nonfinite or asked.allow_nonfinite,
        **changes,
    )


def write_outputs(
    command: str,
    asked: Recipe,
    *,
    paths: list[Path] | None,
    filelist: Path | None,
    recursive: bool,
    include: list[str] | None,
    exclude: list[str] | None,
    output: Path | None,
    output_dir: Path | None,
    force: bool,
    skip_existing: bool,
    dry_run: bool,
    save_recipe: Path | None,
    fail_under: list[str] | None,
    max_size: str | None,
    jobs: int | None,
    form: str,
    json: bool,
    quiet: bool,
    verbose: bool,
    no_progress: bool,
    report: list[Path] | None,
    requantize: bool = True,
) -> None:
    """Carry out `asked` for every input and show what became of it. Raises what that raises."""
    from modelzip_cli.batch.names import output_name
    from modelzip_cli.cli.many import Shown, run_many, select
    from modelzip_cli.cli.recipes import save_recipe_file
    from modelzip_cli.cli.values import parse_form, parse_gate, parse_jobs, parse_report_files, parse_size
    from modelzip_cli.single import METRICS, Limits, Settings, compress_file

    limits = Limits(
        tuple(parse_gate(text, METRICS) for text in fail_under or ()),
        None if max_size is None else parse_size(max_size, "--max-size"),
    )
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
    )
    settings = Settings(parse_jobs(jobs), force, dry_run, output_dir is not None, limits, requantize=requantize)
    shown = Shown(
        parse_form(form, json),
        quiet,
        verbose,
        not (no_progress or quiet),
        parse_report_files(report, ("json", "md", "html")),
    )
    if save_recipe is not None:
        save_recipe_file(save_recipe, asked, force=force)
    run_many(
        selection,
        lambda path: output_name(path, asked),
        lambda job, running: compress_file(job.path, job.output, asked, running, command=command),
        settings,
        shown,
        command=command,
        recipe=asked.to_json(),
    )
