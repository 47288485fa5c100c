"""Recipe and specs become a plan: every decision is taken here, so that the engine asks nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.safetensors_file import METADATA
from modelzip_cli.errors import DoesNotFit, NonFinite, UnsupportedCheckpoint, UsageError, inert
from modelzip_cli.kernels import jit
from modelzip_cli.kernels.widen import widen
from modelzip_cli.layouts import Part
from modelzip_cli.layouts.dense import dense_parts
from modelzip_cli.layouts.native import native_parts
from modelzip_cli.recipe import Decision, Recipe
from modelzip_cli.schemes.base import Params, Scheme
from modelzip_cli.schemes.floats import Bf16, Fp16, Fp32
from modelzip_cli.source import Checkpoint
from modelzip_cli.tensors import Source, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

FOREVER = 512, 1 << 30  # a restored file may have this many times the bytes of the compressed one, and this many more


@dataclass(frozen=True)
class TensorPlan:
    """What one tensor gets. `tie`: the name of the tensor that this one shares its memory with, stored only there."""

    spec: TensorSpec
    scheme: Scheme | None
    reason: str
    parts: tuple[Part, ...]
    params: Params = field(default_factory=dict)
    tie: str | None = None

    @property
    def bytes_after(self) -> int:
        """Bytes of its parts; exact, because packed codes have a fixed width."""
        return 0 if self.tie else sum(part.spec.bytes for part in self.parts)


@dataclass(frozen=True)
class Plan:
    """All decisions of a run. `tensors` in file order; `dropped` are tensors beside the weights that are left out."""

    command: str
    recipe: Recipe
    container: str
    tensors: tuple[TensorPlan, ...]
    dropped: tuple[TensorSpec, ...] = ()
    outer: Outer | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def layout(self) -> str:
        """How the result is stored."""
        return self.recipe.layout

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parts, without header and manifest."""
        return sum(tensor.bytes_after for tensor in self.tensors)


def plan_compression(source: Checkpoint, recipe: Recipe, *, command: str, container: str, executor: Executor) -> Plan:
    """Decide for every tensor of `source`; fit what belongs to whole tensors, one tensor a task on `executor`.

    `container` is that of the output. Raises NonFinite unless the recipe allows such tensors to be kept.
    """
    ties = source.outer.ties if source.outer else {}
    decisions = recipe.decide(source.specs, ties)
    writes_ties = recipe.layout == "dense" and container == "safetensors"
    undecided = [
        (spec, decisions[ties.get(name, name)], None if writes_ties else ties.get(name))
        for name, spec in source.specs.items()
    ]
    jit.expect(sum(spec.size for spec, decision, tie in undecided if decision.scheme and not tie))
    tensors = list(executor.map(lambda item: _fitted(source, recipe, *item), undecided))
    return _assembled(source, recipe, tensors, command, container)


def outline(source: Checkpoint, recipe: Recipe, schemes: Mapping[str, Scheme | None], *, container: str) -> Plan:
    """The plan of a native output with these `schemes`, by name, without params: all that sizes depend on."""
    ties = source.outer.ties if source.outer else {}
    tensors = [
        TensorPlan(spec, schemes.get(ties.get(name, name)), "", (), {}, ties.get(name))
        for name, spec in source.specs.items()
    ]
    return _assembled(source, recipe, tensors, "quantize", container)


def _assembled(source: Checkpoint, recipe: Recipe, tensors: Sequence[TensorPlan], command: str, container: str) -> Plan:
    beside = [TensorPlan(spec, None, "beside the weights", ()) for spec in source.beside.values()]
    dropped: tuple[TensorSpec, ...] = ()
    if not recipe.keep_extras:
        beside, dropped = [], tuple(source.beside.values())
    planned = _with_parts([*tensors, *beside], recipe.layout, container)
    outer, warnings = outer_of(source, recipe.layout, container)
    if not any(tensor.scheme for tensor in planned):
        warnings += ("nothing to treat: every tensor is kept as it is; -v says why",)
    return Plan(command, recipe, container, tuple(planned), dropped, outer, source.metadata, source.warnings + warnings)


def plan_restore(source: Checkpoint, *, container: str, dtype: str | None, most_bytes: int | None) -> Plan:
    """Plan to write every tensor as plain values: in its own dtype, or float tensors in `dtype` (f32, f16, bf16).

    Raises UsageError when the output would pass `most_bytes`, or, without it, what an honest file can ask for.
    """
    scheme = {None: None, "f32": Fp32(), "f16": Fp16(), "bf16": Bf16()}[dtype]
    if scheme or source.compressed:
        jit.expect(sum(spec.size for spec in source.specs.values()), jit.DECODING)
    recipe = Recipe(scheme="keep" if scheme is None else str(scheme), layout="dense")
    writes_ties = container == "safetensors"
    ties = source.outer.ties if source.outer else {}
    tensors = []
    for name, spec in source.specs.items():
        cast = scheme if spec.dtype.kind == "float" and scheme and scheme.plain != spec.dtype else None
        try:
            params = _fit(source, cast, spec) if cast else {}
        except DoesNotFit as error:
            raise DoesNotFit(
                f"{source.file.label}: tensor {inert(name, longest=200)}: {error}; choose another --dtype"
            ) from None
        tie = None if writes_ties else ties.get(name)
        tensors.append(TensorPlan(spec, cast, "restored", (), params, tie))
    tensors += [TensorPlan(spec, None, "beside the weights", ()) for spec in source.beside.values()]
    outer, warnings = outer_of(source, "dense", container)
    plan = Plan(
        "restore",
        recipe,
        container,
        tuple(_with_parts(tensors, "dense", container)),
        (),
        outer,
        source.metadata,
        source.warnings + warnings,
    )
    factor, more = FOREVER
    limit = most_bytes if most_bytes is not None else factor * source.file.size + more
    if plan.stored_bytes > limit:
        raise UsageError(
            f"{source.file.label}: would restore to {plan.stored_bytes:,} bytes, more than {limit:,}; "
            "--max-output-size allows more"
        )
    return plan


def outer_of(source: Checkpoint, layout: str, container: str) -> tuple[Outer | None, tuple[str, ...]]:
    """What stands around the weights in the output, and a warning when the container has no place for it."""
    outer = source.outer
    if container == "torch" and layout == "dense":
        return outer or Outer.flat(tuple(source.specs)), ()
    if container == "safetensors" and layout == "dense":
        if outer and outer.holds_values:
            return None, ("numbers and settings beside the weights have no place in a plain safetensors file",)
        return None, ()
    return outer, ()


def _with_parts(tensors: list[TensorPlan], layout: str, container: str) -> list[TensorPlan]:
    """Name the stored arrays of every tensor; no two the same."""
    if layout == "dense":
        if container == "safetensors" and any(tensor.spec.name == METADATA for tensor in tensors):
            raise UnsupportedCheckpoint(f"tensor {METADATA}: a plain safetensors file keeps this name for itself")
        return [
            tensor if tensor.tie else replace(tensor, parts=dense_parts(tensor.spec, tensor.scheme))
            for tensor in tensors
        ]
    taken = {tensor.spec.name for tensor in tensors}
    planned = []
    for tensor in tensors:
        parts = () if tensor.tie else native_parts(tensor.spec, tensor.scheme, taken)
        taken.update(part.spec.name for part in parts)
        planned.append(replace(tensor, parts=parts))
    return planned


def _fitted(source: Checkpoint, recipe: Recipe, spec: TensorSpec, decision: Decision, tie: str | None) -> TensorPlan:
    """Turn a decision into a plan for a tensor, which may have to be kept after a look at its values."""
    scheme, reason = decision.scheme, decision.reason
    params: Params = {}
    if scheme is not None and not tie:
        if recipe.allow_nonfinite and not all(np.isfinite(block).all() for block in Blocks(source, spec)):
            scheme, reason = None, "holds NaN or infinity"
        elif scheme.fits_tensor:
            try:
                params = _fit(source, scheme, spec)
            except DoesNotFit as error:
                scheme, reason = None, str(error)
        else:
            params = scheme.fit_tensor(())
    return TensorPlan(spec, scheme, reason, (), params, tie)


def _fit(source: Source, scheme: Scheme, spec: TensorSpec) -> Params:
    return scheme.fit_tensor(Blocks(source, spec)) if scheme.fits_tensor else {}


class Blocks:
    """The slabs of a tensor as float32 blocks, read anew each time they are gone through."""

    def __init__(self, source: Source, spec: TensorSpec) -> None:
        self._source, self._spec = source, spec

    def __iter__(self) -> Iterator[Block]:
        for first, last in self._spec.row_slabs():
            yield read_block(self._source, self._spec, first, last)


def read_block(source: Source, spec: TensorSpec, first: int, last: int) -> Block:
    """Rows [first, last) of a tensor of a float dtype as float32 [rows, columns]."""
    columns = spec.matrix[1]
    bits = source.read(spec.name, first * columns, last * columns)
    return widen(bits.reshape(last - first, columns), spec.dtype)


def refuse_nonfinite(source: Checkpoint, spec: TensorSpec) -> NonFinite:
    """Look for what is not finite in a tensor and say where."""
    for first, last in spec.row_slabs():
        block = read_block(source, spec, first, last)
        bad = np.argwhere(~np.isfinite(block))
        if len(bad):
            row, column = bad[0]
            value = block[row, column]
            what = "NaN" if np.isnan(value) else "infinity" if spec.dtype.bits < 64 else "a value outside float32"
            return NonFinite(
                f"{source.file.label}: tensor {inert(spec.name, longest=200)} holds {what} "
                f"(first at row {first + row}, column {column}); --allow-nonfinite keeps such tensors as they are"
            )
    raise AssertionError(f"{spec.name} is finite")
