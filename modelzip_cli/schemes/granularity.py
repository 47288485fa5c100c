"""How many weights share one scale: a group (`-g64`), a row (`-channel`) or the tensor (`-tensor`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelzip_cli.errors import BadOption
from modelzip_cli.kernels.sums import Sums, fit_sums, magnitude_sums, running_total
from modelzip_cli.kernels.widen import narrow, widen
from modelzip_cli.schemes.base import Params, ParamSpec, group_count
from modelzip_cli.tensors import BF16, F32, DType

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

WHOLE_ROW = 1 << 62  # group size of a scale for the row: longer than any row


@dataclass(frozen=True)
class Granularity:
    """`group_size` weights of a row share a scale; 0: the row does; -1: the tensor does."""

    group_size: int

    def __post_init__(self) -> None:
        if self.group_size < -1:
            raise BadOption(f"group size {self.group_size} is below 1")

    def __str__(self) -> str:
        return {0: "channel", -1: "tensor"}.get(self.group_size, f"g{self.group_size}")

    @property
    def per_tensor(self) -> bool:
        """Whether one scale serves the whole tensor."""
        return self.group_size == -1

    @property
    def span(self) -> int:
        """The group size that kernels are given."""
        return self.group_size if self.group_size > 0 else WHOLE_ROW

    @property
    def scale_dtype(self) -> DType:
        """bf16 for groups (nothing is lost: docs/decisions.md; f16 would overflow), float32 for rows and tensors."""
        return BF16 if self.group_size > 0 else F32

    def at(self, params: Params, column: int) -> Params:
        """The params of the group that a column is in."""
        if self.group_size <= 0:
            return params
        group = column // self.group_size
        return {name: values[:, group : group + 1] for name, values in params.items()}

    def param_spec(self, columns: int, dtype: DType | None = None) -> ParamSpec:
        """How a param with one value a group is stored; `dtype` None: as a scale."""
        return ParamSpec(dtype or self.scale_dtype, group_count(columns, self.span), not self.per_tensor)

    def rounded(self, scale: Block, top: Block | np.float32) -> Block:
        """Round `scale` to its stored dtype such that `scale * top` stays finite; a step toward zero where needed."""
        with np.errstate(over="ignore"):
            is_far_from_the_end = np.abs(scale).max(initial=0) * np.max(top, initial=0) < FLOAT32_MAX / 2
        if not is_far_from_the_end:
            limit = np.nextafter(FLOAT32_MAX / np.maximum(top, np.float32(1)), np.float32(0))
            scale = scale.clip(-limit, limit)
        if self.scale_dtype == F32:
            return scale
        bits = narrow(scale, BF16)
        if not is_far_from_the_end:
            with np.errstate(over="ignore"):
                too_large = ~np.isfinite(widen(bits, BF16) * top)
            bits[too_large] -= np.uint16(1)
        return widen(bits, BF16)


FLOAT32_MAX = np.finfo(np.float32).max
GROUP = re.compile(r"g([1-9][0-9]{0,8})")


def take_granularity(options: Sequence[str]) -> tuple[Granularity | None, list[str]]:
    """Split the granularity off the options of a scheme name; None when they name none.

    Raises BadOption when two are named.
    """
    named = [option for option in options if option in ("channel", "tensor") or GROUP.fullmatch(option)]
    if len(named) > 1:
        raise BadOption(f"{named[0]!r} and {named[1]!r} exclude each other")
    rest = [option for option in options if option not in named]
    if not named:
        return None, rest
    found = {"channel": 0, "tensor": -1}.get(named[0])
    return Granularity(int(named[0][1:]) if found is None else found), rest


def broadcast(values: Block, rows: int) -> Block:
    """Params as kernels take them, one row for every row of a block; those of a tensor have one for all."""
    return values if len(values) == rows else np.repeat(values, rows, axis=0)


def magnitudes(blocks: Iterable[Block], granularity: Granularity) -> tuple[Sums, Sums]:
    """Sum of |w| and number of weights of each group, float64 [rows, groups]; of the whole tensor, [1, 1]."""

    def count(block: Block) -> Sums:
        columns, span = block.shape[1], min(granularity.span, block.shape[1])
        sizes = np.full(group_count(columns, span), float(span))
        sizes[-1] = columns - span * (len(sizes) - 1)
        return np.tile(sizes, (len(block), 1))

    return _over(blocks, granularity, lambda block: (magnitude_sums(block, granularity.span), count(block)))


def tail_sums(blocks: Iterable[Block], threshold: Sums, granularity: Granularity) -> tuple[Sums, Sums]:
    """The same of the weights with |w| above the `threshold` of their group, float64 [rows, groups] or [1, 1]."""
    with np.errstate(over="ignore"):
        double = (2 * threshold).astype(np.float32).clip(max=FLOAT32_MAX)
    double[double == 0] = 1  # a group of zeros

    def sums(block: Block) -> tuple[Sums, Sums]:  # round(w / 2t), cut to -1, 0, 1, is the sign where |w| > t
        divisor = broadcast(double, len(block))
        return fit_sums(np.ascontiguousarray(block), divisor, np.ones_like(divisor), 2, granularity.span)

    return _over(blocks, granularity, sums)


def _over(
    blocks: Iterable[Block], granularity: Granularity, sums: Callable[[Block], tuple[Sums, Sums]]
) -> tuple[Sums, Sums]:
    """Sums of the groups of one block or, for one scale a tensor, of all blocks added up in order."""
    totals = np.zeros((2, 1, 1))
    for block in blocks:
        if block.size:
            found = np.array(sums(block))
        else:
            found = np.zeros((2, len(block), group_count(block.shape[1], granularity.span)))
        totals = running_total(totals, found) if granularity.per_tensor else found
    return totals[0], totals[1]
