"""Recipes as TOML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelzip_cli.errors import UsageError, inert
from modelzip_cli.recipe import Recipe


def to_toml(values: Mapping[str, Any]) -> str:
    """Write the JSON values of a recipe as TOML: strings, booleans, numbers, lists and tables under `set`."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in values.items() if key != "set"]
    for rule in values.get("set", []):
        lines += ["", "[[set]]", *(f"{key} = {_toml_value(value)}" for key, value in rule.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
    return f'"{escaped}"'


def read_recipe(text: str, label: str) -> Recipe:
    """Read a TOML recipe. Raises UsageError naming `label`."""
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return Recipe.from_json(tomllib.loads(text), label)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{label}: not TOML: {inert(str(error))}") from None
