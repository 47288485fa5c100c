"""How much a run is asked to prune: a share of the weights, a threshold or a pattern, by which criterion."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from modelzip_cli.criteria import AUTO, criterion
from modelzip_cli.criteria.base import Criterion
from modelzip_cli.criteria.patterns import Pattern, parse_pattern
from modelzip_cli.errors import UsageError, inert

SCOPES = ("global", "layer")
AMOUNTS = ("sparsity", "threshold", "pattern")
MIN_KEEP = 0.02
MOST_SEED = 2**63


@dataclass(frozen=True)
class Pruning:
    """One of `sparsity` (share of zeros), `threshold` (weights below it go) and `pattern` (`2:4`), and by what.

    `scope`: one threshold for all weights (`global`), or every tensor at the share (`layer`); None: global where scores
    of different tensors can be compared. `min_keep`: the share of a tensor that a global threshold leaves it.
    """

    sparsity: float | None = None
    threshold: float | None = None
    pattern: str | None = None
    criterion: str = "magnitude"
    seed: int = 0
    scope: str | None = None
    min_keep: float | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for values that make no sense, alone or together."""
        given = [name for name in AMOUNTS if getattr(self, name) is not None]
        if not given:
            raise UsageError("how much? --sparsity 0.5, --threshold 1e-3, --pattern 2:4 or --depth 0.75")
        if len(given) > 1:
            raise UsageError(f"--{given[0]} and --{given[1]} are two amounts: give one of them")
        if self.sparsity is not None:
            check_sparsity(self.sparsity, "--sparsity")
        if self.threshold is not None and not 0 < self.threshold < math.inf:
            raise UsageError(f"--threshold {self.threshold}: write a number above 0; weights nearer to 0 are pruned")
        if self.pattern is not None:
            object.__setattr__(self, "pattern", str(parse_pattern(self.pattern)))
        if self.criterion != AUTO:
            criterion(self.criterion)
        if self.scope is not None and self.scope not in SCOPES:
            raise UsageError(f"--scope {inert(self.scope)}: there are {' and '.join(SCOPES)}")
        if self.scope is not None and self.sparsity is None:
            raise UsageError(f"--scope says how --sparsity is shared; a {given[0]} is the same in every tensor")
        check_seed(self.seed)
        if self.seed and self.criterion != "random":
            raise UsageError(f"--seed is for --criterion random; {self.criterion} draws no numbers")
        if self.min_keep is not None and not 0 <= self.min_keep < 1:
            raise UsageError(f"--min-keep {self.min_keep:g}: write a share of the weights, 0 <= share < 1")
        if self.min_keep is not None and not self.is_global:
            raise UsageError("--min-keep is a floor under --scope global; here every tensor is at the amount")
        if self.threshold is not None and not self.by.by_bits:
            raise UsageError(f"--threshold is about weights; {self.criterion} has other scores: --sparsity")
        if self.is_global and self.by.changes_weights:
            raise UsageError(f"--scope global: {self.criterion} takes a layer at a time: leave --scope away")

    @property
    def by(self) -> Criterion:
        """The criterion, without statistics; of `auto` the one that it tries first."""
        return criterion("magnitude" if self.criterion == AUTO else self.criterion, self.seed)

    @property
    def mask(self) -> Pattern | None:
        """The pattern."""
        return None if self.pattern is None else parse_pattern(self.pattern)

    @property
    def is_global(self) -> bool:
        """Whether one threshold holds for all tensors."""
        scope = self.scope or ("layer" if self.by.same_everywhere else "global")
        return self.sparsity is not None and scope == "global"

    @property
    def floor(self) -> float:
        """The share of a tensor that is left to it."""
        return MIN_KEEP if self.min_keep is None else self.min_keep

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON values."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) != each.default}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Pruning | None:
        """Read what `to_json` wrote, among other keys; None where there is nothing of it. Raises ValueError."""
        found = {name: values[name] for name in PRUNING_KEYS if name in values}
        for name, value in found.items():
            if name in ("sparsity", "threshold", "min_keep"):
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise ValueError(f"{name} is not a number")
            elif not isinstance(value, int if name == "seed" else str) or isinstance(value, bool):
                raise ValueError(f"{name} is not {'a whole number' if name == 'seed' else 'text'}")
        return Pruning(**found) if found else None


PRUNING_KEYS = tuple(each.name for each in fields(Pruning))


def check_seed(seed: int) -> None:
    """Raise UsageError unless it is a number that generators of random numbers take."""
    if not 0 <= seed < MOST_SEED:
        raise UsageError(f"--seed {seed}: write a number from 0 to 2^63 - 1")


def check_sparsity(sparsity: float, option: str) -> None:
    """Raise UsageError unless it is a share of zeros that leaves something."""
    if 1 < sparsity < 100:
        raise UsageError(f"{option} {sparsity:g}: a share of the weights, not per cent: write {sparsity / 100:g}")
    if not 0 <= sparsity < 1:
        raise UsageError(f"{option} {sparsity:g}: write a share of the weights, 0 <= share < 1")


@dataclass(frozen=True)
class Depth:
    """Which of the repeated blocks of a model go: all but the `share`, or those numbered `layers`; of the blocks whose
    names begin with `stack`, None where only one kind of block repeats."""

    share: float | None = None
    layers: tuple[int, ...] = ()
    stack: str | None = None

    @staticmethod
    def of(depth: str | None, drop_layers: str | None) -> Depth | None:
        """Read `0.75` or `3,7`, either with `decoder.layers:` before it. Raises UsageError."""
        if depth is not None and drop_layers is not None:
            raise UsageError("--depth and --drop-layers both say which layers go: give one of them")
        if depth is not None:
            stack, value = _stacked(depth)
            try:
                share = float(value)
            except ValueError:
                share = math.nan
            if not 0 < share < 1:
                raise UsageError(f"--depth {inert(depth)}: write the share of layers that stay, such as 0.75")
            return Depth(share, (), stack)
        if drop_layers is None:
            return None
        stack, value = _stacked(drop_layers)
        if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", value):
            raise UsageError(f"--drop-layers {inert(drop_layers)}: write the numbers of layers, such as 3,7")
        return Depth(None, tuple(sorted({int(number) for number in value.split(",")})), stack)

    def to_json(self) -> dict[str, Any]:
        """The key of a recipe: `depth` or `drop_layers`, as text."""
        before = "" if self.stack is None else f"{self.stack}:"
        if self.share is not None:
            return {"depth": f"{before}{self.share:g}"}
        return {"drop_layers": before + ",".join(map(str, self.layers))}


def _stacked(text: str) -> tuple[str | None, str]:
    """What stands before and after the colon."""
    stack, separator, value = text.rpartition(":")
    return (stack or None) if separator else None, value.strip()


DEPTH_KEYS = ("depth", "drop_layers")
