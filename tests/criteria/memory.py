"""A checkpoint in memory, and what a run prunes of it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelzip_cli.amounts import Pruning
from modelzip_cli.pruning import Masked, Masks, find_masks
from modelzip_cli.statistics import HESSIAN, KINDS, shape_of
from modelzip_cli.tensors import DTYPES, TensorSpec

IDS = {getattr(torch, str(dtype.torch)): dtype for dtype in DTYPES.values() if dtype.torch and dtype.kind == "float"}
UNITS = {2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


@dataclass(frozen=True)
class File:
    """Where a checkpoint would lie."""

    path: Path = Path("memory.safetensors")
    label: str = "memory.safetensors"
    size: int = 0


class Memory:
    """Tensors that were never written."""

    container, compressed, sha256, outer = "safetensors", False, "", None
    warnings: tuple[str, ...] = ()
    beside: Mapping[str, TensorSpec] = {}
    metadata: Mapping[str, str] = {}
    file = File()

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.specs = {name: TensorSpec(name, IDS[each.dtype], tuple(each.shape)) for name, each in tensors.items()}

    def read(self, name: str, start: int, stop: int) -> Any:
        """The units [start, stop)."""
        flat = self.tensors[name].contiguous().reshape(-1)
        return flat.view(UNITS[flat.element_size()]).numpy()[start:stop]

    def finish(self) -> None:
        """Nothing to check."""

    def close(self) -> None:
        """Nothing to close."""


class Known:
    """Statistics of any weight but Hessians: numbers that follow from its name, its place and what they are."""

    label, sha256 = "memory.statistics", "0" * 64
    kinds = tuple(kind for kind in KINDS if kind != HESSIAN)

    def has(self, spec: TensorSpec, kind: str) -> bool:
        """Whether there is this kind."""
        return kind != HESSIAN

    def read(self, spec: TensorSpec, kind: str, first: int = 0, last: int | None = None) -> Any:
        """Rows [first, last), above 0, float32."""
        shape = shape_of(spec, kind)
        numbers = np.random.default_rng(zlib.crc32(f"{spec.name}:{kind}".encode())).gamma(1.0, 2.0, shape)
        return numbers.astype(np.float32)[first:last]

    def require(self, specs: Iterable[TensorSpec], kinds: Iterable[str]) -> None:
        """They are all there."""


@dataclass(frozen=True)
class Result:
    """The masks of a run, and the tensors as they then are."""

    masks: Masks
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


def prune(
    tensors: Mapping[str, torch.Tensor],
    asked: Pruning,
    *,
    amounts: Mapping[str, float] | None = None,
    threads: int = 1,
    allow_nonfinite: bool = False,
) -> Result:
    """Prune all of `tensors`; `amounts`: shares of single ones."""
    source = Memory(tensors)
    chosen = [(spec, (amounts or {}).get(name)) for name, spec in source.specs.items()]
    with ThreadPoolExecutor(threads) as executor:
        masks = find_masks(source, chosen, asked, executor, allow_nonfinite=allow_nonfinite, statistics=Known())
    masked = Masked(source, masks)
    found = {}
    for name, spec in source.specs.items():
        bits = torch.from_numpy(masked.read(name, 0, spec.size).copy())
        found[name] = bits.view(tensors[name].dtype).reshape(spec.shape)
    return Result(masks, found)


def zeros_of(tensor: torch.Tensor) -> int:
    """How many weights are 0."""
    return int((tensor == 0).sum())
