"""Binary: signs times scales.

Source: Rastegari et al., XNOR-Net, 2016, arXiv:1603.05279, section 3.1, equation 6: the scale of least squared error is
the mean absolute value. Two terms: Guo et al., Network Sketching, 2017, arXiv:1706.02021, section 3.1 (each term fits
what the one before left); Xu et al., Alternating Multi-bit Quantization, 2018, arXiv:1802.00150, section 3 (scales and
signs fitted in turn).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from modelzip_cli.errors import BadOption
from modelzip_cli.kernels.rounding import spread
from modelzip_cli.kernels.tables import look_up
from modelzip_cli.schemes.base import Codes, Params, ParamSpec, Scheme
from modelzip_cli.schemes.granularity import (
    Granularity,
    broadcast,
    magnitudes,
    tail_sums,
    take_granularity,
)

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

SIGNS = np.array([-1, 1], np.float32)
STEPS = 4  # of the alternation; further ones gain less than 0.01 dB on Gaussian weights


@dataclass(frozen=True)
class Binary(Scheme):
    """`w ~ scale` where w >= 0, else `-scale`; scale = mean |w| of the row, the group or the tensor.

    Codes are 1 for w >= 0 and 0 below. Params: `scale`. Gaussian weights keep 4.4 dB.
    `-m2`: a sum of two such terms, `w ~ (2 b1 - 1) scale + (2 b0 - 1) scale2`, codes 2 b1 + b0. The first scale begins
    as above; then four times: h and l are the means of the magnitudes above and below scale, scale = (h + l) / 2 and
    scale2 = (h - l) / 2. Gaussian weights keep 9.3 dB.
    Granularity: `-channel` (default): scales float32 [rows, 1]; `-tensor`: float32 [1, 1]; `-g64` and other group
    sizes: bf16 [rows, groups]. Zeros do not survive: there is no code for them.
    """

    id: ClassVar[str] = "binary"
    example: ClassVar[str] = "binary-m2"
    has_zero: ClassVar[bool] = False
    granularity: Granularity = Granularity(0)
    terms: int = 1

    def __post_init__(self) -> None:
        if self.terms not in (1, 2):
            raise BadOption(f"binary-m{self.terms}: there are -m1 and -m2")

    @classmethod
    def parse(cls, width: int | None, options: Sequence[str]) -> Binary:
        granularity, rest = take_granularity(options)
        for option in rest:
            if option not in ("m1", "m2"):
                raise BadOption(f"binary has no option {option!r}; it has -channel, -tensor, -gN, -m2")
        return cls(granularity or Granularity(0), 2 if "m2" in rest else 1)

    def __str__(self) -> str:
        written = [] if self.granularity == Granularity(0) else [str(self.granularity)]
        return "-".join(["binary", *["m2"] * (self.terms == 2), *written])

    @property
    def bits(self) -> int:
        return self.terms

    @property
    def levels(self) -> int:
        return 1 << self.terms

    @property
    def fits_tensor(self) -> bool:
        return self.granularity.per_tensor

    def param_specs(self, columns: int) -> dict[str, ParamSpec]:
        spec = self.granularity.param_spec(columns)
        return {"scale": spec, "scale2": spec} if self.terms == 2 else {"scale": spec}

    def fit_tensor(self, blocks: Iterable[Block]) -> Params:
        """Scales for all `blocks`, float32 [1, 1]."""
        return self._fit(blocks) if self.fits_tensor else {}

    def fit_rows(self, block: Block, tensor: Params) -> Params:
        """The scales of each group of `block`, float32 [rows, groups]."""
        return {} if self.fits_tensor else self._fit([block])

    def _fit(self, blocks: Iterable[Block]) -> Params:
        whole, count = magnitudes(blocks, self.granularity)
        scale = whole / np.maximum(count, 1)
        if self.terms == 1:
            return {"scale": self.granularity.rounded(scale.astype(np.float32), np.float32(1))}
        second = np.zeros_like(scale)
        for _ in range(STEPS):
            above, n = tail_sums(blocks, scale, self.granularity)
            high = np.where(n > 0, above / np.maximum(n, 1), scale)
            low = np.where(count > n, (whole - above) / np.maximum(count - n, 1), scale)
            scale, second = (high + low) / 2, (high - low) / 2
        scales = {"scale": scale, "scale2": second}
        return {name: self.granularity.rounded(s.astype(np.float32), np.float32(2)) for name, s in scales.items()}

    def encode(self, block: Block, params: Params, prices: Any = None) -> Codes:
        """Codes uint8 [rows, columns]."""
        first = block >= 0
        codes: Codes = first.view(np.uint8)
        if self.terms == 1:
            return codes
        scale = spread(broadcast(params["scale"], len(block)), self.granularity.span, block.shape[1])
        second = block >= np.where(first, scale, -scale)
        return codes * np.uint8(2) + second.view(np.uint8)

    def decode(self, codes: Codes, params: Params) -> Block:
        if self.terms == 1:
            return self._term(codes, params["scale"])
        return self._term(codes >> 1, params["scale"]) + self._term(codes & 1, params["scale2"])

    def _term(self, signs: Codes, scale: Block) -> Block:
        """`scale` where `signs` is 1, else `-scale`."""
        return look_up(signs, SIGNS, broadcast(scale, len(signs)), self.granularity.span)
