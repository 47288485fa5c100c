"""`modelzip eval`: what does the model do?"""

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
    Paths,
    SkipBad,
    Std,
    TableFiles,
    TextKey,
    TokenizerName,
)

if TYPE_CHECKING:
    from modelzip_cli.report import Gate
    from modelzip_cli.running.evaluate import Evaluation
    from modelzip_cli.running.model import Model


def eval_(
    paths: Paths,
    data: DataPath,
    arch: Arch = None,
    arch_args: ArchArgs = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", metavar="PATH", help="A model to compare with, such as the one before compression."
        ),
    ] = None,
    label_key: LabelKey = None,
    text_key: TextKey = None,
    mean: Mean = None,
    std: Std = None,
    image_size: ImageSize = None,
    tokenizer: TokenizerName = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    seed: DataSeed = 0,
    key: Key = None,
    fail_under: ModelGates = None,
    jobs: Jobs = None,
    form: Format = "auto",
    json: Json = False,
    report: TableFiles = None,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Say what models do on data: accuracy, perplexity, agreement with a reference, latency.

    The network comes from an exported .pt2, a Hugging Face directory, or --arch; compressed files run as they are.
    """
    import time

    from modelzip_cli.cli.data import data_options, network_of, quiet_torch
    from modelzip_cli.cli.progress import examples_progress
    from modelzip_cli.cli.show import show, write_reports
    from modelzip_cli.cli.values import check_report_files, parse_form, parse_gate, parse_jobs, parse_report_files

    chosen, threads = parse_form(form, json), parse_jobs(jobs)
    files = parse_report_files(report, ("json", "md"))
    check_report_files(files, [*paths, *([reference] if reference else [])])
    started = time.monotonic()
    with quiet_torch():
        from modelzip_cli.running.data import open_data
        from modelzip_cli.running.evaluate import METRICS, check_gates, chosen_rows, evaluate, use_threads
        from modelzip_cli.running.model import open_model
        from modelzip_cli.running.perceptron import settled

        use_threads(threads)
        gates = tuple(parse_gate(text, METRICS) for text in fail_under or ())
        network = network_of(arch, arch_args, key)
        options = data_options(
            label_key=label_key,
            text_key=text_key,
            mean=mean,
            std=std,
            image_size=image_size,
            tokenizer=tokenizer,
            skip_bad=skip_bad,
        )
        standard = open_model(reference, network) if reference is not None else None
        found: list[tuple[Model, Evaluation, tuple[Gate, ...]]] = []
        warned: list[str] = []
        before = None
        with examples_progress(shown=not no_progress) as begin:
            for path in paths:
                model = open_model(path, network)
                examples = open_data(data, model.wanted, options)
                rows = chosen_rows(examples, limit, seed)
                model = settled(model, examples, rows)
                model.check(examples.batch(rows[:2]))
                warned = [*dict.fromkeys([*warned, *examples.warnings])]
                if standard is not None and before is None:
                    before = evaluate(
                        standard, examples, rows, reference=standard, advance=begin(standard.label, len(rows))
                    )
                result = evaluate(model, examples, rows, reference=standard, advance=begin(model.label, len(rows)))
                found.append((model, result, check_gates(gates, result)))

    def values() -> dict[str, Any]:
        from modelzip_cli.report import SCHEMA_VERSION

        seconds = time.monotonic() - started
        runs = [
            _run(path, model, result, passed, before, examples.label, warned, seconds)
            for path, (model, result, passed) in zip(paths, found, strict=True)
        ]
        return runs[0] if len(runs) == 1 else {"schema_version": SCHEMA_VERSION, "runs": runs}

    def blocks() -> list[Any]:
        from modelzip_cli.pages.evaluation import evaluation_blocks

        table = [(standard.label, before)] if standard is not None and before is not None else []
        table += [(model.label, result) for model, result, _ in found]
        what = "sequences" if examples.a_label_a_position else "examples"
        pairs = [
            ("network", ", ".join(dict.fromkeys(model.rung for model, _, _ in found))),
            ("latency", f"median of a batch, {threads} thread{'s' if threads > 1 else ''}"),
        ]
        passed = [gate for _, _, gates in found for gate in gates]
        return evaluation_blocks(f"{examples.label}: {found[0][1].examples:,} {what}", table, pairs, passed, warned)

    show(chosen, values, blocks)
    write_reports(files, values, blocks)
    _raise_for(found)


def _run(
    path: Path,
    model: Model,
    result: Evaluation,
    gates: tuple[Gate, ...],
    before: Evaluation | None,
    data: str,
    warned: list[str],
    seconds: float,
) -> dict[str, Any]:
    from modelzip_cli import __version__
    from modelzip_cli.report import SCHEMA_VERSION
    from modelzip_cli.reporting import describe_source, peak_rss
    from modelzip_cli.source import open_source

    source = open_source(path)
    side = describe_source(source)
    source.close()
    return {
        "schema_version": SCHEMA_VERSION,
        "modelzip": __version__,
        "command": "eval",
        "source": side.to_json(source=True),
        "output": None,
        "network": model.rung,
        "data": data,
        "evaluation": {"before": before.to_json() if before else None, "after": result.to_json()},
        "gates": [vars(gate) for gate in gates],
        "warnings": warned,
        "timing": {"seconds": round(seconds, 3), "peak_rss_bytes": peak_rss()},
    }


def _raise_for(found: list[tuple[Model, Evaluation, tuple[Gate, ...]]]) -> None:
    from modelzip_cli.errors import GateFailed

    for model, _, gates in found:
        for gate in gates:
            if not gate.passed:
                reached = (
                    "is not known: it needs labels or --reference" if gate.value is None else f"is {gate.value:.4f}"
                )
                raise GateFailed(f"{model.label}: {gate.metric} {reached}, the limit {gate.limit:g}", reported=True)
