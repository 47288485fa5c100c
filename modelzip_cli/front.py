"""The front of size against error: what `ecq` would make of a checkpoint at a dozen steps, and which to take."""

from __future__ import annotations

from modelzip_cli.recipe import Goal

FRONT = Goal("bpw", 3.5)  # no goal at all: a recipe of ecq has to have one
