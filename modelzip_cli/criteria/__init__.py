"""The table of pruning criteria. A criterion is one file and one line here; nothing is imported until it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from modelzip_cli.errors import UsageError, did_you_mean, inert

if TYPE_CHECKING:
    from modelzip_cli.criteria.base import Criterion
    from modelzip_cli.tensors import Statistics

CRITERIA = {
    "magnitude": "magnitude:Magnitude",
    "random": "random:Random",
    "taylor": "gradient:Taylor",
    "fisher": "gradient:Fisher",
    "wanda": "activation:Wanda",
    "sparsegpt": "activation:SparseGpt",
}
AUTO = "auto"  # in the place of a criterion: the model says which


def criterion(name: str, seed: int = 0, statistics: Statistics | None = None) -> Criterion:
    """The criterion called `name`. `seed`: of those that draw numbers. Raises UsageError for an unknown one."""
    if name not in CRITERIA:
        known = (*CRITERIA, AUTO)
        raise UsageError(f"no criterion {inert(name)!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
    module, kind = CRITERIA[name].split(":")
    found: Criterion = getattr(import_module(f"{__name__}.{module}"), kind)(seed, statistics)
    return found
