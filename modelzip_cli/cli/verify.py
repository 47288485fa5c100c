"""`modelzip verify`: is the file what it claims to be?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modelzip_cli.cli.options import Debug, Format, Jobs, Json, Paths


def verify(
    paths: Paths,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="SRC", help="Derive the output again from this source and compare (one PATH)."
        ),
    ] = None,
    jobs: Jobs = None,
    form: Format = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check that a file is what it claims to be.

    Every checksum is checked; with --against also that source and recipe give exactly this file.
    """
    from concurrent.futures import ThreadPoolExecutor

    from modelzip_cli.cli.show import show
    from modelzip_cli.cli.values import parse_form, parse_jobs
    from modelzip_cli.errors import BrokenCheckpoint, UsageError, inert
    from modelzip_cli.report import SCHEMA_VERSION
    from modelzip_cli.verify import verify_file

    if against is not None and len(paths) != 1:
        raise UsageError(f"--against names the source of one file, but there are {len(paths)}")
    chosen, threads = parse_form(form, json), parse_jobs(jobs)
    with ThreadPoolExecutor(threads) as executor:
        found = [verify_file(path, against=against, jobs=threads, executor=executor) for path in paths]

    def values() -> dict[str, object]:
        runs: list[dict[str, object]] = [
            {
                "schema_version": SCHEMA_VERSION,
                "command": "verify",
                "source": {"path": one.path, "compressed": one.compressed},
                "against": one.against,
                "checked": one.checked,
                "bad": [{"tensor": name, "problem": problem} for name, problem in one.bad],
            }
            for one in found
        ]
        return runs[0] if len(runs) == 1 else {"schema_version": SCHEMA_VERSION, "runs": runs}

    from modelzip_cli.pages.comparison import verification_blocks

    show(chosen, values, lambda: [block for one in found for block in verification_blocks(one)])
    bad = [one for one in found if one.bad]
    if bad:
        name, problem = bad[0].bad[0]
        what = f"{bad[0].path}: {len(bad[0].bad)} problems; tensor {inert(name, longest=200)}: {problem}"
        raise BrokenCheckpoint(what, reported=True)
