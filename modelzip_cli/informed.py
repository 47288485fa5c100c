"""What statistics of the model change in a plan: feedback, and steps of columns. Some use has to be made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from modelzip_cli.criteria import CRITERIA, criterion
from modelzip_cli.errors import UsageError
from modelzip_cli.pruning import Masks
from modelzip_cli.recipe import Recipe
from modelzip_cli.sampling import Treated
from modelzip_cli.schemes.base import Scheme
from modelzip_cli.schemes.ecq import Ecq, along_rows, column_steps
from modelzip_cli.statistics import HESSIAN, SECOND_MOMENT, SENSITIVITY
from modelzip_cli.tensors import Statistics, TensorSpec


def feeds_back(spec: TensorSpec, scheme: Scheme, masks: Masks, statistics: Statistics | None) -> bool:
    """Whether a tensor is rounded with feedback: one whose Hessian is known, but for those that are pruned."""
    known = statistics is not None and spec.name not in masks and scheme.feeds_back
    return known and statistics is not None and statistics.has(spec, HESSIAN)


def for_statistics(spec: TensorSpec, scheme: Ecq, masks: Masks, statistics: Statistics | None) -> Treated:
    """A tensor of `ecq` as what is known of its inputs has it stored: with feedback, or with steps for its columns.

    Feedback takes a column at a time, so paths cannot run along the rows of any slab: the plain grid has none.
    """
    if feeds_back(spec, scheme, masks, statistics):
        turned = any(along_rows(last - first, spec.matrix[1]) for first, last in spec.row_slabs(tall=True))
        return spec, replace(scheme, states=1) if turned else scheme, None
    if statistics is None or not statistics.has(spec, SECOND_MOMENT):
        return spec, scheme, None
    return spec, replace(scheme, columns=True), column_steps(statistics.read(spec, SECOND_MOMENT))


def by_sensitivity(recipe: Recipe) -> bool:
    """Whether steps follow the sensitivities of tensors: where bytes are to be spent well, not where weights are to
    keep their SQNR."""
    return recipe.goal is not None and recipe.goal.kind != "min_sqnr"


def refuse_useless(
    statistics: Statistics, recipe: Recipe, schemes: Iterable[Scheme | None], sampled: Iterable[TensorSpec], fed: bool
) -> None:
    """Raise UsageError where `recipe` makes no use of any of the `statistics`.

    `schemes`: of all tensors; `sampled`: tensors whose steps are searched for; `fed`: whether some have feedback, or
    steps for their columns.
    """
    pruned = recipe.pruning is not None and recipe.pruning.by.needs is not None
    weighted = by_sensitivity(recipe) and any(statistics.has(spec, SENSITIVITY) for spec in sampled)
    if fed or pruned or weighted:
        return
    wanted = [HESSIAN] if any(scheme and scheme.feeds_back for scheme in schemes) else []
    wanted += [SENSITIVITY] if by_sensitivity(recipe) else []
    held = f"{statistics.label}: holds {', '.join(statistics.kinds)}"
    if recipe.pruning is not None:
        informed = ", ".join(name for name in CRITERIA if criterion(name).needs)
        raise UsageError(f"{held}; --criterion {recipe.pruning.criterion} asks for none: {informed} do")
    if not wanted:
        raise UsageError(f"{held}; none of the schemes asked for rounds with feedback: int4-g64 and ecq do")
    raise UsageError(f"{held}, but no {' or '.join(wanted)} of these weights; --save-statistics writes it with --data")
