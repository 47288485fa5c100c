"""Plain tensors under their own names, in the container and the dtypes of the source: a drop-in for any loader."""

from __future__ import annotations

from modelzip_cli.layouts import Part
from modelzip_cli.schemes.base import Scheme
from modelzip_cli.tensors import TensorSpec

WEIGHTS = "weights"  # the one part of a dense tensor


def dense_parts(spec: TensorSpec, scheme: Scheme | None) -> tuple[Part, ...]:
    """The decoded weights, in the dtype of the scheme where it is a plain dtype, else in that of the source."""
    dtype = scheme.plain if scheme is not None and scheme.plain is not None else spec.dtype
    return (Part(WEIGHTS, TensorSpec(spec.name, dtype, spec.shape)),)
