"""`modelzip inspect`: what a file is."""

from __future__ import annotations

from modelzip_cli.cli.options import Debug, Format, Json, Key, Paths, Verbose


def inspect(
    paths: Paths,
    key: Key = None,
    form: Format = "auto",
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Say what a checkpoint holds.

    Only its header is read: tensors in groups, dtypes, what is beside the weights.
    """
    from modelzip_cli.cli.show import show
    from modelzip_cli.cli.values import parse_form
    from modelzip_cli.inspection import inspect_file
    from modelzip_cli.report import SCHEMA_VERSION

    chosen = parse_form(form, json)
    found = [inspect_file(path, key=key) for path in paths]
    if chosen == "json" and len(found) > 1:
        runs = {"schema_version": SCHEMA_VERSION, "runs": [inspection.to_json() for inspection in found]}
        show(chosen, lambda: runs, lambda: ())
        return
    for inspection in found:
        from modelzip_cli.pages import inspection_blocks

        show(chosen, inspection.to_json, lambda inspection=inspection: inspection_blocks(inspection, verbose=verbose))  # type: ignore[misc]
