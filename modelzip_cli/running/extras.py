"""Libraries that only some runs need: they come with an extra of the package."""

from __future__ import annotations

from importlib.util import find_spec

from modelzip_cli.errors import MissingExtra


def require(module: str, extra: str, what: str) -> None:
    """Raise MissingExtra unless `module` is installed; `what` is what needs it, such as "pictures"."""
    if find_spec(module) is None:
        raise MissingExtra(f"{what}: {module} is not installed; pip install 'modelzip[{extra}]'")
