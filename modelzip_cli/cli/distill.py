"""`modelzip distill`: a smaller model that learns from this one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelzip_cli.cli.options import (
    Arch,
    ArchArgs,
    DataPath,
    DataSeed,
    Debug,
    Force,
    Format,
    ImageSize,
    Jobs,
    Json,
    Key,
    LabelKey,
    Limit,
    Mean,
    ModelGates,
    NoProgress,
    OnePath,
    Output,
    OutputDir,
    Quiet,
    SkipBad,
    Std,
    TableFiles,
    TextKey,
    TokenizerName,
)

if TYPE_CHECKING:
    from modelzip_cli.running.distill import Distilled
    from modelzip_cli.running.lesson import Asked

EVALUATED = ("teacher", "before", "after", "quantized")  # the models of the table, as the report calls them


def distill(
    path: OnePath,
    data: DataPath,
    student: Annotated[
        str | None,
        typer.Option(
            "--student",
            metavar="STUDENT",
            help="width=0.5, depth=0.5, layers=0,2,4; or file.py:Small, a .pt2, a file.  [default: width=0.5]",
        ),
    ] = None,
    student_args: Annotated[
        str | None, typer.Option("--student-args", metavar="JSON", help="Arguments of a network that --student names.")
    ] = None,
    ratio: Annotated[
        str | None, typer.Option("--ratio", metavar="4x", help="A student with this many times fewer parameters.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            metavar="strong|weak",
            help="Begin with the teacher's weights, or fresh.  [default: strong where cut]",
        ),
    ] = None,
    score: Annotated[
        str, typer.Option("--score", metavar="l2|taylor", help="Which channels stay: by weights, or by gradients.")
    ] = "l2",
    test_data: Annotated[
        str | None,
        typer.Option("--test-data", metavar="PATH", help="What the table is measured on.  [default: held-out data]"),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            "--loss", metavar="soft|jacobian|features", help="Learn outputs; also gradients, or what is inside."
        ),
    ] = "soft",
    labels: Annotated[
        float | None,
        typer.Option("--labels", metavar="SHARE", help="Share of the labels in the loss: 0 none, 1 no teacher."),
    ] = None,
    temperature: Annotated[
        str | None, typer.Option("--temperature", metavar="T|auto", help="Divides the scores; auto tries 1 and 4.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", metavar="RATE", help="At its highest, of AdamW.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", metavar="N", help="Examples a step.", min=2)] = None,
    max_steps: Annotated[
        int | None,
        typer.Option("--max-steps", metavar="N", help="At most.  [default: 20 times the data, at least 300]", min=1),
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="30m", help="Train at most this long: 90s, 30m, 2h.")
    ] = None,
    limit: Limit = None,
    seed: DataSeed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run for the same output was stopped.")
    ] = False,
    then: Annotated[
        str | None, typer.Option("--then", metavar="SCHEME", help="Quantize the student too, such as int8.")
    ] = None,
    arch: Arch = None,
    arch_args: ArchArgs = None,
    key: Key = None,
    label_key: LabelKey = None,
    text_key: TextKey = None,
    mean: Mean = None,
    std: Std = None,
    image_size: ImageSize = None,
    tokenizer: TokenizerName = None,
    skip_bad: SkipBad = False,
    output: Output = None,
    output_dir: OutputDir = None,
    force: Force = False,
    fail_under: ModelGates = None,
    jobs: Jobs = None,
    form: Format = "auto",
    json: Json = False,
    quiet: Quiet = False,
    report: TableFiles = None,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Make a smaller model that learns from this one. The teacher is never changed.

    A strong student is cut out of the teacher's weights and learns its outputs; a weak one begins with fresh weights.
    The first Ctrl-C ends the training and keeps the best student so far; --resume goes on from there.
    """
    from modelzip_cli.batch.names import file_name, output_name
    from modelzip_cli.batch.run import output_folders
    from modelzip_cli.cli.data import data_options, network_of, quiet_torch
    from modelzip_cli.cli.progress import training_progress
    from modelzip_cli.cli.show import show, write_reports
    from modelzip_cli.cli.values import (
        check_between,
        check_report_files,
        parse_duration,
        parse_form,
        parse_gate,
        parse_jobs,
        parse_ratio,
        parse_report_files,
        parse_temperature,
    )
    from modelzip_cli.errors import Stopped, UsageError
    from modelzip_cli.recipe import Recipe

    chosen, threads = parse_form(form, json), parse_jobs(jobs)
    files = parse_report_files(report, ("json", "md"))
    then_recipe = Recipe(scheme=then) if then is not None else None
    if output is not None and output_dir is not None:
        raise UsageError("-o names one output, --output-dir a folder: choose one")
    check_between(labels, "--labels", 0, 1)
    check_between(learning_rate, "--learning-rate", 1e-9, 1e3)
    with quiet_torch():
        from modelzip_cli.running.architecture import parse_arch_args
        from modelzip_cli.running.distill import Watch, Where, distill, output_suffix
        from modelzip_cli.running.evaluate import METRICS
        from modelzip_cli.running.lesson import Asked
        from modelzip_cli.running.students import check_choices, parse_student

        spec = parse_student(student, parse_ratio(ratio) if ratio else None, parse_arch_args(student_args))
        kind = kind or ("strong" if spec.is_cut else "weak")
        check_choices(kind, score, loss)
        target = output or (output_dir or path.parent) / file_name(path, "student", output_suffix(path, spec))
        quantized = target.with_name(output_name(target, then_recipe)) if then_recipe is not None else None
        check_report_files(files, [path], [target] if quantized is None else [target, quantized])
        asked = Asked(
            spec,
            kind,
            score,
            loss,
            labels,
            parse_temperature(temperature),
            learning_rate,
            batch_size,
            limit,
            max_steps,
            parse_duration(time),
            seed,
            then,
        )
        options = data_options(
            label_key=label_key,
            text_key=text_key,
            mean=mean,
            std=std,
            image_size=image_size,
            tokenizer=tokenizer,
            skip_bad=skip_bad,
        )
        where = Where(
            path, target, data, test_data, network_of(arch, arch_args, key), options, force, resume, threads, quantized
        )
        folders = output_folders([target.parent] if output_dir else [])
        with folders, training_progress(shown=not (no_progress or quiet)) as (say, step):
            gates = tuple(parse_gate(text, METRICS) for text in fail_under or ())
            found = distill(asked, where, Watch(say, step, gates))

    def blocks() -> list[Any]:
        from modelzip_cli.errors import inert
        from modelzip_cli.pages.evaluation import distillation_blocks

        outputs = [(inert(str(made)), made.stat().st_size) for made in found.outputs]
        return distillation_blocks(found, outputs, threads)

    if quiet:
        for made in found.outputs:
            print(made)
    else:
        show(chosen, lambda: _values(found, asked, path, key), blocks)
    write_reports(files, lambda: _values(found, asked, path, key), blocks)
    if found.stopped is not None:
        raise Stopped(found.stopped)


def _values(found: Distilled, asked: Asked, path: Path, key: str | None) -> dict[str, Any]:
    from modelzip_cli import __version__
    from modelzip_cli.report import SCHEMA_VERSION, finite
    from modelzip_cli.reporting import describe_source, peak_rss
    from modelzip_cli.source import open_source

    source = open_source(path, key=key)
    described = describe_source(source).to_json(source=True)
    source.close()
    outputs = [_output(made) for made in found.outputs]
    history = [
        {name: finite(value, 6) if isinstance(value, float) else value for name, value in point.items()}
        for point in found.state.history
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "modelzip": __version__,
        "command": "distill",
        "source": described,
        "output": outputs[0],
        "quantized": outputs[1] if len(outputs) > 1 else None,
        "recipe": {**asked.to_json(), "lesson": found.lesson.to_json()},
        "evaluation": dict(zip(EVALUATED, (row.evaluation.to_json() for row in found.rows), strict=False)),
        "training": {
            "steps": found.state.step,
            "best_step": found.state.best_step,
            "ended": found.state.ended or None,
            "history": history,
        },
        "notes": [*found.notes],
        "gates": [vars(gate) for gate in found.gates],
        "warnings": [*found.warnings],
        "timing": {"seconds": round(found.seconds, 3), "peak_rss_bytes": peak_rss()},
    }


def _output(path: Path) -> dict[str, Any]:
    from modelzip_cli.reporting import describe_source
    from modelzip_cli.source import open_source

    source = open_source(path)
    made = describe_source(source)
    source.close()
    return {**made.to_json(source=False), "layout": "native" if made.compressed else "dense"}
