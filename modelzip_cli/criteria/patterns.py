"""Patterns of zeros that hardware knows: N of M neighbours along the input dimension are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelzip_cli.errors import UsageError, inert
from modelzip_cli.tensors import TensorSpec

PATTERN = re.compile(r"([0-9]{1,4}):([0-9]{1,4})")


@dataclass(frozen=True)
class Pattern:
    """Of `group` weights side by side along the input dimension, `keep` may be other than 0.

    Source: Mishra et al., Accelerating sparse deep neural networks, arXiv:2104.08378, section 3 (2:4); Zhou et al.,
    Learning N:M fine-grained structured sparse neural networks from scratch, ICLR 2021 (N of M are kept).
    """

    keep: int
    group: int

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return 1 - self.keep / self.group

    def fits(self, spec: TensorSpec) -> bool:
        """Whether M divides the inputs of a tensor."""
        return inputs_of(spec)[0] % self.group == 0


def parse_pattern(text: str) -> Pattern:
    """Read `2:4`: 2 of 4 are kept. Raises UsageError."""
    found = PATTERN.fullmatch(text.strip())
    if not found:
        raise UsageError(f"--pattern {inert(text)!r}: write N:M, such as 2:4, which keeps 2 of every 4 weights")
    keep, group = int(found[1]), int(found[2])
    if not 0 < keep < group:
        raise UsageError(f"--pattern {keep}:{group}: N of M weights are kept: N must be at least 1 and below M")
    return Pattern(keep, group)


def inputs_of(spec: TensorSpec) -> tuple[int, int]:
    """How many inputs a row of the matrix view has, and how many weights each: [out, in, kh, kw] has in and kh * kw."""
    columns = spec.matrix[1]
    inner = 1 if len(spec.shape) < 3 or spec.is_fused else max(1, columns // max(spec.shape[1], 1))
    return columns // inner, inner
