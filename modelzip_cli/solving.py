"""Pruning that changes the weights that stay: SparseGPT, a layer at a time."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.blocks import read_block, refuse_nonfinite
from modelzip_cli.criteria.base import Place
from modelzip_cli.criteria.masks import Mask
from modelzip_cli.criteria.patterns import Pattern
from modelzip_cli.errors import UsageError, inert
from modelzip_cli.feedback import PANEL, Feedback, feedback_of
from modelzip_cli.kernels.widen import narrow
from modelzip_cli.source import Checkpoint
from modelzip_cli.tensors import Statistics, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits, Block


class Solver:
    """Weights of `source` with zeros that the others make up for.

    The last two tensors are kept: slabs of one are still asked for when the next begins.
    """

    def __init__(self, source: Checkpoint, statistics: Statistics, pattern: Pattern | None) -> None:
        self._source, self._statistics, self._pattern, self._lock = source, statistics, pattern, Lock()
        self._last: dict[str, Block] = {}

    def mask(self, spec: TensorSpec, share: float | None) -> Mask:
        """What becomes of a tensor of which `share` go; None: as many as the pattern says. Raises UsageError for a
        pattern where the inputs of a layer do not lie side by side."""
        if share is None and len(spec.shape) != 2:
            name = inert(spec.name, longest=200)
            raise UsageError(
                f"{self._source.file.label}: --pattern with sparsegpt is for linear layers, and {name} is "
                f"{[*spec.shape]}: --set '{name}=keep'"
            )
        return Solved(self, share)

    def weights(self, spec: TensorSpec, share: float | None) -> Block:
        """A tensor as it is once pruned, float32 [rows, columns]. Raises NonFinite."""
        with self._lock:
            if spec.name not in self._last:
                for name in list(self._last)[:-1]:
                    del self._last[name]
                self._last[spec.name] = self._solved(spec, share)
            return self._last[spec.name]

    def _solved(self, spec: TensorSpec, share: float | None) -> Block:
        block = np.concatenate([read_block(self._source, spec, *slab) for slab in spec.row_slabs()])
        if not np.isfinite(block).all():
            raise refuse_nonfinite(self._source, spec)
        feedback = feedback_of(self._statistics, spec, sort=False)
        if share is not None:
            return thinned(feedback, block, share)
        assert self._pattern is not None
        keep = self._pattern.keep
        return feedback.pruned(block, lambda costs: _all_but(costs, keep), self._pattern.group)


def thinned(feedback: Feedback, block: Block, share: float) -> Block:
    """`block` [rows, columns] with `share` of its weights 0, those of every panel that cost least; those that are 0
    already are counted among them."""
    done = gone = 0

    def smallest(costs: Block) -> NDArray[np.bool_]:
        nonlocal done, gone
        done += costs.size
        wanted = max(round(share * done) - gone, costs.size - int(np.count_nonzero(costs)))
        gone += wanted
        chosen = np.zeros(costs.size, np.bool_)
        chosen[np.argsort(costs.reshape(-1), kind="stable")[:wanted]] = True
        return chosen.reshape(costs.shape)

    return feedback.pruned(block, smallest, min(PANEL, block.shape[1]))


def _all_but(costs: Block, keep: int) -> NDArray[np.bool_]:
    """In each row of `costs` all but the `keep` largest."""
    ranks = np.argsort(np.argsort(costs, axis=1, kind="stable"), axis=1, kind="stable")
    lost: NDArray[np.bool_] = ranks < costs.shape[1] - keep
    return lost


@dataclass(frozen=True, eq=False)
class Solved(Mask):
    """What a solver makes of a tensor."""

    solver: Solver
    share: float | None

    def apply(self, bits: Bits, place: Place) -> Bits:
        block = self.solver.weights(place.spec, self.share)[place.first : place.first + len(bits)]
        return narrow(np.ascontiguousarray(block), place.spec.dtype)
