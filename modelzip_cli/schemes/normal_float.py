"""NormalFloat: 16 levels at normal quantiles, times a scale a group.

Source: Dettmers et al., QLoRA, 2023, arXiv:2305.14314, section 3 and appendix E, which lists the levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from modelzip_cli.errors import BadOption
from modelzip_cli.kernels.rounding import extremes
from modelzip_cli.kernels.tables import look_up, midpoints, nearest
from modelzip_cli.schemes.base import Codes, Params, ParamSpec, Scheme
from modelzip_cli.schemes.granularity import Granularity, take_granularity

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
BORDERS = midpoints(LEVELS)
WIDEST = 0.1525  # half the distance between the two lowest levels, and what rounding the scale to bf16 may add


@dataclass(frozen=True)
class Nf4(Scheme):
    """`w ~ level[code] * scale`, 16 levels from -1 to 1, scale = max |w| of the group.

    Codes are the nearest level. Granularity: `-g64` (default) and other group sizes; scale bf16 [rows, groups]. A zero
    stays exactly zero. |w - decode(encode(w))| <= 0.1525 |scale| + 2^-126.
    """

    id: ClassVar[str] = "nf4"
    feeds_back: ClassVar[bool] = True
    example: ClassVar[str] = "nf4-g128"
    granularity: Granularity = Granularity(64)

    @classmethod
    def parse(cls, width: int | None, options: Sequence[str]) -> Nf4:
        granularity, rest = take_granularity(options)
        if rest or (granularity is not None and granularity.group_size < 1):
            raise BadOption(f"nf4 has no option {(rest or [str(granularity)])[0]!r}; it has -gN")
        return cls(granularity or Granularity(64))

    def __str__(self) -> str:
        return "nf4" if self.granularity == Granularity(64) else f"nf4-{self.granularity}"

    @property
    def bits(self) -> int:
        return 4

    @property
    def levels(self) -> int:
        return len(LEVELS)

    def param_specs(self, columns: int) -> dict[str, ParamSpec]:
        return {"scale": self.granularity.param_spec(columns)}

    def fit_rows(self, block: Block, tensor: Params) -> Params:
        """The largest magnitude of each group of `block`, rounded to bf16: float32 [rows, groups]."""
        if not block.size:
            columns = self.granularity.param_spec(block.shape[1]).columns
            return {"scale": np.zeros((len(block), columns), np.float32)}
        lowest, highest = extremes(block, self.granularity.span)
        return {"scale": self.granularity.rounded(np.maximum(-lowest, highest), np.float32(1))}

    def at(self, params: Params, column: int) -> Params:
        return self.granularity.at(params, column)

    def encode(self, block: Block, params: Params, prices: Any = None) -> Codes:
        return nearest(block, params["scale"], BORDERS, self.granularity.span)

    def decode(self, codes: Codes, params: Params) -> Block:
        return look_up(codes, LEVELS, params["scale"], self.granularity.span)

    def bound(self, params: Params) -> Block | None:
        return np.abs(params["scale"]) * np.float32(WIDEST) + np.float32(2.0**-126)
