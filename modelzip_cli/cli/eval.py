"""`modelzip eval`: what does the model do?"""

from __future__ import annotations

from dataclasses import dataclass
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
    from json import dumps

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
        from modelzip_cli.running.evaluate import METRICS, check_gates, chosen_rows, evaluate, prepared, use_threads
        from modelzip_cli.running.ladder import open_model, open_reference

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
        standard = open_reference(reference, network) if reference is not None else None
        found: list[Outcome] = []
        before = None
        with examples_progress(shown=not no_progress) as begin:
            for path in paths:
                model = open_model(path, network)
                examples = open_data(data, model.wanted, options)
                rows = chosen_rows(examples, limit, seed)
                model = prepared(model, examples, rows)
                if standard is not None and before is None:
                    standard = prepared(standard, examples, rows)
                    advance = begin(standard.label, len(rows))
                    before = evaluate(standard, examples, rows, reference=standard, advance=advance)
                result = evaluate(model, examples, rows, reference=standard, advance=begin(model.label, len(rows)))
                warned = [*examples.warnings, *_doubts(standard, before), *_doubts(model, result)]
                found.append(Outcome(path, model, result, check_gates(gates, result), warned))

    def values() -> dict[str, Any]:
        from modelzip_cli.report import SCHEMA_VERSION

        seconds = time.monotonic() - started
        runs = [_run(outcome, before, examples.label, key, seconds) for outcome in found]
        return runs[0] if len(runs) == 1 else {"schema_version": SCHEMA_VERSION, "runs": runs}

    def blocks() -> list[Any]:
        from modelzip_cli.pages.evaluation import evaluation_blocks

        table = [(standard.label, before)] if standard is not None and before is not None else []
        table += [(outcome.model.label, outcome.result) for outcome in found]
        what = "sequences" if examples.a_label_a_position else "examples"
        pairs = [
            ("network", ", ".join(dict.fromkeys(outcome.model.rung for outcome in found))),
            ("latency", f"median of a batch, {threads} thread{'s' if threads > 1 else ''}"),
        ]
        passed = [gate for outcome in found for gate in outcome.gates]
        warned = [*dict.fromkeys(warning for outcome in found for warning in outcome.warnings)]
        return evaluation_blocks(f"{examples.label}: {found[0].result.examples:,} {what}", table, pairs, passed, warned)

    if chosen == "jsonl" and len(found) > 1:
        for run in values()["runs"]:
            print(dumps(run, allow_nan=False))
    else:
        show(chosen, values, blocks)
    write_reports(files, values, blocks)
    _raise_for(found)


@dataclass(frozen=True)
class Outcome:
    """What came of one of the paths."""

    path: Path
    model: Model
    result: Evaluation
    gates: tuple[Gate, ...]
    warnings: list[str]


def _doubts(model: Model | None, result: Evaluation | None) -> list[str]:
    """What is to be known of a result before it is believed."""
    if model is None or result is None or not result.nonfinite:
        return []
    what = "positions" if result.sequences else "examples"
    return [f"{model.label}: scores of {result.nonfinite:,} {what} are NaN or infinite; they count as wrong"]


def _run(outcome: Outcome, before: Evaluation | None, data: str, key: str | None, seconds: float) -> dict[str, Any]:
    from modelzip_cli import __version__
    from modelzip_cli.report import SCHEMA_VERSION
    from modelzip_cli.reporting import describe_source, peak_rss
    from modelzip_cli.source import open_source

    source = open_source(outcome.path, key=key)
    side = describe_source(source)
    source.close()
    return {
        "schema_version": SCHEMA_VERSION,
        "modelzip": __version__,
        "command": "eval",
        "source": side.to_json(source=True),
        "output": None,
        "network": outcome.model.rung,
        "data": data,
        "evaluation": {"before": before.to_json() if before else None, "after": outcome.result.to_json()},
        "gates": [vars(gate) for gate in outcome.gates],
        "warnings": outcome.warnings,
        "timing": {"seconds": round(seconds, 3), "peak_rss_bytes": peak_rss()},
    }


def _raise_for(found: list[Outcome]) -> None:
    from modelzip_cli.errors import GateFailed
    from modelzip_cli.running.evaluate import NEEDED

    for outcome in found:
        for gate in outcome.gates:
            if not gate.passed:
                reached = (
                    f"is not known: it needs {NEEDED[gate.metric]}, and scores that are numbers"
                    if gate.value is None
                    else f"is {gate.value:.4f}"
                )
                message = f"{outcome.model.label}: {gate.metric} {reached}, the limit {gate.limit:g}"
                raise GateFailed(message, reported=True)
