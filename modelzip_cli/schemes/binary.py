"""Binary: one sign a weight, times one scale.

Source: Rastegari et al., XNOR-Net, 2016, arXiv:1603.05279, section 3.1, equation 6: the scale of least squared error is
the mean absolute value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from modelzip_cli.errors import BadOption
from modelzip_cli.kernels.sums import magnitude_sums, running_total
from modelzip_cli.schemes.base import Codes, Params, ParamSpec, Scheme
from modelzip_cli.schemes.granularity import WHOLE_ROW, Granularity, take_granularity

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block


@dataclass(frozen=True)
class Binary(Scheme):
    """`w ~ scale` where w >= 0, else `-scale`; scale = mean |w| of the row (`-channel`) or of the tensor (`-tensor`).

    Codes are 1 for w >= 0 and 0 below. Params: `scale` float32 [rows, 1] or [1, 1]. Gaussian weights keep 4.4 dB. A
    zero does not stay zero: there is no code for it.
    """

    id: ClassVar[str] = "binary"
    example: ClassVar[str] = "binary-tensor"
    granularity: Granularity = Granularity(0)

    @classmethod
    def parse(cls, width: int | None, options: Sequence[str]) -> Binary:
        granularity, rest = take_granularity(options)
        if rest or (granularity is not None and granularity.group_size > 0):
            wrong = rest[0] if rest else str(granularity)
            raise BadOption(f"binary has no option {wrong!r}; it has -channel, -tensor")
        return cls(granularity or Granularity(0))

    def __str__(self) -> str:
        return "binary-tensor" if self.granularity.per_tensor else "binary"

    @property
    def bits(self) -> int:
        return 1

    @property
    def levels(self) -> int:
        return 2

    @property
    def fits_tensor(self) -> bool:
        return self.granularity.per_tensor

    def param_specs(self, columns: int) -> dict[str, ParamSpec]:
        return {"scale": self.granularity.param_spec(columns)}

    def fit_tensor(self, blocks: Iterable[Block]) -> Params:
        """Mean |w| of all `blocks`, float32 [1, 1]."""
        if not self.fits_tensor:
            return {}
        total, count = np.zeros((1, 1)), 0
        for block in blocks:
            if block.size:
                total = running_total(total, magnitude_sums(block, WHOLE_ROW))
                count += block.size
        return {"scale": (total / max(count, 1)).astype(np.float32)}

    def fit_rows(self, block: Block, tensor: Params) -> Params:
        """Mean |w| of each row, float32 [rows, 1]."""
        if self.fits_tensor:
            return {}
        if not block.size:
            return {"scale": np.zeros((block.shape[0], 1), np.float32)}
        return {"scale": (magnitude_sums(block, WHOLE_ROW) / block.shape[1]).astype(np.float32)}

    def encode(self, block: Block, params: Params) -> Codes:
        codes: Codes = (block >= 0).view(np.uint8)
        return codes

    def decode(self, codes: Codes, params: Params) -> Block:
        block: Block = np.where(codes == 1, params["scale"], -params["scale"])
        return block
