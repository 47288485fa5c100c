"""`modelzip compress` without a goal: show what each goal would give, and write nothing."""

from __future__ import annotations

import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from modelzip_cli.batch.jobs import read_filelist
from modelzip_cli.cli.show import show, write_reports
from modelzip_cli.cli.values import check_report_files
from modelzip_cli.errors import UsageError, inert
from modelzip_cli.front import front_of
from modelzip_cli.report import SCHEMA_VERSION

if TYPE_CHECKING:
    from modelzip_cli.recipe import Recipe
    from modelzip_cli.render import Block
    from modelzip_cli.single import Settings


def show_fronts(
    paths: list[Path] | None,
    filelist: Path | None,
    asked: Recipe,
    settings: Settings,
    form: str,
    files: tuple[Path, ...],
    *,
    quiet: bool,
) -> None:
    """Show the front of every input, one after the other."""
    inputs = [*(paths or ()), *(read_filelist(filelist) if filelist else ())]
    if not inputs:
        raise UsageError("no input: name a checkpoint" + (" in the file list" if filelist else ", or give --filelist"))
    check_report_files(files, inputs)
    with ThreadPoolExecutor(settings.jobs, thread_name_prefix="modelzip") as executor:
        found = [front_of(path, asked, executor, requantize=settings.requantize) for path in inputs]

    def values() -> dict[str, object]:
        runs = [front.to_json() for front in found]
        return runs[0] if len(runs) == 1 else {"schema_version": SCHEMA_VERSION, "runs": runs}

    def blocks() -> list[Block]:
        from modelzip_cli.pages.front import front_blocks

        return [block for front in found for block in front_blocks(front)]

    def html() -> str:
        from modelzip_cli.html.front import front_page

        return front_page(found, command_line=shlex.join(["modelzip", *map(inert, sys.argv[1:])]))

    if not quiet:
        show(form, values, blocks)
    write_reports(files, values, blocks, html)
