"""GPTQ and rounding to nearest in groups, as references to compare with. A part of minilm.py.

Source: Frantar, Ashkboos, Hoefler, Alistarh, GPTQ, 2023, arXiv:2210.17323, Algorithm 1; the asymmetric grid of a group,
the damping and the order of columns are those of its reference code (IST-DASLab/gptq, gptq.py and quant.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 128  # weights of a row that share a scale and a zero point
DAMPING = 0.01  # of the mean of the Hessian's diagonal, added to it
SCALE_BITS = 16  # a group; the zero points of the groups and the order of the columns are not charged


@dataclass(frozen=True)
class Grid:
    """The 2^bits levels of a group of each row, evenly spaced, zero among them: `scale`, `zero` float32 [rows, 1]."""

    scale: Tensor
    zero: Tensor
    top: int

    @classmethod
    def of(cls, group: Tensor, bits: int) -> Grid:
        """From the smallest to the largest weight of each row of `group`, float32 [rows, columns]."""
        top = 2**bits - 1
        least = group.amin(dim=1, keepdim=True).clamp(max=0)
        most = group.amax(dim=1, keepdim=True).clamp(min=0)
        empty = (least == 0) & (most == 0)
        scale = (torch.where(empty, 1.0, most) - torch.where(empty, -1.0, least)) / top
        return cls(scale, torch.round(-least / scale), top)

    def nearest(self, weight: Tensor) -> Tensor:
        """The level next to each weight, float32 of its shape [rows, columns]."""
        level = (torch.round(weight / self.scale) + self.zero).clamp(0, self.top)
        return self.scale * (level - self.zero)


def stored_bits(bits: int) -> float:
    """Bits a weight: its level, and its share of the scale."""
    return bits + SCALE_BITS / GROUP


def nearest(weight: Tensor, bits: int) -> Tensor:
    """Each weight rounded on the grid of its group. `weight` float32 [rows, columns], columns a multiple of GROUP."""
    groups = weight.split(GROUP, dim=1)
    return torch.cat([Grid.of(group, bits).nearest(group) for group in groups], dim=1)


def inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor U of the damped Hessian's inverse, H^-1 = U^T U, [columns, columns]."""
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def gptq(weight: Tensor, hessian: Tensor, bits: int, *, act_order: bool) -> Tensor:
    """Algorithm 1 with groups: column after column is rounded, and those after it take up its error.

    `weight` float32 [rows, columns]; `hessian` [columns, columns], the sum of x x^T over inputs x in any unit.
    `act_order` takes the columns by descending diagonal of the Hessian; groups are then of columns in that order.
    A group's error reaches the groups after it in one product, as in the paper.
    """
    dead = hessian.diagonal() == 0
    order = torch.argsort(hessian.diagonal(), descending=True) if act_order else torch.arange(len(hessian))
    hessian = hessian.double() + torch.diag(dead.double())
    left = weight.double().masked_fill(dead, 0)[:, order]
    factor = inverse_factor(hessian[order][:, order])
    rounded = torch.empty_like(left)
    for start in range(0, left.shape[1], GROUP):
        end = start + GROUP
        grid = Grid.of(left[:, start:end], bits)
        errors = torch.empty_like(left[:, start:end])
        for column in range(start, end):
            rounded[:, column] = grid.nearest(left[:, column, None])[:, 0]
            error = (left[:, column] - rounded[:, column]) / factor[column, column]
            left[:, column:end] -= torch.outer(error, factor[column, column:end])
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    return rounded[:, torch.argsort(order)].to(weight.dtype)
