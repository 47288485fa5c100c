"""What a run is asked to do: which tensor gets which scheme, and why the others are kept.

The defaults are in `defaults.py`; `docs/quantize.md` explains them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from modelzip_cli.amounts import DEPTH_KEYS, PRUNING_KEYS, Depth, Pruning, check_sparsity
from modelzip_cli.defaults import (
    DEFAULTS,
    FEW,
    FINE_STEP,
    LAST_CLASSIFIER,
    LEAST_WEIGHTS,
    ROUTER,
    SCALE_SUFFIXES,
    Default,
)
from modelzip_cli.errors import NoTensorMatches, UsageError, inert
from modelzip_cli.layouts import LAYOUTS
from modelzip_cli.schemes import KEEP, parse_scheme
from modelzip_cli.schemes.base import Scheme
from modelzip_cli.schemes.ecq import Ecq
from modelzip_cli.schemes.lossless import Lossless
from modelzip_cli.tensors import TensorSpec

KEYS = ("scheme", "layout", "only", "skip", "set", "keep_extras", "allow_nonfinite", "key", "coder")


@dataclass(frozen=True)
class Rule:
    """Tensors that `match` get `scheme`, whatever the defaults say; vectors and small ones only by their full name.

    Or, where weights are pruned, `amount` says which share of theirs.
    """

    match: str
    scheme: str = KEEP
    amount: float | None = None

    @property
    def value(self) -> str:
        """What stands behind the `=` of --set."""
        return self.scheme if self.amount is None else f"{self.amount:g}"

    def to_json(self) -> dict[str, Any]:
        """The rule as JSON values."""
        return {"match": self.match} | ({"scheme": self.scheme} if self.amount is None else {"amount": self.amount})


@dataclass(frozen=True)
class Goal:
    """What `ecq` is to meet: `ratio` (source over output), `target_size` (bytes), `bpw` (bits a treated weight), none
    of them to be passed; or `min_sqnr` (dB over all treated weights) to be reached."""

    kind: str
    value: float

    def __post_init__(self) -> None:
        """Raises UsageError for a value that makes no sense."""
        if self.kind not in GOALS:
            raise UsageError(f"no goal {inert(self.kind)!r}")
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)) or not 0 < self.value < 1e18:
            raise UsageError(f"--{self.kind.replace('_', '-')} {self.value}: not a number above 0")


GOALS = ("ratio", "target_size", "bpw", "min_sqnr")
CODERS = ("auto", "bitpack", "rans")


@dataclass(frozen=True)
class Decision:
    """What one tensor gets: a scheme, or None and the reason why it is kept; whether it is pruned, and `amount`, where
    that is a share of its own."""

    scheme: Scheme | None
    reason: str
    pruned: bool = False
    amount: float | None = None


@dataclass(frozen=True)
class Recipe:
    """All that a run was asked to do; embedded in every native output. Immutable; `str` of schemes is canonical."""

    scheme: str = "int8"
    layout: str = "native"
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    keep_extras: bool = False
    allow_nonfinite: bool = False
    key: str | None = None
    coder: str = "auto"
    goal: Goal | None = None
    pruning: Pruning | None = None
    depth: Depth | None = None

    def __post_init__(self) -> None:
        """Put scheme names into canonical form. Raises UnknownScheme and BadOption for names that are none."""
        if self.layout not in LAYOUTS:
            raise UsageError(f"no layout {self.layout!r}; there are {', '.join(LAYOUTS)}")
        if self.coder not in CODERS:
            raise UsageError(f"no coder {inert(self.coder)!r}; there are {', '.join(CODERS)}")
        object.__setattr__(self, "scheme", _canonical(self.scheme))
        object.__setattr__(self, "rules", tuple(replace(rule, scheme=_canonical(rule.scheme)) for rule in self.rules))
        for pattern in (*self.only, *self.skip, *(rule.match for rule in self.rules)):
            _check_pattern(pattern)
        for rule in self.rules:
            if rule.amount is not None:
                if self.pruning is None:
                    raise UsageError(
                        f"--set {inert(rule.match)}={rule.value}: an amount is for prune; here give a scheme"
                    )
                check_sparsity(rule.amount, f"--set {inert(rule.match)}")
        schemes = [parse_scheme(name) for name in (self.scheme, *(rule.scheme for rule in self.rules))]
        lossy = next((scheme for scheme in schemes if scheme and not scheme.has_zero), None)
        if self.pruning and lossy:
            raise UsageError(f"{lossy} has no code for zero: what is pruned would come back; take another scheme")
        if self.pruning and self.goal and self.goal.kind == "min_sqnr":
            raise UsageError("--min-sqnr counts what is pruned as error: give a step, as in ecq-s0.15, or another goal")
        searched = [scheme for scheme in schemes if isinstance(scheme, Ecq)]
        if any(scheme.columns for scheme in searched):
            raise UsageError("ecq has steps of columns where --statistics tell them: leave -columns away")
        if self.coder == "bitpack" and any(scheme and scheme.levels is None for scheme in schemes):
            raise UsageError("ecq and lossless need entropy coding: leave --coder away")
        if self.layout == "dense" and any(scheme and scheme.raw for scheme in schemes):
            raise UsageError("lossless has no dense layout: the same values in the same dtype are the source itself")
        if self.goal is None and any(scheme.step is None for scheme in searched):
            raise UsageError("ecq needs to know how fine: --bpw 3.5, --min-sqnr 20 or a step, as in ecq-s0.15")
        if self.goal is not None and not any(scheme.step is None for scheme in searched):
            raise UsageError(f"--{self.goal.kind.replace('_', '-')} is for ecq without a step: --scheme ecq")

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON values, also what a TOML recipe holds; only what differs from the defaults."""
        values: dict[str, Any] = {"scheme": self.scheme, "layout": self.layout}
        for name in ("only", "skip"):
            if getattr(self, name):
                values[name] = [*getattr(self, name)]
        if self.rules:
            values["set"] = [rule.to_json() for rule in self.rules]
        for name in ("keep_extras", "allow_nonfinite", "key"):
            if getattr(self, name):
                values[name] = getattr(self, name)
        if self.coder != "auto":
            values["coder"] = self.coder
        if self.goal:
            values[self.goal.kind] = self.goal.value
        values |= self.pruning.to_json() if self.pruning else {}
        return values | (self.depth.to_json() if self.depth else {})

    @staticmethod
    def from_json(values: Mapping[str, Any], label: str) -> Recipe:
        """Read what `to_json` wrote. Raises UsageError naming `label` for unknown keys and wrong types."""
        try:
            unknown = set(values) - {*KEYS, *GOALS, *PRUNING_KEYS, *DEPTH_KEYS}
            goals = [Goal(kind, values[kind]) for kind in GOALS if kind in values]
            if len(goals) > 1:
                raise UsageError(f"{label}: {goals[0].kind} and {goals[1].kind} are two goals; give one")
            if unknown:
                raise UsageError(f"{label}: unknown key {inert(min(unknown))!r}")
            rules = [_rule(rule) for rule in _list(values.get("set", []))]
            return Recipe(
                scheme=_text(values.get("scheme", "int8")),
                layout=_text(values.get("layout", "native")),
                only=tuple(_text(pattern) for pattern in _list(values.get("only", []))),
                skip=tuple(_text(pattern) for pattern in _list(values.get("skip", []))),
                rules=tuple(rules),
                keep_extras=_flag(values.get("keep_extras", False)),
                allow_nonfinite=_flag(values.get("allow_nonfinite", False)),
                key=_text(values["key"]) if "key" in values else None,
                coder=_text(values.get("coder", "auto")),
                goal=goals[0] if goals else None,
                pruning=Pruning.from_json(values),
                depth=Depth.of(*(_text(values[key]) if key in values else None for key in DEPTH_KEYS)),
            )
        except (TypeError, KeyError, ValueError) as error:
            raise UsageError(f"{label}: not a recipe: {inert(str(error))}") from None

    def decide(self, specs: Mapping[str, TensorSpec], ties: Mapping[str, str]) -> dict[str, Decision]:
        """Decide for every tensor that is no later name of a tie; among the names of a tie the strictest rule holds."""
        context = _Context(self, specs)
        names: dict[str, list[str]] = {name: [name] for name in specs if name not in ties}
        for name, owner in ties.items():
            names[owner].append(name)
        return {
            owner: min((context.decide(name) for name in group), key=lambda each: _strictness(each, specs[owner]))
            for owner, group in names.items()
        }

    def is_named(self, name: str, specs: Mapping[str, TensorSpec]) -> bool:
        """Whether the default rules speak of a tensor: an embedding, a classifier, a table."""
        return _Context(self, specs).default(name) is not None

    def check_patterns(self, names: Sequence[str], label: str) -> None:
        """Raise NoTensorMatches for a pattern that selects none of `names`."""
        patterns = [("--only", pattern) for pattern in self.only] + [("--skip", pattern) for pattern in self.skip]
        for option, pattern in patterns + [("--set", rule.match) for rule in self.rules]:
            if not any(matches(pattern, name) for name in names):
                raise NoTensorMatches(label, option, pattern, names)


class _Context:
    """The rules of a recipe applied to one checkpoint."""

    def __init__(self, recipe: Recipe, specs: Mapping[str, TensorSpec]) -> None:
        self.recipe, self.specs = recipe, specs
        self.scheme = parse_scheme(recipe.scheme)
        self.schemes = {rule.scheme: parse_scheme(rule.scheme) for rule in recipe.rules}
        numbers = [int(found[1]) for name in specs if (found := LAST_CLASSIFIER.fullmatch(name))]
        self.searches = self.scheme is not None and self.scheme.levels is None
        self.last_classifier = max(numbers, default=None)
        self.spares = self.searches and self.few_are_named()

    def few_are_named(self) -> bool:
        """Whether a step of their own for embeddings, classifiers and positional tables costs the others little.

        `--min-sqnr` is about weights alone, whatever they do: the same step for all is smallest.
        """
        if self.recipe.goal and self.recipe.goal.kind == "min_sqnr":
            return False
        treated = [spec for spec in self.specs.values() if spec.dtype.kind == "float" and not self.structural(spec)]
        named = [spec for spec in treated if (rule := self.default(spec.name)) and rule.reason != ROUTER]
        return FEW * sum(spec.size for spec in named) <= sum(spec.size for spec in treated)

    def decide(self, name: str) -> Decision:
        """Apply the first rule that speaks of `name`."""
        found = self.scheme_of(name)
        pruned, amount = self.pruning_of(name)
        if pruned:
            scheme, reason = found.scheme, "" if found.scheme is None else found.reason
            if amount is not None:
                reason = f"--set {amount.match}"
            if scheme is None and self.recipe.layout == "native" and isinstance(self.scheme, Lossless):
                scheme = self.scheme
            return Decision(scheme, reason, True, amount.amount if amount else None)
        if self.recipe.pruning and found.reason in ("", KEEP) and (found.scheme is None or found.scheme.raw):
            named = self.default(name)  # stored like the others, but not treated
            found = Decision(None, f"{named.reason}: default" if named else KEEP)
        whole = self.specs[name].size and self.recipe.layout == "native" and self.scheme and self.scheme.levels is None
        if whole and found.scheme is None and found.reason and not found.reason.startswith("--"):
            same = isinstance(self.scheme, Lossless) and self.recipe.pruning is None
            return Decision(Lossless(), "" if same else found.reason)
        return found

    def pruning_of(self, name: str) -> tuple[bool, Rule | None]:
        """Whether a tensor is pruned, and the rule that says how much of it, if there is one."""
        spec = self.specs[name]
        if self.recipe.pruning is None or spec.dtype.kind != "float" or not spec.size:
            return False, None
        rule = self.rule_of(name)
        if rule is not None and rule.amount is not None:
            return True, rule
        if rule is not None and rule.scheme == KEEP:
            return False, None
        return self.structural(spec) is None and self.is_selected(name) and self.default(name) is None, None

    def is_selected(self, name: str) -> bool:
        """Whether --only and --skip leave a tensor to be treated."""
        only, skip = self.recipe.only, self.recipe.skip
        return (not only or any(matches(each, name) for each in only)) and not any(matches(each, name) for each in skip)

    def rule_of(self, name: str) -> Rule | None:
        """The last rule about a tensor."""
        structural = self.structural(self.specs[name])
        for rule in reversed(self.recipe.rules):
            if matches(rule.match, name) and (structural is None or is_name(rule.match)):
                return rule
        return None

    def scheme_of(self, name: str) -> Decision:
        """What the rules say of a tensor, when nothing is known of how the others are stored."""
        spec = self.specs[name]
        if spec.dtype.kind != "float":
            return Decision(None, {"small-float": "8-bit float", "bool": "boolean"}.get(spec.dtype.kind, spec.dtype.id))
        structural, rule = self.structural(spec), self.rule_of(name)
        if rule is not None and rule.amount is None:
            return self.if_smaller(spec, self.schemes[rule.scheme], f"--set {rule.match}")
        if self.recipe.only and not any(matches(pattern, name) for pattern in self.recipe.only):
            return Decision(None, "not in --only")
        if any(matches(pattern, name) for pattern in self.recipe.skip):
            return Decision(None, "--skip")
        if structural is not None:
            return Decision(None, structural)
        default = self.default(name)
        if default and default.scheme == KEEP and not (self.searches and default.reason != ROUTER):
            return Decision(None, f"{default.reason}: default")
        if default and self.spares and isinstance(self.scheme, Ecq):
            fine = replace(self.scheme, step=min(self.scheme.step or FINE_STEP, FINE_STEP))
            return self.if_smaller(spec, fine, f"{default.reason}: default")
        if default and default.scheme != KEEP and self.scheme and self.scheme.bits < 8:
            return self.if_smaller(spec, parse_scheme(default.scheme), f"{default.reason}: default")
        return self.if_smaller(spec, self.scheme, "")

    def structural(self, spec: TensorSpec) -> str | None:
        """Why a tensor is kept for what it is, not for what it is called; None when it is not."""
        if len(spec.shape) < 2:
            return f"{len(spec.shape)}-D"
        if spec.size < LEAST_WEIGHTS:
            return f"under {LEAST_WEIGHTS:,} weights"
        return "quantized by another tool" if self.has_scale(spec.name) else None

    def default(self, name: str) -> Default | None:
        """The default rule about `name`, if there is one."""
        for rule in DEFAULTS:
            if rule.matches(name):
                return rule
        found = LAST_CLASSIFIER.fullmatch(name)
        if found and int(found[1]) == self.last_classifier:
            return next(rule for rule in DEFAULTS if rule.reason == "classifier")
        return None

    def has_scale(self, name: str) -> bool:
        """Whether another tool stored a scale beside this tensor, or this tensor is such a scale."""
        if any(name + suffix in self.specs for suffix in SCALE_SUFFIXES):
            return True
        return any(name.endswith(suffix) and name[: -len(suffix)] in self.specs for suffix in SCALE_SUFFIXES)

    def if_smaller(self, spec: TensorSpec, scheme: Scheme | None, reason: str) -> Decision:
        """The scheme, unless the tensor would not get smaller by it. A dense int tensor has its old size: no test."""
        if scheme is None:
            return Decision(None, reason or KEEP)
        if scheme.raw:
            return Decision(scheme, "")
        after = scheme.stored_bytes(*spec.matrix)
        if self.recipe.layout == "dense" and scheme.plain is None:
            return Decision(scheme, reason)
        return Decision(scheme, reason) if after < spec.bytes else Decision(None, "would not get smaller")


def _strictness(decision: Decision, spec: TensorSpec) -> tuple[bool, float]:
    """Sort key: what is not pruned first; of these what is kept, then the scheme that takes the most bytes."""
    if decision.scheme is None or decision.scheme.raw:
        return decision.pruned, -float("inf") if decision.scheme is None else -1e300
    return decision.pruned, -decision.scheme.stored_bytes(*spec.matrix)


def matches(pattern: str, name: str) -> bool:
    """Say whether `pattern` selects tensor `name`: a glob for the name, with or without its `.weight`, or `re:` and a
    regular expression for the whole name."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".weight"), pattern)


def is_name(pattern: str) -> bool:
    """Whether a pattern can match one name only. `--set 'layers.*=int4'` means matrices, not the norms among them."""
    return not pattern.startswith("re:") and not any(special in pattern for special in "*?[")


def _check_pattern(pattern: str) -> None:
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            raise UsageError(f"{inert(pattern)!r} is not a regular expression: {error}") from None


def _canonical(name: str) -> str:
    scheme = parse_scheme(name)
    return KEEP if scheme is None else str(scheme)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _rule(value: Any) -> Rule:
    if not isinstance(value, dict) or set(value) not in ({"match", "scheme"}, {"match", "amount"}):
        raise ValueError("an entry of set is not match and scheme, or match and amount")
    if "scheme" in value:
        return Rule(_text(value["match"]), _text(value["scheme"]))
    amount = value["amount"]
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise ValueError("an amount is not a number")
    return Rule(_text(value["match"]), amount=amount)


def parse_rule(text: str) -> Rule:
    """Read `GLOB=SCHEME` or `GLOB=AMOUNT`. Raises UsageError."""
    match, separator, value = text.rpartition("=")
    if not separator or not match:
        raise UsageError(f"--set {inert(text)!r}: write GLOB=SCHEME, such as --set 'lm_head*=int8'")
    if re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", value):
        try:
            return Rule(match, amount=float(value))
        except ValueError:
            pass
    return Rule(match, value)
