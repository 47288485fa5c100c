"""Error feedback: what rounding or pruning a weight does to a layer's outputs is taken up by the weights after it.

Sources: Frantar, Ashkboos, Hoefler and Alistarh, GPTQ, ICLR 2023, arXiv:2210.17323, section 3 and algorithm 1; Frantar
and Alistarh, SparseGPT, ICML 2023, arXiv:2301.00774, algorithm 1; Hassibi and Stork, Second order derivatives for
network pruning: Optimal Brain Surgeon, NeurIPS 1992.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.errors import BrokenCheckpoint, inert
from modelzip_cli.schemes.base import Codes, Params, Scheme
from modelzip_cli.statistics import HESSIAN
from modelzip_cli.tensors import Statistics, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

DAMPING = 0.01  # of the mean diagonal, added to it
SMALL = 128  # rows of a matrix that is inverted at once
PANEL = 128  # columns whose errors are passed on to those after them at once: by a product of matrices

LEAST_COST = np.float32(2.0**-149)  # a cost of 0 means that the weight is 0


@dataclass(frozen=True)
class Feedback:
    """How the error of one column of a weight is passed on to the columns after it.

    `order` int64 [columns]: in which columns are treated. `factor` float32 [columns, columns], its rows and columns in
    that order: U with H^-1 = U^T U, upper triangular, H = mean x x^T of the inputs x.
    """

    order: NDArray[np.int64]
    factor: Block

    @staticmethod
    def of(hessian: Block, *, sort: bool = True) -> Feedback:
        """From H [columns, columns], damped by 1 % of its mean diagonal, which is all that inputs that were always 0
        have, so that nothing depends on the scale of the others. With `sort`, the inputs of largest square come first,
        so that their errors are taken up by the most others. Raises LinAlgError for an H that is no mean of x x^T."""
        diagonal = hessian.diagonal().astype(np.float64).clip(min=0.0)
        order = np.argsort(-diagonal, kind="stable") if sort else np.arange(len(diagonal))
        behind = order[::-1]  # of the reversed matrix the lower factor, reversed, is the upper one: H = R R^T
        damped = hessian[np.ix_(behind, behind)].astype(np.float64)
        np.fill_diagonal(damped, diagonal[behind] + DAMPING * (diagonal.mean() or 1.0))
        root = np.linalg.cholesky(damped)[::-1, ::-1]
        del damped
        _invert_upper(root)
        return Feedback(order, np.ascontiguousarray(root, np.float32))

    def codes(self, scheme: Scheme, block: Block, params: Params, prices: Any = None) -> Codes:
        """The codes of `block` [rows, columns], as `scheme.encode` gives them, column after column with feedback.

        A weight that is exactly 0 stays 0 where the scheme has a code for it.
        """
        rows, columns = block.shape
        found: Codes | None = None

        def round_column(place: int, column: Block) -> Block:
            nonlocal found
            at = int(self.order[place])
            local = scheme.at(params, at)
            if scheme.has_zero:
                column = np.where(block[:, at : at + 1] == 0, np.float32(0), column)
            codes = scheme.encode(column, local, prices)
            if found is None or found.dtype.itemsize < codes.dtype.itemsize:  # int32 where int16 does not do
                wider = np.empty((rows, columns), codes.dtype)
                if found is not None:
                    wider[...] = found
                found = wider
            found[:, at : at + 1] = codes
            return scheme.decode(codes, local)

        self._sweep(block, round_column, PANEL)
        return scheme.encode(block, params, prices) if found is None else found

    def pruned(self, block: Block, choose: Callable[[Block], NDArray[np.bool_]], panel: int) -> Block:
        """`block` [rows, columns] with weights set to 0 and the others changed to make up for it.

        `choose` is told of `panel` columns how much the outputs change for each weight, w^2 / U_jj^2 [rows, panel] of w
        as it has become, and says which become 0. Those that are 0 stay so, and cost 0. Needs columns in their own
        order.
        """
        result = np.zeros_like(block)
        gone = np.zeros((len(block), 0), np.bool_)

        def cut(place: int, column: Block) -> Block:
            zero = gone[:, place % panel : place % panel + 1] | (block[:, place : place + 1] == 0)
            kept: Block = np.where(zero, np.float32(0), column)
            result[:, place : place + 1] = kept
            return kept

        def begin(place: int, work: Block) -> None:
            nonlocal gone
            inside = slice(place, place + len(work))
            costs = np.maximum(np.square(work.T / self.factor.diagonal()[inside]), LEAST_COST)
            gone = choose(np.where(block[:, inside] == 0, np.float32(0), costs))

        self._sweep(block, cut, panel, begin)
        return result

    def _sweep(
        self,
        block: Block,
        treat: Callable[[int, Block], Block],
        panel: int,
        begin: Callable[[int, Block], None] = lambda place, work: None,
    ) -> None:
        """Go through the columns in order: `treat` is given a place and the column [rows, 1] as it has become, and
        returns what is left of it; `begin` sees each panel, [panel, rows], before its first column."""
        work = np.ascontiguousarray(block[:, self.order].T, np.float32)  # a column is a row here: contiguous
        columns = len(work)
        for first in range(0, columns, panel):
            last = min(first + panel, columns)
            begin(first, work[first:last])
            errors = np.empty((last - first, work.shape[1]), np.float32)
            for place in range(first, last):
                column = work[place].reshape(-1, 1)
                error = (column - treat(place, column)).reshape(-1) / self.factor[place, place]
                work[place + 1 : last] -= self.factor[place, place + 1 : last, None] * error
                errors[place - first] = error
            work[last:] -= self.factor[first:last, last:].T @ errors


def _invert_upper(matrix: NDArray[Any]) -> None:
    """Invert an upper triangular matrix [n, n] in place, a half at a time: it may take much memory."""
    half = len(matrix) // 2
    if len(matrix) <= SMALL:
        matrix[...] = np.triu(np.linalg.inv(matrix))
        return
    _invert_upper(matrix[:half, :half])
    _invert_upper(matrix[half:, half:])
    matrix[:half, half:] = -(matrix[:half, :half] @ matrix[:half, half:] @ matrix[half:, half:])


def feedback_of(statistics: Statistics, spec: TensorSpec, *, sort: bool = True) -> Feedback:
    """The feedback of a weight whose Hessian is there. Raises BrokenCheckpoint where that is no sum of squares."""
    try:
        return Feedback.of(statistics.read(spec, HESSIAN), sort=sort)
    except np.linalg.LinAlgError:
        raise BrokenCheckpoint(
            f"{statistics.label}: {inert(spec.name, longest=200)}:{HESSIAN} is no mean of products x x^T: it has "
            "negative eigenvalues"
        ) from None


class Feedbacks:
    """The feedback of weights, made from their Hessians when it is needed.

    Those of the last two are kept: a layer takes much memory, and slabs of one are still rounded when the next begins.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._statistics, self._lock = statistics, Lock()
        self._last: dict[str, Feedback] = {}

    def of(self, spec: TensorSpec) -> Feedback:
        """That of one weight, whose Hessian is there."""
        with self._lock:
            if spec.name not in self._last:
                for name in list(self._last)[:-1]:
                    del self._last[name]
                self._last[spec.name] = feedback_of(self._statistics, spec)
            return self._last[spec.name]
