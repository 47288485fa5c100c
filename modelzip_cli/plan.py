"""Recipe and specs become a plan: every decision is taken here, so that the engine asks nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from modelzip_cli.allocate import Allocation, Allocator, weighted
from modelzip_cli.blocks import Blocks, read_block, refuse_nonfinite
from modelzip_cli.coders.rans import coded_bytes, pack_vector
from modelzip_cli.coders.tables import Tables
from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.safetensors_file import METADATA
from modelzip_cli.errors import DoesNotFit, UnsupportedCheckpoint, UsageError, inert
from modelzip_cli.feedback import Feedbacks
from modelzip_cli.informed import by_sensitivity, feeds_back, for_statistics, refuse_useless
from modelzip_cli.kernels import jit
from modelzip_cli.kernels.rans import LANES
from modelzip_cli.layouts import Part
from modelzip_cli.layouts.dense import dense_parts
from modelzip_cli.layouts.native import BITPACK, LOSSLESS, RANS, native_parts
from modelzip_cli.pruning import Masked, Masks, Pruned, find_masks
from modelzip_cli.recipe import Decision, Recipe
from modelzip_cli.sampling import sample_all
from modelzip_cli.schemes.base import Codes, Params, Scheme
from modelzip_cli.schemes.ecq import Ecq
from modelzip_cli.schemes.floats import Bf16, Fp16, Fp32
from modelzip_cli.schemes.lossless import Lossless
from modelzip_cli.source import Checkpoint
from modelzip_cli.tensors import Source, Statistics, TensorSpec

WORTH = 0.15  # what entropy coding has to save of a tensor, which it makes slower to read
CODER_SAMPLE = 64 * 1024  # weights that are looked at to know
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
    coder: str | None = None
    tables: int | None = None  # of the plan's sets
    guess: int | None = None  # bytes that coded codes are expected to take
    rows: Params = field(default_factory=dict)  # what `fit_rows` would find in all rows, where that is known
    pruned: Pruned | None = None
    feedback: Feedbacks | None = None  # where errors of a column are passed on to those after it
    owner: TensorSpec | None = None  # of a tie that is written out: what becomes of the weights is decided by its name

    @property
    def decided_as(self) -> TensorSpec:
        """The tensor whose name decides: its own, or the owner of a tie, which has the same weights."""
        return self.owner or self.spec

    @property
    def bytes_after(self) -> int:
        """Bytes of its parts; those of coded parts are a guess until the tensor is written."""
        return 0 if self.tie else sum(part.spec.bytes for part in self.parts)

    @property
    def treated(self) -> bool:
        """Whether it was asked for: what is only stored losslessly because it is kept is not."""
        return self.pruned is not None or (self.scheme is not None and not (self.scheme.raw and bool(self.reason)))

    @property
    def lossy(self) -> bool:
        """Whether its weights may change."""
        return self.pruned is not None or (self.scheme is not None and not self.scheme.raw)


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
    tables: tuple[Tables, ...] = ()
    prices: tuple[Any, ...] = ()  # of each set of tables, for the encoder
    aid: Mapping[str, Any] | None = None  # what running a model gave, which source and recipe alone do not give again

    @property
    def layout(self) -> str:
        """How the result is stored."""
        return self.recipe.layout

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parts, without header and manifest."""
        return sum(tensor.bytes_after for tensor in self.tensors)


def plan_compression(
    source: Checkpoint,
    recipe: Recipe,
    *,
    command: str,
    container: str,
    executor: Executor,
    masks: Masks | None = None,
    allocator: Allocator | None = None,
    step: float | None = None,
    statistics: Statistics | None = None,
) -> Plan:
    """Decide for every tensor of `source`; fit what belongs to whole tensors, one tensor a task on `executor`.

    `container` is that of the output; `step` that of `ecq` tensors without one of their own; `masks` and `allocator`
    are what `masks_of` and `sampled` made of the source; with Hessians among the `statistics` weights are rounded with
    feedback. Raises NonFinite unless the recipe allows keeping those, UsageError where `statistics` are of no use.
    """
    decisions = recipe.decide(source.specs, _ties(source))
    masks = masks_of(source, recipe, executor, statistics) if masks is None else masks
    allocator = allocator or sampled(source, recipe, executor, masks, statistics)
    allocation = allocator.at(step or 1.0) if allocator.sampled else None
    undecided = [
        (spec, decisions[owner.name], tie, owner)
        for name, spec, tie in _stored(source, recipe, container)
        for owner in (source.specs[_ties(source).get(name, name)],)
    ]
    jit.expect(sum(spec.size for spec, decision, tie, _ in undecided if decision.scheme and not tie))
    seen = Masked(source, masks) if masks else source
    tensors = list(executor.map(lambda item: _fitted(seen, recipe, allocation, masks, *item), undecided))
    tensors = _with_feedback(tensors, masks, statistics)
    if statistics is not None:
        fed = any(tensor.feedback or (isinstance(tensor.scheme, Ecq) and tensor.scheme.columns) for tensor in tensors)
        searched = [each.spec for each in allocator.sampled]
        refuse_useless(statistics, recipe, [tensor.scheme for tensor in tensors], searched, fed)
    plan = _assembled(source, recipe, tensors, command, container)
    if allocation:
        plan = replace(plan, tables=allocation.tables, prices=allocation.prices)
    return plan


def _with_feedback(tensors: list[TensorPlan], masks: Masks, statistics: Statistics | None) -> list[TensorPlan]:
    """The tensors, those that are rounded with feedback marked."""
    if statistics is None:
        return tensors
    feedbacks = Feedbacks(statistics)
    return [
        replace(tensor, feedback=feedbacks)
        if tensor.scheme and not tensor.tie and feeds_back(tensor.decided_as, tensor.scheme, masks, statistics)
        else tensor
        for tensor in tensors
    ]


def masks_of(source: Checkpoint, recipe: Recipe, executor: Executor, statistics: Statistics | None = None) -> Masks:
    """What `recipe` prunes of the tensors of `source`, by the first name of a tie."""
    if recipe.pruning is None:
        return {}
    decisions = recipe.decide(source.specs, _ties(source))
    chosen = [(source.specs[name], decision.amount) for name, decision in decisions.items() if decision.pruned]
    return find_masks(
        source, chosen, recipe.pruning, executor, allow_nonfinite=recipe.allow_nonfinite, statistics=statistics
    )


def sampled(
    source: Checkpoint, recipe: Recipe, executor: Executor, masks: Masks, statistics: Statistics | None = None
) -> Allocator:
    """Go once through the tensors that `recipe` gives `ecq`, as they are once pruned."""
    decisions = recipe.decide(source.specs, _ties(source))
    seen = Masked(source, masks) if masks else source
    treated = [(source.specs[name], one.scheme) for name, one in decisions.items() if isinstance(one.scheme, Ecq)]
    chosen = [for_statistics(spec, scheme, masks, statistics) for spec, scheme in treated]
    jit.expect(sum(spec.size for spec, _ in treated), jit.SEARCHING)
    found = sample_all(chosen, lambda spec, first, last: read_block(seen, spec, first, last), executor)
    if not recipe.allow_nonfinite:
        for each in found:
            if not each.finite:
                raise refuse_nonfinite(source, each.spec)
    found = [each for each in found if each.finite]
    found = [replace(each, fed=feeds_back(each.spec, each.scheme, masks, statistics)) for each in found]
    if statistics is not None and by_sensitivity(recipe):
        found = weighted(found, statistics, lambda name: recipe.is_named(name, source.specs))
    return Allocator(found, executor)


def _ties(source: Checkpoint) -> Mapping[str, str]:
    return source.outer.ties if source.outer else {}


def _stored(source: Checkpoint, recipe: Recipe, container: str) -> Iterator[tuple[str, TensorSpec, str | None]]:
    """Names, specs and owners: every name of a tie is written out where the output knows no ties."""
    writes_ties = recipe.layout == "dense" and container == "safetensors"
    for name, spec in source.specs.items():
        yield name, spec, None if writes_ties else _ties(source).get(name)


def outline(
    source: Checkpoint,
    recipe: Recipe,
    schemes: Mapping[str, Scheme | None],
    coders: Mapping[str, tuple[str, int | None]],
    *,
    container: str,
) -> Plan:
    """The plan of a native output with these `schemes` and `coders`, by name, without params: all that sizes depend on.

    A coder comes with the bytes that entropy-coded codes are expected to take.
    """
    ties = source.outer.ties if source.outer else {}
    tensors = []
    for name, spec in source.specs.items():
        scheme, tie = schemes.get(ties.get(name, name)), ties.get(name)
        coder, guess = coders.get(name, (None, None)) if scheme and scheme.plain is None else (None, None)
        tensors.append(TensorPlan(spec, scheme, "", (), {}, tie, coder, None, guess))
    return _assembled(source, recipe, tensors, "quantize", container)


def _assembled(source: Checkpoint, recipe: Recipe, tensors: Sequence[TensorPlan], command: str, container: str) -> Plan:
    beside = [TensorPlan(spec, None, "beside the weights", ()) for spec in source.beside.values()]
    dropped: tuple[TensorSpec, ...] = ()
    if not recipe.keep_extras:
        beside, dropped = [], tuple(source.beside.values())
    planned = _with_parts([*tensors, *beside], recipe.layout, container)
    outer, warnings = outer_of(source, recipe.layout, container)
    if recipe.depth is None and not any(tensor.treated for tensor in planned):
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
        parts = () if tensor.tie else _native(tensor, taken)
        taken.update(part.spec.name for part in parts)
        planned.append(replace(tensor, parts=parts))
    return planned


def _fitted(
    source: Source,
    recipe: Recipe,
    allocation: Allocation | None,
    masks: Masks,
    spec: TensorSpec,
    decision: Decision,
    tie: str | None,
    owner: TensorSpec,
) -> TensorPlan:
    """Turn a decision into a plan for a tensor, which may have to be kept after a look at its values."""
    pruned = masks.get(owner.name)
    found = _stored_as(source, recipe, allocation, spec, decision, tie, pruned, owner)
    return replace(found, pruned=pruned, owner=None if owner == spec or tie else owner)


def _stored_as(
    source: Source,
    recipe: Recipe,
    allocation: Allocation | None,
    spec: TensorSpec,
    decision: Decision,
    tie: str | None,
    pruned: Pruned | None,
    owner: TensorSpec,
) -> TensorPlan:
    scheme, reason = decision.scheme, decision.reason
    params: Params = {}
    if decision.pruned and pruned is None:
        reason = "holds NaN or infinity"  # such tensors have no mask
    if isinstance(scheme, Ecq):
        return _allocated(recipe, allocation, spec, reason, tie, owner.name)
    if scheme is not None and scheme.raw:
        return TensorPlan(spec, scheme, reason, (), {}, tie, LOSSLESS)
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
    chosen, guess = None, None
    if scheme is not None and scheme.plain is None and not tie:
        chosen, guess = _coder(source, recipe, spec, scheme, params)
    return TensorPlan(spec, scheme, reason, (), params, tie, chosen, None, guess)


def _allocated(
    recipe: Recipe, allocation: Allocation | None, spec: TensorSpec, reason: str, tie: str | None, owner: str
) -> TensorPlan:
    """What the allocation gives a tensor of `ecq`; one that would not get smaller by it is kept."""
    kept = Lossless() if recipe.layout == "native" else None
    if allocation is None or owner not in allocation.scheme:
        return TensorPlan(spec, kept, "holds NaN or infinity", (), {}, tie, LOSSLESS if kept else None)
    if not allocation.fits[owner]:
        reason = f"its largest weights are at the end of {spec.dtype}"
        return TensorPlan(spec, kept, reason, (), {}, tie, LOSSLESS if kept else None)
    if allocation.bytes[owner] >= spec.bytes and recipe.layout == "native":
        return TensorPlan(spec, kept, "would not get smaller", (), {}, tie, LOSSLESS)
    params, number = allocation.params[owner], allocation.set_of[owner]
    coded = [name for name, one in allocation.scheme[owner].param_specs(spec.matrix[1]).items() if one.coded]
    guess = max(0, allocation.bytes[owner] - sum(len(pack_vector(params[name][0])) for name in coded) - 4)
    rows = {} if tie else allocation.row_params(owner)
    return TensorPlan(spec, allocation.scheme[owner], reason, (), params, tie, RANS, number, guess, rows)


def _coder(source: Source, recipe: Recipe, spec: TensorSpec, scheme: Scheme, params: Params) -> tuple[str, int | None]:
    """The coder of a scheme with a closed range, and about how many bytes entropy-coded codes will take."""
    if recipe.coder == BITPACK or recipe.layout != "native":
        return BITPACK, None
    rows, columns = spec.matrix
    count = min(rows, max(1, CODER_SAMPLE // max(columns, 1)))
    first = (rows - count) // 2
    block = read_block(source, spec, first, first + count)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        codes = scheme.encode(block, {**params, **scheme.fit_rows(block, params)})
    return choose_coder(recipe, spec, scheme, codes)


def choose_coder(recipe: Recipe, spec: TensorSpec, scheme: Scheme, codes: Codes) -> tuple[str, int | None]:
    """The same from the codes of some rows."""
    (rows, columns), count = spec.matrix, len(codes)
    packed = rows * -(-columns * scheme.bits // 8)
    coded = coded_bytes(codes, scheme.bits) * rows / count if count else 0.0
    coded += sum(1 for _ in spec.row_slabs()) * 4 * min(LANES, columns)
    saved = packed - coded
    worth = recipe.coder == RANS or saved >= WORTH * scheme.stored_bytes(rows, columns)
    return (RANS, int(coded)) if worth else (BITPACK, None)


def _native(tensor: TensorPlan, taken: set[str]) -> tuple[Part, ...]:
    """The native parts of a tensor, with the sizes that are known or expected."""
    parts = []
    for part in native_parts(tensor.spec, tensor.scheme, tensor.coder, taken):
        size = tensor.guess if part.per_row else None
        if part.coded and not part.per_row and part.local in tensor.params:
            size = len(pack_vector(tensor.params[part.local].reshape(-1)))
        parts.append(part if not part.coded or size is None else part.sized(size))
    return tuple(parts)


def _fit(source: Source, scheme: Scheme, spec: TensorSpec) -> Params:
    return scheme.fit_tensor(Blocks(source, spec)) if scheme.fits_tensor else {}
