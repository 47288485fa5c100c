"""The default rules: which tensors are recognised by name, and what they get."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from textwrap import wrap

from modelzip_cli.schemes import KEEP

LEAST_WEIGHTS = 4096
SCALE_SUFFIXES = (".scale", "_scale", "_scale_inv")
CAREFUL = "int8"  # what embeddings and classifiers get when the others get fewer than 8 bits
FINE_STEP = 0.02  # their step, and that of positional tables, when the others get `ecq`: some 7 bits, 45 dB
FEW = 16  # where they are no more than one of so many weights: larger ones would take the bits of all others


@dataclass(frozen=True)
class Default:
    """A rule on names: `words` are globs for one component of the name; `only_outer`: the module's own last one, and
    not inside a numbered layer."""

    reason: str
    words: tuple[str, ...]
    scheme: str
    only_outer: bool = False

    def matches(self, name: str) -> bool:
        """Say whether the rule is about tensor `name`."""
        parts = name.split(".")
        if not self.only_outer:
            return any(_is_one_of(part, self.words) for part in parts)
        module = parts[:-1] if len(parts) > 1 else parts
        return _is_one_of(module[-1], self.words) and not any(part.isdigit() for part in module)


@lru_cache(maxsize=4096)  # a model of a thousand layers has few different components
def _is_one_of(component: str, words: tuple[str, ...]) -> bool:
    return any(fnmatchcase(component, word) for word in words)


POSITIONS = (
    "pos",
    "pos_emb*",
    "position*_embed*",
    "embed_positions",
    "wpe",
    "relative_position_*",
    "rel_pos*",
    "relative_attention_bias",
)
ROUTER = "router"
DEFAULTS = (
    Default(ROUTER, ("router", "gate"), KEEP),
    Default("positional table", POSITIONS, KEEP),
    Default("embedding", ("embed*", "*_embeddings", "*_embedding", "wte", "tok"), CAREFUL),
    Default("classifier", ("lm_head", "head", "fc", "score", "logits", "output", "classifier"), CAREFUL, True),
)
LAST_CLASSIFIER = re.compile(r"(?:.*\.)?classifier\.([0-9]{1,9})\.[^.]+")


def describe_defaults() -> Iterable[tuple[str, str, str]]:
    """The keep rules as rows: what it is about, how it is recognised, what happens."""
    yield "element type", "not f64, f32, f16 or bf16", "kept"
    yield "rank", "0 or 1", "kept"
    yield "size", f"under {LEAST_WEIGHTS:,} weights", "kept"
    yield "no gain", "would not get smaller", "kept"
    yield "another tool's", " or ".join(f"NAME{suffix}" for suffix in SCALE_SUFFIXES) + " beside it", "kept"
    for rule in DEFAULTS:
        words = ", ".join(rule.words) + (", the last classifier.N" if rule.reason == "classifier" else "")
        happens = "kept" if rule.scheme == KEEP else f"{rule.scheme} below 8 bits"
        happens += "" if rule.reason == ROUTER else f"; ecq-s{FINE_STEP} where few"
        first, *more = wrap(words, 60)
        yield rule.reason, first, happens
        yield from (("", line, "") for line in more)
