"""`modelzip prune`: fewer weights, in files that shrink."""

from __future__ import annotations

from dataclasses import replace

from modelzip_cli.cli.options import (
    AllowNonfinite,
    CoderName,
    CriterionName,
    Debug,
    DepthShare,
    DropLayers,
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
    KeptScheme,
    Key,
    Layout,
    ManyPaths,
    MaxSize,
    MinKeep,
    NoProgress,
    Only,
    Output,
    OutputDir,
    PatternName,
    Quiet,
    RecipeFile,
    Recursive,
    ReportFiles,
    SaveRecipe,
    Scope,
    Seed,
    SetAmount,
    Skip,
    SkipExisting,
    Sparsity,
    Threshold,
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
    """Set weights to zero, and store the rest so that the file shrinks. The source is never changed.

    An amount is needed: --sparsity, --threshold, --pattern, --depth or --drop-layers. What is left keeps its exact
    values; --scheme quantizes it in the same pass. Embeddings and classifiers are left alone.
    """
    from modelzip_cli.amounts import Depth, Pruning
    from modelzip_cli.batch.names import output_name
    from modelzip_cli.cli.many import Shown, run_many, select
    from modelzip_cli.cli.recipes import read_recipe_file, save_recipe_file
    from modelzip_cli.cli.values import parse_form, parse_gate, parse_jobs, parse_report_files, parse_size
    from modelzip_cli.recipe import Recipe, parse_rule
    from modelzip_cli.single import METRICS, Limits, Settings, compress_file

    before = read_recipe_file(recipe) if recipe else None
    given = {
        "sparsity": sparsity,
        "threshold": threshold,
        "pattern": pattern,
        "criterion": criterion,
        "seed": seed,
        "scope": scope,
        "min_keep": min_keep,
    }
    amounts = {"sparsity", "threshold", "pattern"}
    earlier = before.pruning.to_json() if before and before.pruning else {}
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
    asked = replace(
        asked,
        scheme=scheme or asked.scheme,
        layout=layout,
        only=(*asked.only, *(only or ())),
        skip=(*asked.skip, *(skip or ())),
        rules=(*asked.rules, *(parse_rule(text) for text in set_ or ())),
        key=key or asked.key,
        keep_extras=keep_extras or asked.keep_extras,
        allow_nonfinite=allow_nonfinite or asked.allow_nonfinite,
        coder=coder or asked.coder,
        pruning=pruning,
        depth=shallow,
    )
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
    settings = Settings(parse_jobs(jobs), force, dry_run, output_dir is not None, limits)
    files = parse_report_files(report, ("json", "md", "html"))
    if save_recipe is not None:
        save_recipe_file(save_recipe, asked, force=force)
    run_many(
        selection,
        lambda path: output_name(path, asked),
        lambda job, running: compress_file(job.path, job.output, asked, running, command="prune"),
        settings,
        Shown(parse_form(form, json), quiet, verbose, not (no_progress or quiet), files),
        command="prune",
        recipe=asked.to_json(),
    )
