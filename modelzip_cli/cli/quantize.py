"""`modelzip quantize`: fewer bits a weight."""

from __future__ import annotations

from modelzip_cli.cli.options import (
    AllowNonfinite,
    Arch,
    ArchArgs,
    Bits,
    Bpw,
    CoderName,
    Debug,
    DryRun,
    Exclude,
    FileList,
    Force,
    Format,
    GroupSize,
    ImageSize,
    Include,
    Jobs,
    Json,
    KeepExtras,
    Key,
    LabelKey,
    Layout,
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
    RecipeFile,
    Recursive,
    ReportFiles,
    RunData,
    SaveRecipe,
    SaveStatistics,
    SchemeName,
    Set,
    Skip,
    SkipExisting,
    StatisticsPath,
    Std,
    TestData,
    TextKey,
    TokenizerName,
    Verbose,
)
from modelzip_cli.errors import UsageError


def quantize(
    paths: ManyPaths = None,
    scheme: SchemeName = None,
    bits: Bits = None,
    group_size: GroupSize = None,
    bpw: Bpw = None,
    min_sqnr: MinSqnr = None,
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
    layout: Layout = None,
    coder: CoderName = None,
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
    """Store weights in fewer bits. The source is never changed.

    Without options: int8, written as MODEL.int8.safetensors beside the source. `modelzip restore` gives plain tensors
    back.
    """
    from modelzip_cli.cli.outputs import with_choices, write_outputs
    from modelzip_cli.cli.recipes import one_goal, read_recipe_file
    from modelzip_cli.recipe import Recipe

    asked = read_recipe_file(recipe) if recipe else Recipe()
    chosen = _scheme(scheme, bits, group_size)
    asked = with_choices(
        asked,
        only=only,
        skip=skip,
        set_=set_,
        key=key,
        keep_extras=keep_extras,
        allow_nonfinite=allow_nonfinite,
        scheme=chosen or asked.scheme,
        layout=layout or asked.layout,
        coder=coder or asked.coder,
        goal=one_goal(bpw=bpw, min_sqnr=min_sqnr) or asked.goal,
    )
    write_outputs(
        "quantize",
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
    )


def _scheme(scheme: str | None, bits: int | None, group_size: int | None) -> str | None:
    """The scheme that --scheme, or --bits and --group-size, ask for."""
    if bits is None and group_size is None:
        return scheme
    if bits is None:
        raise UsageError("--group-size needs --bits, as in --bits 4 --group-size 64")
    if scheme is not None:
        raise UsageError(f"--bits is short for --scheme int{bits}: give one of the two")
    return f"int{bits}" + (f"-g{group_size}" if group_size is not None else "")
