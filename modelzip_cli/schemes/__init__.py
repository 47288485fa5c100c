"""The table of schemes. A scheme is one file and one line here; nothing is imported until it is used."""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING

from modelzip_cli.errors import BadOption, UnknownScheme

if TYPE_CHECKING:
    from modelzip_cli.schemes.base import Scheme

SCHEMES = {
    "int": "integer:Int",
    "fixed": "fixed:Fixed",
    "binary": "binary:Binary",
    "ternary": "ternary:Ternary",
    "codebook": "codebook:Codebook",
    "nf4": "normal_float:Nf4",
    "fp8": "fp8:Fp8",
    "fp16": "floats:Fp16",
    "bf16": "floats:Bf16",
    "fp32": "floats:Fp32",
    "ecq": "ecq:Ecq",
    "lossless": "lossless:Lossless",
}
KEEP = "keep"  # not a scheme: the tensor is stored as it was

IDS = "|".join(sorted(SCHEMES, key=len, reverse=True))
NAME = re.compile(rf"(?P<id>{IDS}|[a-z]+)(?P<width>\d{{1,6}})?(?P<options>(?:-n-\d+|-[a-z]+[\d.]*)*)")
OPTION = re.compile(r"-(n-\d+|[a-z]+[\d.]*)")


def scheme_class(scheme_id: str) -> type[Scheme]:
    """Import and return the class of `scheme_id`. Raises KeyError for an id that is not in the table."""
    module, name = SCHEMES[scheme_id].split(":")
    found: type[Scheme] = getattr(import_module(f"{__name__}.{module}"), name)
    return found


def scheme_names() -> list[str]:
    """All names without options, as a person would type them: int2, int3, ..., bf16, keep."""
    classes = {scheme_id: scheme_class(scheme_id) for scheme_id in SCHEMES}
    names = [f"{i}{width}" if width else i for i, c in classes.items() for width in (c.widths or [0])]
    return [*names, KEEP]


def parse_scheme(name: str) -> Scheme | None:
    """Build the scheme that `name` asks for, such as `int4-g64-mse`; None for `keep`. `str()` of it is canonical.

    Raises UnknownScheme for a name that is not in the table and BadOption for options that the scheme does not have.
    """
    if name == KEEP:
        return None
    whole = NAME.fullmatch(name)
    if not whole or whole["id"] not in SCHEMES:
        raise UnknownScheme(name, scheme_names())
    found = scheme_class(whole["id"])
    if whole["width"] and int(whole["width"]) not in found.widths:
        allowed = f"{found.widths[0]} to {found.widths[-1]}" if found.widths else "none"
        raise BadOption(f"{name}: {found.id} has no width {whole['width']}; it has {allowed}")
    options = OPTION.findall(whole["options"])
    kinds = [option.rstrip("-.0123456789") for option in options]
    if len(set(kinds)) < len(kinds):
        raise BadOption(f"{name}: an option is given twice")
    return found.parse(int(whole["width"]) if whole["width"] else None, options)
