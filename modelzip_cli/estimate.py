"""What runs of `ecq` and `lossless` would write, from samples: for the front and for `inspect --stats`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace

from modelzip_cli.coders.lossless import pack
from modelzip_cli.output import file_container, planned_size
from modelzip_cli.plan import Plan, TensorPlan, plan_compression, sampled
from modelzip_cli.pruning import Masked
from modelzip_cli.recipe import Recipe
from modelzip_cli.source import Checkpoint
from modelzip_cli.tensors import Source, TensorSpec


class Estimate:
    """Plans of a native output as `recipe` says, with sizes that are close.

    `lossless`: bytes that tensors of the same checkpoint take losslessly, where they are known.
    """

    def __init__(
        self, source: Checkpoint, recipe: Recipe, executor: Executor, lossless: Mapping[str, int] | None = None
    ) -> None:
        self.source, self.recipe, self.executor = source, recipe, executor
        self.allocator = sampled(source, recipe, executor, {})
        self.container = "hf-directory" if source.container == "hf-directory" else "safetensors"
        self.lossless = dict(lossless or {})

    def plan(self, step: float | None = None) -> Plan:
        """The plan of that step of `ecq`."""
        plan = plan_compression(
            self.source,
            self.recipe,
            command="compress",
            container=file_container(self.source, self.container, self.recipe.layout),
            executor=self.executor,
            allocator=self.allocator,
            step=step,
        )
        return with_lossless_sizes(plan, self.source, self.executor, self.lossless)

    def size(self, plan: Plan) -> int:
        """Bytes of the files that it would write."""
        return planned_size(plan, self.source, self.container)


def with_lossless_sizes(
    plan: Plan, source: Checkpoint, executor: Executor, known: dict[str, int] | None = None
) -> Plan:
    """The plan with close sizes of what it stores losslessly; those found are added to `known`."""
    known = {} if known is None else known
    raw = [tensor for tensor in plan.tensors if tensor.scheme and tensor.scheme.raw and not tensor.tie]
    missing = [tensor.spec for tensor in raw if tensor.spec.name not in known]
    masks = {tensor.spec.name: tensor.pruned for tensor in raw if tensor.pruned}
    known |= lossless_sizes(Masked(source, masks) if masks else source, missing, executor)
    return replace(plan, tensors=tuple(_sized(tensor, known) for tensor in plan.tensors))


def lossless_sizes(source: Source, specs: Sequence[TensorSpec], executor: Executor) -> dict[str, int]:
    """About the bytes that tensors take losslessly, by name."""
    found = executor.map(lambda spec: _lossless_bytes(source, spec), specs)
    return dict(zip((spec.name for spec in specs), found, strict=True))


def _lossless_bytes(source: Source, spec: TensorSpec) -> int:
    """The middle slab is packed; the others are taken to be like it."""
    slabs = list(spec.unit_slabs())
    if not slabs:
        return 0
    first, last = slabs[len(slabs) // 2]
    packed = len(pack(source.read(spec.name, first, last), spec.dtype, spec.matrix[1]))
    return packed * spec.units // (last - first)


def _sized(tensor: TensorPlan, sizes: Mapping[str, int]) -> TensorPlan:
    """With its size, where it is stored losslessly."""
    if tensor.scheme is None or not tensor.scheme.raw or tensor.spec.name not in sizes:
        return tensor
    parts = (part.sized(sizes[tensor.spec.name]) if part.coded else part for part in tensor.parts)
    return replace(tensor, parts=tuple(parts))
