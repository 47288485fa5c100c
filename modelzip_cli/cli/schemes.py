"""`modelzip schemes`: what weights can be stored as."""

from __future__ import annotations

from typing import Annotated

import typer

from modelzip_cli.cli.options import Debug, Format, Json


def schemes(
    scheme: Annotated[
        str | None, typer.Argument(metavar="[SCHEME]", help="Explain this scheme: int, fixed, int4-g64 ...")
    ] = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Which tensors are kept or treated with care, and why.")
    ] = False,
    form: Format = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the schemes, or explain one.

    The explanation has the formula, the options, the error bound and the source.
    """
    from modelzip_cli.cli.show import show
    from modelzip_cli.cli.values import parse_form
    from modelzip_cli.defaults import describe_defaults
    from modelzip_cli.pages.manual import default_blocks, scheme_blocks, scheme_list_blocks
    from modelzip_cli.report import SCHEMA_VERSION
    from modelzip_cli.schemes.listing import explain, list_schemes

    chosen = parse_form(form, json)
    if defaults:
        rules = list(describe_defaults())
        values = [{"what": what, "recognised": how, "happens": happens} for what, how, happens in rules]
        show(chosen, lambda: {"schema_version": SCHEMA_VERSION, "defaults": values}, lambda: default_blocks(rules))
    elif scheme is not None:
        manual = explain(scheme)
        show(chosen, lambda: {"schema_version": SCHEMA_VERSION, **manual}, lambda: scheme_blocks(manual))
    else:
        lines = list_schemes()
        values = [line.to_json() for line in lines]
        show(chosen, lambda: {"schema_version": SCHEMA_VERSION, "schemes": values}, lambda: scheme_list_blocks(lines))
