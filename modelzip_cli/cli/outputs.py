"""What quantize, prune and compress have in common: a recipe and the options of many outputs become files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelzip_cli.errors import UsageError

if TYPE_CHECKING:
    from modelzip_cli.batch.jobs import Job
    from modelzip_cli.cli.many import Shown
    from modelzip_cli.recipe import Recipe
    from modelzip_cli.report import Report
    from modelzip_cli.running.aided import Study
    from modelzip_cli.single import Settings

JUDGED = ("accuracy", "agreement", "perplexity-ratio")  # gates on what the model does, which take --data


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
    statistics: Path | None = None,
    model: Mapping[str, Any] | None = None,
) -> None:
    """Carry out `asked` for every input and show what became of it. Raises what that raises.

    `model`: what `study_of` is told of how the model is run.
    """
    from modelzip_cli.batch.names import output_name
    from modelzip_cli.cli.data import study_of
    from modelzip_cli.cli.many import Shown, run_many, select
    from modelzip_cli.cli.recipes import save_recipe_file
    from modelzip_cli.cli.values import parse_form, parse_gate, parse_jobs, parse_report_files, parse_size
    from modelzip_cli.single import METRICS, Limits, Settings

    given = model or {}
    judged = JUDGED if given.get("data") else ()
    gates = [parse_gate(text, (*METRICS, *judged)) for text in fail_under or ()]
    limits = Limits(
        tuple(gate for gate in gates if gate[0] in METRICS),
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
    gates_of_model = tuple(gate for gate in gates if gate[0] in judged)
    study = study_of(**given, statistics=statistics, fail_under=gates_of_model, force=force) if given else None
    if study and study.save is not None and (len(selection.paths) > 1 or recursive):
        raise UsageError("--save-statistics is for those of one model: name one input")
    run_many(
        selection,
        lambda path: output_name(path, asked),
        _with_model(asked, command, study, shown) if study else _alone(asked, command, statistics),
        settings,
        shown,
        command=command,
        recipe=asked.to_json(),
        one_by_one=study is not None,
    )


def _alone(asked: Recipe, command: str, statistics: Path | None) -> Callable[[Job, Settings], Report]:
    """What does a job without running the model; `statistics` may come from another run."""
    from modelzip_cli.single import Aid, compress_file

    def do(job: Job, settings: Settings) -> Report:
        if statistics is None:
            return compress_file(job.path, job.output, asked, settings, command=command)
        from modelzip_cli.statistics import StatisticsFile

        with closing(StatisticsFile(statistics)) as found:
            return compress_file(job.path, job.output, asked, settings, command=command, aid=Aid(found))

    return do


def _with_model(asked: Recipe, command: str, study: Study, shown: Shown) -> Callable[[Job, Settings], Report]:
    """What does a job with the help of the model."""
    from modelzip_cli.cli.data import quiet_torch
    from modelzip_cli.cli.progress import training_progress
    from modelzip_cli.running.aided import compress_with_model
    from modelzip_cli.single import no_progress

    def do(job: Job, settings: Settings) -> Report:
        with quiet_torch(), training_progress(shown=shown.progress) as (say, step):
            told = replace(study, say=say, step=step)
            alone = replace(settings, begin=no_progress)
            return compress_with_model(job.path, job.output, asked, alone, command=command, study=told)

    return do
