"""Networks as people have them in a file of their own: `--arch tests/residual.py:Residual`. It imports torch alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES, CLASSES = 6, 3


class Block(nn.Module):
    """A perceptron beside a shortcut, with batch norm and dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.dropout = nn.Dropout(0.1)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width] -> the same."""
        changed: Tensor = self.fc2(self.dropout(torch.relu(self.fc1(self.norm(x)))))
        return x + changed


class Residual(nn.Module):
    """Features [batch, 6] -> scores [batch, classes]."""

    def __init__(self, width: int = 16, layers: int = 3, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Linear(FEATURES, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Block after block."""
        hidden = torch.relu(self.stem(x))
        for block in self.blocks:
            hidden = block(hidden)
        scores: Tensor = self.head(hidden)
        return scores


class Small(nn.Module):
    """The same inputs and outputs with one hidden layer."""

    def __init__(self, hidden: int = 8, classes: int = CLASSES) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, hidden)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """One hidden layer."""
        scores: Tensor = self.last(self.dropout(torch.relu(self.first(x))))
        return scores
