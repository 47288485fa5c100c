"""The contract of a scheme: how float32 weights become integer codes plus params."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from modelzip_cli.errors import BadOption
from modelzip_cli.tensors import DType

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

Codes = NDArray[Any]  # uint8 or uint16, [rows, columns]
Params = dict[str, NDArray[Any]]  # arrays by local name; those of fit_tensor have one row, those of fit_rows one a row


@dataclass(frozen=True)
class ParamSpec:
    """How one param is stored: dtype, columns, and whether it has a row for every row of the tensor or just one."""

    dtype: DType
    columns: int
    per_row: bool


class Scheme(ABC):
    """One way to write weights in fewer bits. Subclasses are frozen dataclasses; their fields are their options.

    A scheme sees blocks of float32 weights [rows, columns], never a path, a name or a dtype. Codes and params must not
    depend on how rows are cut into blocks. Weights are finite: the engine refuses the others by name.
    """

    id: ClassVar[str]
    example: ClassVar[str]
    widths: ClassVar[range] = range(0)  # the widths that may follow the id in a name; empty: none
    plain: ClassVar[DType | None] = None  # the codes are the weights in this dtype, stored as an ordinary tensor

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits of one packed code."""

    @classmethod
    def parse(cls, width: int | None, options: Sequence[str]) -> Scheme:
        """Build the scheme from the parts of its name: `int4-g64-mse` is width 4, options `["g64", "mse"]`.

        Raises BadOption for an option that the scheme does not have.
        """
        if options:
            raise BadOption(f"{cls.id} takes no option {options[0]!r}")
        return cls()

    def fit_tensor(self, blocks: Iterable[Block]) -> Params:
        """Compute what belongs to the whole tensor from all its blocks, which can be gone through more than once.

        Raises DoesNotFit when the scheme cannot hold the tensor. Called only if `fits_tensor` is true.
        """
        return {}

    @property
    def fits_tensor(self) -> bool:
        """Whether `fit_tensor` has to see the weights: one more pass over the tensor."""
        return False

    def fit_rows(self, block: Block, tensor: Params) -> Params:
        """Compute what belongs to the rows of `block`, given the params of the tensor."""
        return {}

    @abstractmethod
    def encode(self, block: Block, params: Params) -> Codes:
        """Return the codes of `block` [rows, columns], each below `levels`."""

    @abstractmethod
    def decode(self, codes: Codes, params: Params) -> Block:
        """Return float32 weights [rows, columns], finite for all codes that `encode` gives."""

    @property
    @abstractmethod
    def levels(self) -> int:
        """How many different codes there are."""

    def param_specs(self, columns: int) -> dict[str, ParamSpec]:
        """How the params of a tensor with `columns` columns are stored, by local name."""
        return {}

    def bound(self, params: Params) -> Block | None:
        """The largest possible |w - decode(encode(w))| of each group, broadcastable; None where params do not tell."""
        return None

    def check(self, params: Params) -> str | None:
        """Say what is wrong with params read from a file, or None. Floats have been checked to be finite."""
        return None

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the packed codes and the params of a tensor."""
        params = sum(
            (rows if spec.per_row else 1) * spec.columns * spec.dtype.bits // 8
            for spec in self.param_specs(columns).values()
        )
        return rows * (-(-columns * self.bits // 8)) + params


def group_count(columns: int, group_size: int) -> int:
    """How many groups a row has; the last may be short; never 0, so that params of empty tensors have a shape."""
    return max(1, -(-columns // group_size))
