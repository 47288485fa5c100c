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
PANEL = 128  # columns whose errors are passed on to those after them at once: by a product of matrices


@dataclass(frozen=True)
class Feedback:
    """How the error of one column of a weight is passed on to the columns after it.

    `order` int64 [columns]: in which columns are treated. `factor` float32 [columns, columns], its rows and columns in
    that order: U with H^-1 = U^T U, upper triangular, H = mean x x^T of the inputs x.
    """

    order: NDArray[np.int64]
    factor: Block

    @staticmethod
    def known(statistics: Statistics, spec: TensorSpec, *, sort: bool = True) -> Feedback:
        """That of a weight whose Hessian is there. Raises BrokenCheckpoint for a matrix that is none."""
        try:
            return Feedback.of(statistics.read(spec, HESSIAN), sort=sort)
        except np.linalg.LinAlgError:
            name = inert(f"{spec.name}:{HESSIAN}", longest=200)
            raise BrokenCheckpoint(f"{statistics.label}: {name} is no mean of products of inputs") from None

    @staticmethod
    def of(hessian: Block, *, sort: bool = True) -> Feedback:
        """From H [columns, columns], damped by 1 % of its mean diagonal; inputs that were always 0 count as 1. With
        `sort`, the inputs of largest square come first, so that their errors are taken up by the most others."""
        damped = hessian.astype(np.float64)
        diagonal = damped.diagonal().copy()
        diagonal[diagonal <= 0] = 1.0
        order = np.argsort(-diagonal, kind="stable") if sort else np.arange(len(diagonal))
        np.fill_diagonal(damped, diagonal + DAMPING * diagonal.mean())
        damped = damped[np.ix_(order, order)]
        root = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]  # upper triangular, H = root root^T
        return Feedback(order, np.ascontiguousarray(np.linalg.solve(root, np.eye(len(root))), np.float32))

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

        self._sweep(block, round_column)
        return scheme.encode(block, params, prices) if found is None else found

    def pruned(self, block: Block, choose: Callable[[Block, Block], NDArray[np.bool_]], panel: int) -> Block:
        """`block` [rows, columns] with weights set to 0 and the others changed to make up for it.

        `choose` is given `panel` columns as they have become, [rows, panel], and how much the outputs change for each,
        w^2 / U_jj^2, and says which become 0; those that are 0 stay so. Needs columns in their own order.
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
            columns = np.ascontiguousarray(work.T)
            scale = self.factor.diagonal()[place : place + columns.shape[1]]
            gone = choose(columns, np.square(columns / scale))

        self._sweep(block, cut, panel=panel, begin=begin)
        return result

    def _sweep(
        self,
        block: Block,
        treat: Callable[[int, Block], Block],
        *,
        panel: int = PANEL,
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
                self._last[spec.name] = Feedback.known(self._statistics, spec)
            return self._last[spec.name]
