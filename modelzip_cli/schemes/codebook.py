"""Codebook: the best levels for the weights of a tensor, found by k-means.

Source: Han, Mao, Dally, Deep Compression, 2016, arXiv:1510.00149, section 3 (weight sharing by k-means); Wang, Song,
Ckmeans.1d.dp, The R Journal 3(2), 2011 (on a line, dynamic programming finds the best of all k-means).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.errors import BadOption
from modelzip_cli.kernels.histogram import bin_edges, empty_histogram, tally
from modelzip_cli.kernels.partition import best_runs
from modelzip_cli.kernels.tables import look_up, midpoints, nearest
from modelzip_cli.schemes.base import Codes, Params, ParamSpec, Scheme
from modelzip_cli.schemes.granularity import WHOLE_ROW
from modelzip_cli.tensors import F32

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block


@dataclass(frozen=True)
class Codebook(Scheme):
    """`w ~ codebook[code]`, 2^bits levels for the tensor, ascending, float32 [1, 2^bits].

    The weights are counted in 65,536 bins (sign, exponent, 7 bits of mantissa), and the bins are cut into runs of least
    squared error. A level is the mean of its weights, except that one whose weights are for the most part exact zeros
    is 0. Codes are the nearest level. With no more different bins than levels, every bin has
    its own. Gaussian weights keep 20.2 dB at 4 bits, 9.3 dB at 2. Raises BadOption for bits outside 1..8.
    """

    id: ClassVar[str] = "codebook"
    feeds_back: ClassVar[bool] = True
    example: ClassVar[str] = "codebook4"
    has_zero: ClassVar[bool] = False
    widths: ClassVar[range] = range(1, 9)
    bits: int = 4

    def __post_init__(self) -> None:
        if self.bits not in self.widths:
            raise BadOption(f"codebook{self.bits}: bits must be between 1 and 8")

    @classmethod
    def parse(cls, width: int | None, options: Sequence[str]) -> Codebook:
        if options:
            raise BadOption(f"codebook has no option {options[0]!r}; write its bits, as in codebook4")
        return cls(4 if width is None else width)

    def __str__(self) -> str:
        return f"codebook{self.bits}"

    @property
    def levels(self) -> int:
        return 1 << self.bits

    @property
    def fits_tensor(self) -> bool:
        return True

    def param_specs(self, columns: int) -> dict[str, ParamSpec]:
        return {"codebook": ParamSpec(F32, self.levels, per_row=False)}

    def fit_tensor(self, blocks: Iterable[Block]) -> Params:
        """The levels, float32 [1, 2^bits], ascending."""
        counts, sums = empty_histogram()
        zeros = 0
        for block in blocks:
            counts, sums = tally(block, counts, sums)
            zeros += block.size - int(np.count_nonzero(block))
        (places,) = np.nonzero(counts)
        with np.errstate(invalid="ignore"):
            places = places[
                np.isfinite(bin_edges(places))
            ]  # the engine refuses the others, by name, when it meets them
        if not len(places):
            return {"codebook": np.zeros((1, self.levels), np.float32)}
        found = _k_means(counts[places], sums[places], zeros, self.levels)
        levels = np.pad(found, (0, self.levels - len(found)), mode="edge")
        return {"codebook": levels.reshape(1, -1)}

    def encode(self, block: Block, params: Params, prices: Any = None) -> Codes:
        """Codes uint8 [rows, columns]; a weight halfway between two levels gets the lower one."""
        one = np.ones((len(block), 1), np.float32)
        return nearest(block, one, midpoints(params["codebook"][0]), WHOLE_ROW)

    def decode(self, codes: Codes, params: Params) -> Block:
        return look_up(codes, params["codebook"][0], np.ones((len(codes), 1), np.float32), WHOLE_ROW)


def _k_means(counts: NDArray[np.int64], sums: NDArray[np.float64], zeros: int, levels: int) -> NDArray[np.float32]:
    """At most `levels` ascending levels for bins with `counts` weights that add up to `sums`; `zeros` weights are 0."""
    found = []
    for begin, end in pairwise(best_runs(counts, sums, min(levels, len(counts)))):
        size = int(counts[begin:end].sum())
        is_zero = sums[begin] <= 0 <= sums[end - 1] and 2 * zeros >= size
        found.append(0.0 if is_zero else math.fsum(sums[begin:end]) / size)
    return np.array(found, np.float32)
