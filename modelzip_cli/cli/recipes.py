"""Recipes from the command line: files, and the one goal that a run may have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelzip_cli.errors import UsageError, inert

if TYPE_CHECKING:
    from modelzip_cli.recipe import Goal, Recipe


def one_goal(**values: float | None) -> Goal | None:
    """The goal that was given, by its kind. Raises UsageError for two of them."""
    from modelzip_cli.recipe import Goal

    given = {kind: value for kind, value in values.items() if value is not None}
    if len(given) > 1:
        first, second, *_ = (f"--{kind.replace('_', '-')}" for kind in given)
        raise UsageError(f"{first} and {second} are two goals: give one of them")
    return next((Goal(kind, value) for kind, value in given.items()), None)


def read_recipe_file(path: Path) -> Recipe:
    """Read a TOML recipe. Raises UsageError."""
    from modelzip_cli.recipe_file import read_recipe

    label = inert(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{label}: cannot read the recipe: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        ) from None
    return read_recipe(text, label)


def save_recipe_file(path: Path, recipe: Recipe, *, force: bool) -> None:
    """Write the effective recipe as TOML."""
    from modelzip_cli.containers.atomic import write_text
    from modelzip_cli.recipe_file import to_toml

    write_text(path, to_toml(recipe.to_json()), replace=force)
