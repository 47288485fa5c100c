"""Random: what any criterion has to beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from modelzip_cli.criteria.base import Criterion, Place
from modelzip_cli.kernels.pruning import random_scores

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block


@dataclass(frozen=True)
class Random(Criterion):
    """A number that follows from the seed, the name and shape of the tensor and the place in it, and nothing else.

    Weights that are 0 already go first.
    """

    id: ClassVar[str] = "random"
    same_everywhere: ClassVar[bool] = True

    def scores(self, block: Block, place: Place) -> Block:
        text = f"{self.seed} {place.spec.shape} {place.spec.name}"
        key = np.frombuffer(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "<u8")[0]
        found = random_scores(key, place.first * place.spec.matrix[1], block.size).reshape(block.shape)
        return np.where(np.isfinite(block) & (block != 0), found, np.abs(block))
