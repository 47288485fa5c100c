"""From stored pixels to the floats that a model takes. How, is said by the user or by the model, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelzip_cli.errors import UsageError
from modelzip_cli.running.inputs import Images, Wanted

UNNORMALISED = "pixels are taken as 0..1: neither --mean and --std nor the model says how they are normalised"


@dataclass(frozen=True)
class Pixels:
    """Pictures [n, channels, height, width], or channels last, -> float32 [n, channels, height, width].

    `(x / scale - mean) / std`, with mean and std of each channel, or of all, or none. float32 in the order of
    torchvision's ToTensor and Normalize, so that the values are theirs to the bit. `scale` is 255 for uint8.
    """

    scale: float = 255.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels_last: bool = False

    def __call__(self, stored: NDArray[Any]) -> Tensor:
        """Convert a batch; `stored` is left as it is."""
        if self.channels_last:
            stored = np.ascontiguousarray(np.moveaxis(stored, -1, 1))
        x = torch.from_numpy(stored.astype(np.float32))
        if self.scale != 1:
            x.div_(self.scale)
        if self.mean is not None and self.std is not None:
            x.sub_(_channels(self.mean, x)).div_(_channels(self.std, x))
        return x


def _channels(values: tuple[float, ...], x: Tensor) -> Tensor:
    """A value a channel, or one for all, in a shape that goes with `x` [n, channels, ...]."""
    return torch.tensor(values, dtype=torch.float32).view(-1, *(1,) * (x.ndim - 2))


@dataclass(frozen=True)
class Preparation(Images):
    """What is done to pictures. `asked`: the user named mean and std, so that floats are normalised as pixels are."""

    asked: bool = False


def prepare(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, size: tuple[int, int] | None, wanted: Wanted
) -> Preparation:
    """What is done to pictures: as the options say, else as the model's configuration does, else as its shape tells.

    Raises UsageError for --mean without --std and for values that are no normalisation or no size.
    """
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std go together")
    if mean is not None and std is not None:
        if not all(map(isfinite, (*mean, *std))) or min(std, default=0) <= 0:
            raise UsageError("--mean and --std are finite numbers, one a channel, and no --std is 0 or less")
        if len(mean) != len(std):
            raise UsageError(f"--mean has {len(mean)} values and --std {len(std)}; give one a channel")
    if size is not None and min(size) < 1:
        raise UsageError("--image-size: height and width are at least 1")
    said = wanted.images or Images()
    return Preparation(
        size=size or said.size or _size_of(wanted.shape),
        mean=said.mean if mean is None else mean,
        std=said.std if std is None else std,
        crop=said.crop,
        source=said.source or "the model's configuration" if mean is None else "--mean and --std",
        asked=mean is not None,
    )


def _size_of(shape: tuple[int | None, ...] | None) -> tuple[int, int] | None:
    """Height and width of an input [channels, height, width], where they are fixed."""
    if shape is None or len(shape) != 3 or shape[1] is None or shape[2] is None:
        return None
    return shape[1], shape[2]


def check_channels(images: Preparation, channels: int, label: str) -> None:
    """Raise UsageError where mean and std are not for so many channels."""
    if images.mean is not None and len(images.mean) not in (1, channels):
        raise UsageError(f"{label}: {channels} channels, but mean and std are of {len(images.mean)} ({images.source})")
