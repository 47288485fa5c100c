"""What a torch file has around its weights, carried from source to sink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelzip_cli.containers.tree import Tree, Weights


@dataclass(frozen=True)
class Outer:
    """The `tree` with `Weights` in place of the state dict, the names of that state dict in order, and its ties.

    `ties` maps the later names of a shared tensor to the first.
    """

    tree: Tree
    names: tuple[str, ...]
    ties: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def flat(names: tuple[str, ...], ties: Mapping[str, str] | None = None) -> Outer:
        """A state dict and nothing around it."""
        return Outer(Weights("OrderedDict"), names, ties or {})

    @property
    def holds_values(self) -> bool:
        """Whether there is more than the state dict: counters, settings, a level of nesting with something in it."""
        tree = self.tree
        while isinstance(tree, dict) and len(tree) == 1:
            (tree,) = tree.values()
        return not isinstance(tree, Weights) or bool(tree.others)
