"""`modelzip prune --channels`: options of prune -> a narrower network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelzip_cli.errors import UsageError, inert

if TYPE_CHECKING:
    from modelzip_cli.running.data import DataOptions
    from modelzip_cli.running.ladder import Network
    from modelzip_cli.running.narrow import Narrowed


def prune_channels(
    paths: list[Path] | None,
    share: float,
    network: Network,
    data: str | None,
    options: DataOptions,
    *,
    output: Path | None,
    output_dir: Path | None,
    force: bool,
    dry_run: bool,
    jobs: int | None,
    form: str,
    json: bool,
    quiet: bool,
    report: list[Path] | None,
    no_progress: bool,
    refused: dict[str, Any],
) -> None:
    """Cut the one model of `paths` and show what became of it. `refused`: options that make no sense here, by name.

    Raises UsageError for those, and what cutting raises.
    """
    from modelzip_cli.batch.names import file_name
    from modelzip_cli.batch.run import output_folders
    from modelzip_cli.cli.data import quiet_torch
    from modelzip_cli.cli.progress import training_progress
    from modelzip_cli.cli.show import show, write_reports
    from modelzip_cli.cli.values import check_report_files, parse_form, parse_jobs, parse_report_files
    from modelzip_cli.pages.evaluation import narrowing_blocks

    chosen, threads = parse_form(form, json), parse_jobs(jobs)
    given = [name for name, value in refused.items() if value]
    if given:
        raise UsageError(f"--channels makes a smaller network: {given[0]} is for weights of the one that is there")
    if paths is None or len(paths) != 1:
        raise UsageError("--channels takes one model at a time")
    if not 0 < share < 1:
        raise UsageError(f"--channels {share:g}: write the share of channels to keep, between 0 and 1, such as 0.5")
    path = paths[0]
    folder = output_dir if output_dir is not None else path.parent
    target = output or folder / file_name(path, f"c{100 * share:.6g}", ".pt2")
    files = parse_report_files(report, ("json", "md"))
    check_report_files(files, [path], [target])
    started = time.monotonic()
    folders = output_folders([target.parent] if output_dir and not dry_run else [])
    with quiet_torch(), folders, training_progress(shown=not (no_progress or quiet)) as (say, _):
        from modelzip_cli.running.narrow import narrow

        say(f"cutting channels of {inert(str(path))}")
        found = narrow(path, target, share, network, data, options, threads=threads, force=force, dry_run=dry_run)
    seconds = time.monotonic() - started

    def values() -> dict[str, Any]:
        return _values(found, path, share, seconds)

    def blocks() -> list[Any]:
        return narrowing_blocks(found, seconds, threads)

    if quiet:
        if found.path is not None:
            print(found.path)
    else:
        show(chosen, values, blocks)
    write_reports(files, values, blocks)


def _values(found: Narrowed, path: Path, share: float, seconds: float) -> dict[str, Any]:
    from modelzip_cli import __version__
    from modelzip_cli.report import SCHEMA_VERSION
    from modelzip_cli.reporting import describe_source, peak_rss
    from modelzip_cli.source import open_source

    source = open_source(path)
    side = describe_source(source)
    source.close()
    written = {"path": inert(str(found.path)), "container": "pt2", "bytes": found.narrow.bytes, "layout": "dense"}
    evaluation = {
        name: None if one is None else one.to_json() for name, one in (("before", found.before), ("after", found.after))
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "modelzip": __version__,
        "command": "prune",
        "source": side.to_json(source=True),
        "output": None if found.path is None else written,
        "recipe": {"channels": share},
        "parameters": {"before": found.source.parameters, "after": found.narrow.parameters},
        "evaluation": evaluation,
        "notes": [*found.notes],
        "warnings": [*found.warnings],
        "timing": {"seconds": round(seconds, 3), "peak_rss_bytes": peak_rss()},
    }
