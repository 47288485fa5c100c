"""Fixed point: every weight is a whole multiple of one power of two.

Source: Lin, Talathi, Annapureddy, Fixed Point Quantization of Deep Convolutional Networks, 2016, arXiv:1511.06393.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.errors import BadOption
from modelzip_cli.kernels.rounding import dequantize, extremes, quantize
from modelzip_cli.kernels.sums import fit_sums, running_total
from modelzip_cli.schemes.base import Codes, Params, ParamSpec, Scheme
from modelzip_cli.schemes.granularity import WHOLE_ROW
from modelzip_cli.tensors import I16

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

Exponents = NDArray[np.int16]

SMALLEST_EXPONENT = 126  # 2^-126 is the smallest normal float32: what lies below it is zero to any network
TRIALS = 5  # n of least error is searched from the n that clips nothing upward: each step halves the range


@dataclass(frozen=True)
class Fixed(Scheme):
    """`w ~ q * 2^-n`, q a signed integer of `bits` bits, one n for the tensor (`-channel`: one for each row).

    Codes are q + 2^(bits-1) - 1 with q in +-(2^(bits-1) - 1). Params: `fraction_bits` = n, int16 [1, 1] or [rows, 1],
    may be negative. Default: the largest n at which the largest |w| is in range, so that |w - decode(encode(w))| <=
    2^-n, in units of the weight. `-mse`: of that n and the next 4, which clip the tails, the one of least
    squared error.
    `-n7`: n is given; weights out of range are clipped. A zero stays exactly zero.
    Raises BadOption for bits outside 4..16, n outside -125..126, and -n together with -mse or -channel.
    """

    id: ClassVar[str] = "fixed"
    feeds_back: ClassVar[bool] = True
    example: ClassVar[str] = "fixed8-mse"
    widths: ClassVar[range] = range(4, 17)
    bits: int = 8
    channel: bool = False
    mse: bool = False
    n: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in self.widths:
            raise BadOption(f"fixed{self.bits}: bits must be between 4 and 16")
        if self.n is not None and not -125 <= self.n <= SMALLEST_EXPONENT:
            raise BadOption(f"fixed{self.bits}-n{self.n}: n must be between -125 and {SMALLEST_EXPONENT}")
        if self.n is not None and (self.mse or self.channel):
            raise BadOption(f"fixed{self.bits}: -n{self.n} gives n for the tensor; -mse and -channel choose it")

    @classmethod
    def parse(cls, width: int | None, options: Sequence[str]) -> Fixed:
        bits, n = 8 if width is None else width, None
        flags = {"channel": "channel" in options, "mse": "mse" in options}
        for option in options:
            if re.fullmatch(r"n-?[0-9]{1,4}", option):
                n = int(option[1:])
            elif option not in flags:
                raise BadOption(f"fixed{bits} has no option {option!r}; it has -mse, -channel, -nN")
        return cls(bits, flags["channel"], flags["mse"], n)

    def __str__(self) -> str:
        given = [] if self.n is None else [f"n{self.n}"]
        return "-".join([f"fixed{self.bits}", *["channel"] * self.channel, *["mse"] * self.mse, *given])

    @property
    def levels(self) -> int:
        return 2 * self._top + 1

    @property
    def _top(self) -> int:
        return (1 << self.bits - 1) - 1  # symmetric: -2^(bits-1) could decode to -infinity

    @property
    def fits_tensor(self) -> bool:
        return not self.channel and self.n is None

    def param_specs(self, columns: int) -> dict[str, ParamSpec]:
        return {"fraction_bits": ParamSpec(I16, 1, self.channel)}

    def fit_tensor(self, blocks: Iterable[Block]) -> Params:
        """n of the tensor, int16 [1, 1], from all `blocks`."""
        if self.channel:
            return {}
        if self.n is not None:
            return {"fraction_bits": np.array([[self.n]], np.int16)}
        largest = max((float(self._largest(block).max(initial=0)) for block in blocks), default=0.0)
        return {"fraction_bits": self._best(blocks, self._covering(np.array([[largest]], np.float32)))}

    def fit_rows(self, block: Block, tensor: Params) -> Params:
        """With `-channel`, n of each row, int16 [rows, 1]."""
        if not self.channel:
            return {}
        return {"fraction_bits": self._best([block], self._covering(self._largest(block)))}

    def encode(self, block: Block, params: Params, prices: Any = None) -> Codes:
        """Quantize, ties to even; codes uint8 up to 8 bits, uint16 above."""
        scale, zero_point = self._grid(params["fraction_bits"], block.shape[0])
        return quantize(block, scale, zero_point, self.levels - 1, WHOLE_ROW)

    def decode(self, codes: Codes, params: Params) -> Block:
        """Return float32 weights. Exact: the only rounding is in `encode`."""
        scale, zero_point = self._grid(params["fraction_bits"], codes.shape[0])
        return dequantize(codes, scale, zero_point, WHOLE_ROW)

    def bound(self, params: Params) -> Block | None:
        if self.mse or self.n is not None:
            return None
        return np.ldexp(np.float32(1), -params["fraction_bits"].astype(np.int32))

    def check(self, params: Params) -> str | None:
        n = params["fraction_bits"]
        return "fraction_bits is out of range" if ((n < -125) | (n > SMALLEST_EXPONENT)).any() else None

    @staticmethod
    def _largest(block: Block) -> Block:
        """The largest |w| of each row, [rows, 1]."""
        if not block.size:
            return np.zeros((block.shape[0], 1), np.float32)
        lowest, highest = extremes(block, WHOLE_ROW)
        return np.maximum(-lowest, highest)

    def _covering(self, largest: Block) -> Exponents:
        """The largest n at which `largest` is in range; largest = m * 2^e with 0.5 <= m < 1."""
        exponent = np.frexp(largest)[1].astype(np.int64)
        n = np.where(largest > 0, self.bits - 1 - exponent, 0)
        return np.minimum(n, SMALLEST_EXPONENT).astype(np.int16)

    def _best(self, blocks: Iterable[Block], covering: Exponents) -> Exponents:
        """With `-mse`, the n of least squared error; the smaller one when two are equal."""
        if not self.mse:
            return covering
        best, least = covering, np.full(covering.shape, np.inf)
        for step in range(TRIALS):
            n = np.minimum(covering + step, SMALLEST_EXPONENT).astype(np.int16)
            totals = np.zeros((2, *n.shape))
            for block in blocks:
                if not block.size:
                    continue
                scale, zero_point = self._grid(n, block.shape[0])
                sums = np.array(fit_sums(block, scale, zero_point, self.levels - 1, WHOLE_ROW))
                totals = sums if self.channel else running_total(totals, sums)
            size = np.ldexp(1.0, -n.astype(np.int32))
            error = size * size * totals[1] - 2 * size * totals[0]  # the squared error less the sum of w*w
            better = error < least
            best, least = np.where(better, n, best), np.where(better, error, least)
        return best

    def _grid(self, fraction_bits: Exponents, rows: int) -> tuple[Block, Block]:
        """Scale 2^-n and zero point as kernels take them, float32 [rows, 1]."""
        scale = np.ldexp(np.float32(1), -fraction_bits.astype(np.int32))
        return (
            np.ascontiguousarray(np.broadcast_to(scale, (rows, 1))),
            np.full((rows, 1), self._top, np.float32),
        )
