"""`modelzip compress`: meet a size or a quality, or keep every bit."""

from __future__ import annotations

from modelzip_cli.cli.options import (
    AllowNonfinite,
    Arch,
    ArchArgs,
    Bpw,
    Debug,
    DryRun,
    Exclude,
    FileList,
    Force,
    Format,
    ImageSize,
    Include,
    Jobs,
    Json,
    KeepExtras,
    Key,
    LabelKey,
    LosslessFlag,
    ManyPaths,
    MaxSize,
    Mean,
    MinSqnr,
    NoProgress,
    Only,
    Output,
    OutputDir,
    OutputGates,
    Quiet,
    Ratio,
    RecipeFile,
    Recursive,
    ReportFiles,
    Requantize,
    RunData,
    SaveRecipe,
    SaveStatistics,
    Set,
    Skip,
    SkipExisting,
    StatisticsPath,
    Std,
    TargetSize,
    TestData,
    TextKey,
    TokenizerName,
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
    data: RunData = None,
    test_data: TestData = None,
    statistics: StatisticsPath = None,
    save_statistics: SaveStatistics = None,
    arch: Arch = None,
    arch_args: ArchArgs = None,
    label_key: LabelKey = None,
    text_key: TextKey = None,
    mean: Mean = None,
    std: Std = None,
    image_size: ImageSize = None,
    tokenizer: TokenizerName = None,
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
    fail_under: OutputGates = None,
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
    from modelzip_cli.cli.outputs import with_choices, write_outputs
    from modelzip_cli.cli.recipes import one_goal, read_recipe_file
    from modelzip_cli.cli.values import parse_ratio, parse_size
    from modelzip_cli.recipe import Recipe

    goal = one_goal(
        ratio=None if ratio is None else parse_ratio(ratio),
        target_size=None if target_size is None else parse_size(target_size, "--target-size"),
        bpw=bpw,
        min_sqnr=min_sqnr,
    )
    if goal and lossless:
        raise UsageError(f"--lossless and --{goal.kind.replace('_', '-')} are two goals: give one of them")
    asks_front = goal is None and not lossless and recipe is None
    if recipe:
        asked = read_recipe_file(recipe)
    elif asks_front:
        from modelzip_cli.front import ANY_GOAL

        asked = Recipe(scheme="ecq", goal=ANY_GOAL)
    else:
        asked = Recipe(scheme="lossless") if lossless else Recipe(scheme="ecq", goal=goal)
    asked = with_choices(
        asked,
        only=only,
        skip=skip,
        set_=set_,
        key=key,
        keep_extras=keep_extras or lossless,
        allow_nonfinite=allow_nonfinite,
        goal=goal or asked.goal,
    )
    if asks_front:
        about_outputs = output or output_dir or save_recipe or recursive or fail_under or max_size
        if about_outputs or data or statistics or save_statistics or arch or test_data:
            raise UsageError(
                "without a goal nothing is written: give --ratio, --target-size, --bpw, --min-sqnr or --lossless, or "
                "leave the options about outputs, batches and models away"
            )
        from modelzip_cli.cli.front import show_fronts
        from modelzip_cli.cli.values import parse_form, parse_jobs, parse_report_files
        from modelzip_cli.single import Settings

        settings = Settings(parse_jobs(jobs), force, dry_run, requantize=requantize)
        files = parse_report_files(report, ("json", "md", "html"))
        show_fronts(paths, filelist, asked, settings, parse_form(form, json), files, quiet=quiet)
        return
    write_outputs(
        "compress",
        asked,
        paths=paths,
        filelist=filelist,
        recursive=recursive,
        include=include,
        exclude=exclude,
        output=output,
        output_dir=output_dir,
        force=force,
        skip_existing=skip_existing,
        dry_run=dry_run,
        save_recipe=save_recipe,
        fail_under=fail_under,
        max_size=max_size,
        jobs=jobs,
        form=form,
        json=json,
        quiet=quiet,
        verbose=verbose,
        no_progress=no_progress,
        report=report,
        statistics=statistics,
        model={
            "network": (arch, arch_args, key),
            "data": data,
            "test_data": test_data,
            "save_statistics": save_statistics,
            "label_key": label_key,
            "text_key": text_key,
            "mean": mean,
            "std": std,
            "image_size": image_size,
            "tokenizer": tokenizer,
        },
        requantize=requantize,
    )
