"""The schemes as data, for `modelzip schemes`: the docstrings are the manual."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import Any

from modelzip_cli.errors import UnknownScheme
from modelzip_cli.schemes import KEEP, NAME, SCHEMES, parse_scheme, scheme_class, scheme_names

EXAMPLE_SHAPE = 4096, 4096


@dataclass(frozen=True)
class SchemeLine:
    """One scheme of the list: its names, the stored bits a weight of a 4096 x 4096 matrix, what it is, an example."""

    name: str
    bits_per_weight: float | None
    summary: str
    example: str

    def to_json(self) -> dict[str, Any]:
        """The line as JSON values."""
        return dict(vars(self))


def list_schemes() -> list[SchemeLine]:
    """Every scheme of the table, widths folded, then `keep`."""
    lines = []
    for scheme_id in SCHEMES:
        found = scheme_class(scheme_id)
        name = f"{scheme_id}{found.widths[0]} ... {scheme_id}{found.widths[-1]}" if found.widths else scheme_id
        example = parse_scheme(found.example)
        assert example is not None
        rows, columns = EXAMPLE_SHAPE
        bits = None if example.raw else round(8 * example.stored_bytes(rows, columns) / (rows * columns), 3)
        alone = sum(target.split(":")[0] == found.__module__.rpartition(".")[2] for target in SCHEMES.values()) == 1
        about = inspect.getdoc(sys.modules[found.__module__] if alone else found) or ""
        summary = about.splitlines()[0].split(": ", 1)[-1] if alone else about.split(":")[0]
        lines.append(SchemeLine(name, bits, summary.rstrip("."), found.example))
    return [*lines, SchemeLine(KEEP, None, "as it was, byte for byte", KEEP)]


def explain(name: str) -> dict[str, Any]:
    """The manual of one scheme, by id (`int`) or full name (`int4-g64`). Raises UnknownScheme and BadOption."""
    if name == KEEP:
        return {
            "name": KEEP,
            "canonical": KEEP,
            "manual": "The tensor is stored as it was, byte for byte.",
            "about": "",
        }
    found = NAME.fullmatch(name)
    if not found or found["id"] not in SCHEMES:
        raise UnknownScheme(name, [*SCHEMES, *scheme_names()])
    scheme = scheme_class(found["id"])
    canonical = str(parse_scheme(name)) if name != scheme.id else scheme.id
    about = inspect.getdoc(sys.modules[scheme.__module__]) or ""
    return {"name": scheme.id, "canonical": canonical, "manual": inspect.getdoc(scheme) or "", "about": about}
