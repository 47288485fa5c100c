"""Importance from a layer's inputs: how much its outputs change, were a weight 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from modelzip_cli.criteria.base import Criterion, Place, weighted

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block


@dataclass(frozen=True)
class Wanda(Criterion):
    """|w| times the root mean square of the input that it is multiplied with.

    Source: Sun, Liu, Bair and Kolter, A Simple and Effective Pruning Approach for Large Language Models, 2023,
    arXiv:2306.11695, section 3.
    """

    id: ClassVar[str] = "wanda"
    needs: ClassVar[str | None] = "second_moment"

    def scores(self, block: Block, place: Place) -> Block:
        assert self.statistics is not None
        return weighted(block, np.sqrt(self.statistics.read(place.spec, "second_moment")))


@dataclass(frozen=True)
class SparseGpt(Criterion):
    """w^2 / U_jj^2: how much a layer's outputs change when a weight goes and those after it in its row make up for it.

    Weights are chosen in panels of 128 columns, when the columns before have been treated, and those that stay are
    changed (feedback.py); U: H^-1 = U^T U with H = mean x x^T of the layer's inputs x. A layer at a time.
    Source: Frantar and Alistarh, SparseGPT, ICML 2023, arXiv:2301.00774, algorithm 1.
    """

    id: ClassVar[str] = "sparsegpt"
    same_everywhere: ClassVar[bool] = True
    changes_weights: ClassVar[bool] = True
    needs: ClassVar[str | None] = "hessian"

    def scores(self, block: Block, place: Place) -> Block:
        """|w|, of tensors whose inputs nothing is known of."""
        return block
