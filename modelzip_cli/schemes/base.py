"""The contract of a scheme: how float32 weights become integer codes plus params."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from modelzip_cli.errors import BadOption
from modelzip_cli.tensors import DType, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

Codes = NDArray[Any]  # uint8 or uint16, [rows, columns]; int16 or int32 where the range is open
Params = dict[str, NDArray[Any]]  # arrays by local name; those of fit_tensor have one row, those of fit_rows one a row


@dataclass(frozen=True)
class ParamSpec:
    """How one param is stored: dtype, columns, and whether it has a row for every row of the tensor or just one.

    `coded`: small integers that the entropy coder stores.
    """

    dtype: DType
    columns: int
    per_row: bool
    coded: bool = False


@dataclass(frozen=True)
class Contexts:
    """Which table of the entropy coder codes each weight of a slab: data that scheme and coder both read.

    The class of a weight is `row_class[row] + column_class[column]`, int32; of the integer k that stands for it,
    `low_bits[class]` bits are stored raw. With `machine`, tables are `class * 2 + q`: q is the quantizer of the state
    of an 8-state trellis that k drives (kernels/trellis.py). It runs down the rows in every column, or, with
    `along_rows`, along the columns in every row.
    """

    row_class: NDArray[Any]
    column_class: NDArray[Any]
    low_bits: NDArray[Any]
    machine: bool
    along_rows: bool

    @property
    def tables(self) -> int:
        """How many tables there are."""
        return len(self.low_bits) * (2 if self.machine else 1)


class Scheme(ABC):
    """One way to write weights in fewer bits. Subclasses are frozen dataclasses; their fields are their options.

    A scheme sees blocks of float32 weights [rows, columns], never a path, a name or a dtype. Codes and params must not
    depend on how rows are cut into blocks. Weights are finite: the engine refuses the others by name.
    """

    id: ClassVar[str]
    example: ClassVar[str]
    widths: ClassVar[range] = range(0)  # the widths that may follow the id in a name; empty: none
    plain: ClassVar[DType | None] = None  # the codes are the weights in this dtype, stored as an ordinary tensor
    raw: ClassVar[bool] = False  # no codes at all: the coder works on the bits of the tensor, whatever its dtype
    has_zero: ClassVar[bool] = True  # a weight of exactly 0 is 0 again
    feeds_back: ClassVar[bool] = (
        False  # the error of a column can be passed on to those after it: `at` gives its params
    )
    tall: ClassVar[bool] = False  # slabs have more rows, for paths that run down them

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
    def encode(self, block: Block, params: Params, prices: Any = None) -> Codes:
        """Return the codes of `block` [rows, columns], each below `levels`. `prices`: what `prices` made of rates."""

    @abstractmethod
    def decode(self, codes: Codes, params: Params) -> Block:
        """Return float32 weights [rows, columns], finite for all codes that `encode` gives."""

    def at(self, params: Params, column: int) -> Params:
        """The params of one column, with which `encode` and `decode` take it alone, [rows, 1]."""
        return params

    @property
    @abstractmethod
    def levels(self) -> int | None:
        """How many different codes there are; None: any integer, and contexts say how it is coded."""

    def contexts(self, params: Params, rows: int, columns: int) -> Contexts:
        """The contexts of a slab of an open range."""
        raise NotImplementedError

    def absolute(self, block: Block, params: Params) -> Block:
        """The weights [rows, columns] of an open range, of its points times the step of the tensor."""
        return block

    def prices(self, rates: NDArray[Any]) -> Any:
        """What `encode` needs of the rates of a set of tables, int64 [tables, 256] in 1/256 bit."""
        return None

    def param_specs(self, columns: int) -> dict[str, ParamSpec]:
        """How the params of a tensor with `columns` columns are stored, by local name."""
        return {}

    def bound(self, params: Params) -> Block | None:
        """The largest possible |w - decode(encode(w))| of each group, broadcastable; None where params do not tell."""
        return None

    def check(self, params: Params) -> str | None:
        """Say what is wrong with params read from a file, or None. Floats have been checked to be finite."""
        return None

    def guess(self, spec: TensorSpec) -> int:
        """About how many bytes entropy-coded codes of a tensor take; where nobody looked, as many as packed ones."""
        rows, columns = spec.matrix
        return rows * (-(-columns * self.bits // 8))

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the packed codes and the params of a tensor."""
        params = sum(
            spec.columns // 2 if spec.coded else (rows if spec.per_row else 1) * spec.columns * spec.dtype.bits // 8
            for spec in self.param_specs(columns).values()
        )
        return rows * (-(-columns * self.bits // 8)) + params


def group_count(columns: int, group_size: int) -> int:
    """How many groups a row has; the last may be short; never 0, so that params of empty tensors have a shape."""
    return max(1, -(-columns // group_size))
