"""The table of coders: how codes become bytes in the native layout."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelzip_cli.coders.base import Coder

CODERS = {"bitpack": "bitpack:BitPack", "rans": "rans:Rans"}


def coder(coder_id: str) -> Coder:
    """Return the coder called `coder_id`. Raises KeyError for an id that is not in the table."""
    module, name = CODERS[coder_id].split(":")
    found: Coder = getattr(import_module(f"{__name__}.{module}"), name)()
    return found
