"""`modelzip compress`: meet a size or a quality, or keep every bit."""

from __future__ import annotations

from dataclasses import replace

from modelzip_cli.cli.options import (
    AllowNonfinite,
    Bpw,
    Debug,
    DryRun,
    Exclude,
    FailUnder,
    FileList,
    Force,
    Format,
    Include,
    Jobs,
    Json,
    KeepExtras,
    Key,
    LosslessFlag,
    ManyPaths,
    MaxSize,
    MinSqnr,
    NoProgress,
    Only,
    Output,
    OutputDir,
    Quiet,
    Ratio,
    RecipeFile,
    Recursive,
    ReportFiles,
    Requantize,
    SaveRecipe,
    Set,
    Skip,
    SkipExisting,
    TargetSize,
    Verbose,
)
from modelzip_cli.errors import UsageError


def compress(
    paths: ManyPaths = None,
    ratio: Ratio = None,
    target_size: TargetSize = None,
    bpw: Bpw = None,
    min_sqnr: MinSqnr = None,
    lossless: LosslessFlag = False,
    requantize: Requantize = False,
    only: Only = None,
    skip: Skip = None,
    set_: Set = None,
    recipe: RecipeFile = None,
    save_recipe: SaveRecipe = None,
    output: Output = None,
    output_dir: OutputDir = None,
    force: Force = False,
    skip_existing: SkipExisting = False,
    recursive: Recursive = False,
    filelist: FileList = None,
    include: Include = None,
    exclude: Exclude = None,
    key: Key = None,
    keep_extras: KeepExtras = False,
    allow_nonfinite: AllowNonfinite = False,
    dry_run: DryRun = False,
    fail_under: FailUnder = None,
    max_size: MaxSize = None,
    jobs: Jobs = None,
    form: Format = "auto",
    json: Json = False,
    quiet: Quiet = False,
    report: ReportFiles = None,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Meet a goal: a ratio, a size, bits a weight or a quality, by the scheme ecq; or keep every bit (--lossless).

    Without a goal: print the front of size against error and a recommendation, and write nothing.
    """
    from modelzip_cli.batch.names import output_name
    from modelzip_cli.cli.many import Shown, run_many, select
    from modelzip_cli.cli.recipes import one_goal, read_recipe_file, save_recipe_file
    from modelzip_cli.cli.values import parse_form, parse_gate, parse_jobs, parse_ratio, parse_report_files, parse_size
    from modelzip_cli.recipe import Recipe, parse_rule
    from modelzip_cli.single import METRICS, Limits, Settings, compress_file

    goal = one_goal(
        ratio=None if ratio is None else parse_ratio(ratio),
        target_size=None if target_size is None else parse_size(target_size, "--target-size"),
        bpw=bpw,
        min_sqnr=min_sqnr,
    )
    if goal and lossless:
        raise UsageError(f"--lossless and --{goal.kind.replace('_', '-')} are two goals: give one of them")
    settings = Settings(
        parse_jobs(jobs),
        force,
        dry_run,
        output_dir is not None,
        Limits(
            tuple(parse_gate(text, METRICS) for text in fail_under or ()),
            None if max_size is None else parse_size(max_size, "--max-size"),
        ),
        requantize=requantize,
    )
    form = parse_form(form, json)
    files = parse_report_files(report, ("json", "md", "html"))
    asks_front = goal is None and not lossless and recipe is None
    if recipe:
        asked = read_recipe_file(recipe)
        asked = replace(asked, goal=goal or asked.goal)
    elif asks_front:
        from modelzip_cli.front import ANY_GOAL

        asked = Recipe(scheme="ecq", goal=ANY_GOAL)
    else:
        asked = Recipe(scheme="lossless") if lossless else Recipe(scheme="ecq", goal=goal)
    asked = replace(
        asked,
        only=(*asked.only, *(only or ())),
        skip=(*asked.skip, *(skip or ())),
        rules=(*asked.rules, *(parse_rule(text) for text in set_ or ())),
        key=key or asked.key,
        keep_extras=keep_extras or lossless or asked.keep_extras,
        allow_nonfinite=allow_nonfinite or asked.allow_nonfinite,
    )
    if asks_front:
        if output or output_dir or save_recipe or recursive or fail_under or max_size:
            raise UsageError(
                "without a goal nothing is written: give --ratio, --target-size, --bpw, --min-sqnr or --lossless, or "
                "leave the options about outputs and batches away"
            )
        from modelzip_cli.cli.front import show_fronts

        show_fronts(paths, filelist, asked, settings, form, files, quiet=quiet)
        return
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
    if save_recipe is not None:
        save_recipe_file(save_recipe, asked, force=force)
    run_many(
        selection,
        lambda path: output_name(path, asked),
        lambda job, running: compress_file(job.path, job.output, asked, running, command="compress"),
        settings,
        Shown(form, quiet, verbose, not (no_progress or quiet), files),
        command="compress",
        recipe=asked.to_json(),
    )
