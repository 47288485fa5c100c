"""A network as people have it in a file of their own: `--arch tests/net.py:Net`. It imports torch alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES, WIDTH, CLASSES = 16, 272, 3  # 272 * 16 weights are more than the 4,096 from which a tensor is compressed


class Net(nn.Module):
    """Features [batch, 16] -> scores [batch, classes], with one hidden layer and batch norm."""

    def __init__(self, width: int = WIDTH, classes: int = CLASSES) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """One hidden layer."""
        scores: Tensor = self.head(torch.relu(self.norm(self.first(x))))
        return scores
