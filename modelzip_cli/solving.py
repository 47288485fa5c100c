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
from modelzip_cli.feedback import PANEL, Feedback
from modelzip_cli.kernels.widen import narrow
from modelzip_cli.source import Checkpoint
from modelzip_cli.tensors import Statistics, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits, Block


class Solver:
    """Weights of `source` with zeros that the others make up for. One tensor is kept: its slabs follow each other."""

    def __init__(self, source: Checkpoint, statistics: Statistics, pattern: Pattern | None) -> None:
        self._source, self._statistics, self._pattern, self._lock = source, statistics, pattern, Lock()
        self._last: tuple[str, Block] | None = None

    def mask(self, share: float | None) -> Mask:
        """What becomes of a tensor of which `share` go; None: as many as the pattern says."""
        return Solved(self, share)

    def weights(self, spec: TensorSpec, share: float | None) -> Block:
        """A tensor as it is once pruned, float32 [rows, columns]. Raises NonFinite."""
        with self._lock:
            if self._last is None or self._last[0] != spec.name:
                self._last = None
                self._last = spec.name, self._solved(spec, share)
            return self._last[1]

    def _solved(self, spec: TensorSpec, share: float | None) -> Block:
        columns = spec.matrix[1]
        block = np.concatenate([read_block(self._source, spec, *slab) for slab in spec.row_slabs()])
        if not np.isfinite(block).all():
            raise refuse_nonfinite(self._source, spec)
        feedback = Feedback.known(self._statistics, spec, sort=False)
        if share is None:
            assert self._pattern is not None
            if len(spec.shape) != 2:
                raise UsageError(
                    f"{self._source.file.label}: --pattern with sparsegpt is for linear layers, and "
                    f"{inert(spec.name, longest=200)} is {[*spec.shape]}: --set '{inert(spec.name, longest=200)}=keep'"
                )
            keep, group = self._pattern.keep, self._pattern.group
            return feedback.pruned(block, lambda _, cost: _all_but(cost, keep), panel=group)
        done = gone = 0

        def smallest(work: Block, cost: Block) -> NDArray[np.bool_]:
            nonlocal done, gone
            done += cost.size
            wanted = round(share * done) - gone
            gone += wanted
            chosen = np.zeros(cost.size, np.bool_)
            chosen[np.argsort(cost.reshape(-1), kind="stable")[:wanted]] = True
            return chosen.reshape(cost.shape)

        return feedback.pruned(block, smallest, panel=min(PANEL, columns))


def _all_but(cost: Block, keep: int) -> NDArray[np.bool_]:
    """In each row of `cost` all but the `keep` largest."""
    ranks = np.argsort(np.argsort(cost, axis=1, kind="stable"), axis=1, kind="stable")
    lost: NDArray[np.bool_] = ranks < cost.shape[1] - keep
    return lost


@dataclass(frozen=True, eq=False)
class Solved(Mask):
    """What a solver makes of a tensor."""

    solver: Solver
    share: float | None

    def apply(self, bits: Bits, place: Place) -> Bits:
        block = self.solver.weights(place.spec, self.share)[place.first : place.first + len(bits)]
        return narrow(np.ascontiguousarray(block), place.spec.dtype)
