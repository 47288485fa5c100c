"""Importance from gradients: what the loss would change by, were a weight 0. Labels are drawn from the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from modelzip_cli.criteria.base import Criterion, Place, told_apart, weighted

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block


@dataclass(frozen=True)
class Taylor(Criterion):
    """sum |w dL/dw| over small batches: to first order, how much the loss changes when the weight goes.

    Source: Molchanov, Mallya, Tyree, Frosio and Kautz, Importance Estimation for Neural Network Pruning, CVPR 2019,
    arXiv:1906.10771, equation 8.
    """

    id: ClassVar[str] = "taylor"
    needs: ClassVar[str | None] = "taylor"

    def scores(self, block: Block, place: Place) -> Block:
        assert self.statistics is not None
        found = self.statistics.read(place.spec, "taylor", place.first, place.first + len(block))
        return told_apart(found, block)


@dataclass(frozen=True)
class Fisher(Criterion):
    """|w| sqrt(sum (dL/dw)^2) over small batches: the order of w^2 F, with F the diagonal of the Fisher information,
    which is how much the outputs change, to second order, when the weight goes.

    Source: Theis, Korshunova, Tejani and Huszar, Faster gaze prediction with dense networks and Fisher pruning, 2018,
    arXiv:1801.05787, section 2.1; LeCun, Denker and Solla, Optimal Brain Damage, NeurIPS 1989.
    """

    id: ClassVar[str] = "fisher"
    needs: ClassVar[str | None] = "fisher"

    def scores(self, block: Block, place: Place) -> Block:
        assert self.statistics is not None
        found = self.statistics.read(place.spec, "fisher", place.first, place.first + len(block))
        return weighted(block, np.sqrt(found))  # the square would leave float32
