"""`modelzip prune`: fewer weights, in files that shrink."""

from __future__ import annotations

from typing import Any

from modelzip_cli.cli.options import (
    AllowNonfinite,
    Arch,
    ArchArgs,
    Channels,
    CoderName,
    CriterionName,
    Debug,
    DepthShare,
    DropLayers,
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
    KeptScheme,
    Key,
    LabelKey,
    Layout,
    ManyPaths,
    MaxSize,
    Mean,
    MinKeep,
    NoProgress,
    Only,
    Output,
    OutputDir,
    OutputGates,
    PatternName,
    Quiet,
    RecipeFile,
    Recover,
    Recursive,
    ReportFiles,
    RunData,
    SaveRecipe,
    SaveStatistics,
    Scope,
    Seed,
    SetAmount,
    Skip,
    SkipExisting,
    Sparsity,
    StatisticsPath,
    Std,
    TestData,
    TextKey,
    Threshold,
    TokenizerName,
    Verbose,
)


def prune(
    paths: ManyPaths = None,
    sparsity: Sparsity = None,
    threshold: Threshold = None,
    pattern: PatternName = None,
    criterion: CriterionName = None,
    seed: Seed = None,
    scope: Scope = None,
    min_keep: MinKeep = None,
    depth: DepthShare = None,
    drop_layers: DropLayers = None,
    channels: Channels = None,
    arch: Arch = None,
    arch_args: ArchArgs = None,
    data: RunData = None,
    test_data: TestData = None,
    statistics: StatisticsPath = None,
    save_statistics: SaveStatistics = None,
    recover: Recover = None,
    label_key: LabelKey = None,
    text_key: TextKey = None,
    mean: Mean = None,
    std: Std = None,
    image_size: ImageSize = None,
    tokenizer: TokenizerName = None,
    scheme: KeptScheme = None,
    only: Only = None,
    skip: Skip = None,
    set_: SetAmount = None,
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
    """Set weights to zero, and store the rest so that the file shrinks. The source is never changed.

    An amount is needed: --sparsity, --threshold, --pattern, --depth, --drop-layers or --channels. What is left keeps
    its exact values; --scheme quantizes it in the same pass. Embeddings and classifiers are left alone. --channels cuts
    whole channels out of an exported model (.pt2) or one that --arch builds, and writes it as .pt2.
    """
    from modelzip_cli.amounts import Depth, Pruning
    from modelzip_cli.cli.outputs import with_choices, write_outputs
    from modelzip_cli.cli.recipes import read_recipe_file
    from modelzip_cli.recipe import Recipe

    if channels is not None:
        from modelzip_cli.cli.channels import prune_channels
        from modelzip_cli.cli.data import data_options, network_of

        prune_channels(
            paths,
            channels,
            network_of(arch, arch_args, key),
            data,
            data_options(
                label_key=label_key,
                text_key=text_key,
                mean=mean,
                std=std,
                image_size=image_size,
                tokenizer=tokenizer,
                skip_bad=False,
            ),
            output=output,
            output_dir=output_dir,
            force=force,
            dry_run=dry_run,
            jobs=jobs,
            form=form,
            json=json,
            quiet=quiet,
            report=report,
            no_progress=no_progress,
            refused={
                "--test-data": test_data,
                "--statistics": statistics,
                "--save-statistics": save_statistics,
                "--recover": recover is not None,
                "--sparsity": sparsity is not None,
                "--threshold": threshold is not None,
                "--pattern": pattern,
                "--criterion": criterion,
                "--seed": seed is not None,
                "--scope": scope,
                "--min-keep": min_keep is not None,
                "--depth": depth,
                "--drop-layers": drop_layers,
                "--scheme": scheme,
                "--only": only,
                "--skip": skip,
                "--set": set_,
                "--recipe": recipe,
                "--save-recipe": save_recipe,
                "--layout": layout,
                "--coder": coder,
                "--skip-existing": skip_existing,
                "--recursive": recursive,
                "--filelist": filelist,
                "--include": include,
                "--exclude": exclude,
                "--keep-extras": keep_extras,
                "--allow-nonfinite": allow_nonfinite,
                "--fail-under": fail_under,
                "--max-size": max_size,
            },
        )
        return
    before = read_recipe_file(recipe) if recipe else None
    given: dict[str, Any] = {
        "sparsity": sparsity,
        "threshold": threshold,
        "pattern": pattern,
        "criterion": criterion,
        "scope": scope,
        "min_keep": min_keep,
    }
    amounts = {"sparsity", "threshold", "pattern"}
    earlier = before.pruning.to_json() if before and before.pruning else {}
    draws = (criterion or earlier.get("criterion")) == "random"
    given["seed"] = seed if draws or data is None else None  # else it is of the data alone
    if any(given[name] is not None for name in amounts):
        earlier = {name: value for name, value in earlier.items() if name not in amounts}
    values = earlier | {name: value for name, value in given.items() if value is not None}
    shallow = Depth.of(depth, drop_layers) or (before.depth if before else None)
    pruning = Pruning(**values) if values or shallow is None else None
    layout = layout or (before.layout if before else "native")
    default = "lossless" if layout == "native" else "keep"
    asked = before or Recipe(scheme=default, layout=layout)
    if scheme is None and before and before.scheme in ("lossless", "keep"):
        scheme = default
    asked = with_choices(
        asked,
        only=only,
        skip=skip,
        set_=set_,
        key=key,
        keep_extras=keep_extras,
        allow_nonfinite=allow_nonfinite,
        scheme=scheme or asked.scheme,
        layout=layout,
        coder=coder or asked.coder,
        pruning=pruning,
        depth=shallow,
    )
    write_outputs(
        "prune",
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
            "recover": recover,
            "seed": seed,
            "label_key": label_key,
            "text_key": text_key,
            "mean": mean,
            "std": std,
            "image_size": image_size,
            "tokenizer": tokenizer,
        },
    )
