"""The engine: plan x source -> sink. Reads each weight once, transforms it once, writes it once.

Workers read, encode and measure slabs; this thread writes them in order. A window of twice as many slabs as workers is
in flight, so memory does not depend on the model. Restoring is the same engine with treatment `keep`, layout `dense`.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from modelzip_cli.blocks import refuse_nonfinite
from modelzip_cli.coders.lossless import pack as pack_bits
from modelzip_cli.compare import Errors
from modelzip_cli.errors import DoesNotFit, inert
from modelzip_cli.kernels import jit
from modelzip_cli.kernels.sums import SLAB_LANES, ErrorSums, Sums
from modelzip_cli.kernels.widen import narrow, rounded, widen
from modelzip_cli.layouts.native import CODES, LOSSLESS, RANS, Record, encode_parts, slab_count, slabs
from modelzip_cli.layouts.native_source import NativeSource
from modelzip_cli.plan import Plan, TensorPlan
from modelzip_cli.pruning import pruned_bits
from modelzip_cli.report import finite, significant
from modelzip_cli.source import Checkpoint, files_of
from modelzip_cli.tensors import ArraySink, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.schemes.base import Codes, Params, Scheme
    from modelzip_cli.tensors import Bits, Block, DType

Progress = Callable[[int], None]  # told how many source bytes are done
KEEP_FREED_BYTES = 64 << 20  # runs that write more than this are worth a call of the C library
PIECE_WEIGHTS = 128 * 1024  # that are decoded or widened at a time to see what was lost; a multiple of SLAB_LANES
FEEDBACK_UNITS = 4 << 20  # weights that are rounded with feedback together
TASK_UNITS = 128 * 1024  # slabs of small tensors are bundled up to this size: a task costs some 50 us


@dataclass(frozen=True)
class Slab:
    """A piece of a tensor: rows [first, last) when it is treated, raw units [first, last) when it is kept."""

    tensor: TensorPlan
    first: int
    last: int

    @property
    def units(self) -> int:
        """How much work it is."""
        by_units = self.tensor.scheme is None or self.tensor.scheme.raw
        return (self.last - self.first) * (1 if by_units else self.tensor.spec.matrix[1])


@dataclass(frozen=True)
class Encoded:
    """A slab as it is stored: bytes and CRC-32 by local part name, and the sums for the error figures."""

    slab: Slab
    parts: Mapping[str, tuple[memoryview, int]]
    sums: Sums | None


@dataclass
class Outcome:
    """What a run found out: checksums and error sums by tensor."""

    crc32: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    sums: dict[str, list[Sums]] = field(default_factory=dict)
    sizes: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def add(self, encoded: Encoded) -> None:
        """Take in one slab."""
        name = encoded.slab.tensor.spec.name
        for local, (data, crc) in encoded.parts.items():
            self.crc32.setdefault(name, {}).setdefault(local, []).append(crc)
            self.sizes.setdefault(name, {}).setdefault(local, []).append(data.nbytes)
        if encoded.sums is not None:
            self.sums.setdefault(name, []).append(encoded.sums)

    def errors(self, tensor: TensorPlan) -> Errors | None:
        """The error of a tensor whose weights may change; None for the others."""
        if not tensor.lossy:
            return None
        return Errors.of(tensor.spec.size, self.sums.get(tensor.spec.name, []))

    def settled(self, plan: Plan) -> Plan:
        """The plan with the sizes that coded parts came to have."""
        tensors = []
        for tensor in plan.tensors:
            sizes = self.sizes.get(tensor.spec.name, {})
            parts = (part.sized(sum(sizes.get(part.local, []))) if part.coded else part for part in tensor.parts)
            tensors.append(replace(tensor, parts=tuple(parts)))
        return replace(plan, tensors=tuple(tensors))

    def records(self, plan: Plan) -> list[Record]:
        """The manifest entries of all tensors that are stored."""
        return [
            Record(
                tensor.spec,
                tensor.scheme,
                tensor.parts,
                {part.local: tuple(self.crc32.get(tensor.spec.name, {}).get(part.local, ())) for part in tensor.parts},
                _figures(self.errors(tensor)),
                tensor.coder,
                {local: tuple(sizes) for local, sizes in self.sizes.get(tensor.spec.name, {}).items()},
                tensor.tables,
            )
            for tensor in plan.tensors
            if not tensor.tie
        ]


def _figures(errors: Errors | None) -> dict[str, Any]:
    """The error figures as the manifest holds them; rounded, so that their width is bounded."""
    if errors is None:
        return {}
    return {
        "sqnr_db": finite(errors.sqnr_db, 4),
        "cosine": finite(errors.cosine, 8),
        "max_abs_error": significant(errors.max_abs_error),
        "sparsity": finite(errors.sparsity, 6),
    }


WIDEST = {"sqnr_db": -1234.1234, "cosine": -0.12345678, "max_abs_error": 1.23456e-300, "sparsity": 0.123456}


def widest_records(plan: Plan) -> list[Record]:
    """Manifest entries as wide as any that `plan` can lead to: what the header's space is reserved from."""

    def zeros(tensor: TensorPlan) -> dict[str, tuple[int, ...]]:
        return {part.local: (0,) * slab_count(tensor.spec, tensor.scheme, part) for part in tensor.parts}

    return [
        Record(
            tensor.spec,
            tensor.scheme,
            tensor.parts,
            zeros(tensor),
            WIDEST if tensor.lossy else {},
            tensor.coder,
            zeros(tensor),
            tensor.tables,
        )
        for tensor in plan.tensors
        if not tensor.tie
    ]


def run(
    plan: Plan,
    source: Checkpoint,
    sink: ArraySink,
    *,
    jobs: int,
    executor: Executor,
    progress: Progress = lambda _: None,
) -> Outcome:
    """Carry out `plan`: encode every tensor of `source` and write it to `sink`.

    `executor` has `jobs` threads. Raises NonFinite for a treated tensor with NaN or infinity, and what reading and
    writing raise.
    """
    if plan.stored_bytes > KEEP_FREED_BYTES:
        keep_freed_memory()
    outcome, room = Outcome(), _Room(plan, sink)
    for encoded in _in_order(executor, _tasks(plan, source), window=2 * jobs):
        tensor = encoded.slab.tensor
        places = room.of(tensor)
        for part in tensor.parts:
            if part.local in encoded.parts:
                data, crc = encoded.parts[part.local]
                sink.write(part.spec.name, places[part.local], data, crc)
                places[part.local] += data.nbytes
        outcome.add(encoded)
        progress(encoded.slab.units * tensor.spec.dtype.unit_bytes)
    room.of_the_rest()
    return outcome


class _Room:
    """Makes room in the sink for the tensors of a plan, in their order, and knows where the next slab goes."""

    def __init__(self, plan: Plan, sink: ArraySink) -> None:
        self._waiting, self._sink = deque(plan.tensors), sink
        self._current: TensorPlan | None = None
        self._places: dict[str, int] = {}

    def of(self, tensor: TensorPlan) -> dict[str, int]:
        """Byte offsets in the parts of `tensor`, by local name; tensors before it that have no slabs are begun too."""
        while self._current is not tensor:
            self._begin_next()
        return self._places

    def of_the_rest(self) -> None:
        """Begin the tensors that are left: those without slabs at the end."""
        while self._waiting:
            self._begin_next()
        self._finish()

    def _finish(self) -> None:
        """Tell the sink how long the last part has become; only the last one of a tensor is not known before."""
        for part in self._current.parts if self._current and not self._current.tie else ():
            if part.coded:
                self._sink.resize(part.spec.name, self._places[part.local])

    def _begin_next(self) -> None:
        self._finish()
        self._current = self._waiting.popleft()
        parts = () if self._current.tie else self._current.parts
        self._places = {part.local: 0 for part in parts}
        for part in parts:
            self._sink.begin(part.spec)


def keep_freed_memory() -> None:
    """Ask glibc to keep the blocks of finished slabs for the next ones instead of giving them back to the system.

    A slab needs some 9 MB, and getting fresh pages for it costs more than quantizing it: int4 of 2 GB takes 2.7 s of
    system time without this call and 0.9 s with it (docs/decisions.md). Other C libraries are left as they are.
    """
    import ctypes

    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        library.mallopt(mmap_threshold, 64 << 20)
        library.mallopt(trim_threshold, 256 << 20)
        library.mallopt(top_pad, 16 << 20)


def _tasks(plan: Plan, source: Checkpoint) -> Iterator[Callable[[], list[Encoded]]]:
    """The work in file order, slabs of small tensors bundled, and those that are rounded with feedback together."""
    bundle: list[Slab] = []
    for slab in _slabs(plan, source):
        if bundle and sum(other.units for other in bundle) + slab.units > _most_units(bundle[-1].tensor, slab.tensor):
            yield _Task(plan, source, tuple(bundle))
            bundle = []
        bundle.append(slab)
    if bundle:
        yield _Task(plan, source, tuple(bundle))


def _most_units(tensor: TensorPlan, following: TensorPlan) -> int:
    """How much work a bundle may be that ends with a slab of `tensor`, if one of `following` comes next."""
    if tensor.feedback is None and following.feedback is None:
        return TASK_UNITS
    together = tensor is following and not (tensor.scheme and tensor.scheme.tall)  # tall slabs are paths of their own
    return FEEDBACK_UNITS if together else 0


def _slabs(plan: Plan, source: Checkpoint) -> Iterator[Slab]:
    for tensor in plan.tensors:
        if tensor.tie:
            continue
        cuts = slabs(tensor.spec, tensor.scheme)
        if plan.layout == "dense" and tensor.scheme is None:
            cuts = _pieces(source, tensor.spec)
        for first, last in cuts:
            yield Slab(tensor, first, last)


def _pieces(source: Checkpoint, spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """The pieces in which a tensor is read most cheaply: what was coded as a slab is decoded as one."""
    for file in files_of(source):
        if isinstance(file, NativeSource) and (spec.name in file.specs or spec.name in file.beside):
            return file.pieces(spec.name)
    return spec.unit_slabs()


@dataclass(frozen=True)
class _Task:
    plan: Plan
    source: Checkpoint
    slabs: tuple[Slab, ...]

    def __call__(self) -> list[Encoded]:
        summed = self.plan.layout != "dense" or self.plan.container != "safetensors"  # a file without any checksum
        if self.slabs[0].tensor.feedback is None:
            return [encode(slab, self.source, self.plan, summed=summed) for slab in self.slabs]
        first, codes = self.slabs[0].first, self._codes_with_feedback()
        rows = [codes[slab.first - first : slab.last - first] for slab in self.slabs]
        return [
            encode(s, self.source, self.plan, summed=summed, codes=c) for s, c in zip(self.slabs, rows, strict=True)
        ]

    def _codes_with_feedback(self) -> Codes:
        """The codes of all slabs, which are of one tensor: a sweep over its columns costs little more for more rows."""
        tensor, first, last = self.slabs[0].tensor, self.slabs[0].first, self.slabs[-1].last
        scheme, columns = tensor.scheme, tensor.spec.matrix[1]
        assert tensor.feedback is not None
        assert scheme is not None
        block = widen(
            _read(self.source, tensor, first * columns, last * columns)[1].reshape(-1, columns), tensor.spec.dtype
        )
        prices = None if tensor.tables is None else self.plan.prices[tensor.tables]
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # what is not finite is found by `encode`
            return tensor.feedback.of(tensor.decided_as).codes(
                scheme, block, _params(tensor, block, first, last), prices
            )


def _in_order(executor: Executor, tasks: Iterable[Callable[[], list[Encoded]]], *, window: int) -> Iterator[Encoded]:
    """Run tasks on the executor, `window` of them at a time, and yield their results in order."""
    waiting: deque[Future[list[Encoded]]] = deque()
    try:
        for task in tasks:
            waiting.append(executor.submit(task))
            if len(waiting) >= window:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _params(tensor: TensorPlan, block: Block, first: int, last: int) -> Params:
    """The params of rows [first, last), whose weights are `block`."""
    assert tensor.scheme is not None
    rows = {name: values[first:last] for name, values in tensor.rows.items()}
    return {**tensor.params, **(rows or tensor.scheme.fit_rows(block, tensor.params))}


def encode(slab: Slab, source: Checkpoint, plan: Plan, *, summed: bool = True, codes: Codes | None = None) -> Encoded:
    """Read a slab, treat it, measure what was lost and make the bytes of its parts. Runs on any thread.

    Without `summed`, checksums are 0: nobody will look at them. `codes`: those of its weights, where they are known.
    """
    tensor = slab.tensor
    spec, scheme = tensor.spec, tensor.scheme
    if tensor.coder in (RANS, LOSSLESS) and plan.layout == "native":
        jit.expect(slab.units, jit.CODED)
    columns = spec.matrix[1]
    width = 1 if scheme is None or scheme.raw else columns
    bits, kept = _read(source, tensor, slab.first * width, slab.last * width)
    if scheme is None or scheme.raw:
        sums = None
        if tensor.pruned:
            sums = _errors_of_bits(bits, kept, spec.dtype)
            if not Errors(bits.size, sums).finite:
                raise refuse_nonfinite(source, spec)
        if scheme is None:
            return Encoded(slab, {tensor.parts[0].local: _stored(kept, summed)}, sums)
        return Encoded(slab, {CODES: _stored(pack_bits(kept, spec.dtype, columns), summed)}, sums)
    tables, prices = (None, None) if tensor.tables is None else (plan.tables[tensor.tables], plan.prices[tensor.tables])
    block, target = (widen(each.reshape(-1, columns), spec.dtype) for each in (bits, kept))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # what is not finite is found below
        params = _params(tensor, target, slab.first, slab.last)
        codes = scheme.encode(target, params, prices) if codes is None else codes
        dtype = scheme.plain or spec.dtype
        restored = np.empty(block.shape, dtype.unit) if plan.layout == "dense" else None
        sums = _errors(block, codes, params, scheme, dtype, restored)
    if not Errors(block.size, sums).finite:
        if np.isfinite(block).all():
            raise DoesNotFit(f"{source.file.label}: tensor {inert(spec.name)} does not fit {scheme} in {dtype}")
        raise refuse_nonfinite(source, spec)
    if restored is not None:
        return Encoded(slab, {tensor.parts[0].local: _stored(restored, summed)}, sums)
    del block  # coding needs the memory
    parts = {
        local: _stored(bits, summed)
        for local, bits in encode_parts(scheme, codes, params, tensor.coder, tables).items()
        if slab.first == 0 or next(part for part in tensor.parts if part.local == local).per_row
    }
    return Encoded(slab, parts, sums)


def _read(source: Checkpoint, tensor: TensorPlan, start: int, stop: int) -> tuple[Bits, Bits]:
    """The units [start, stop) as they are, and as they are to be stored."""
    if tensor.pruned is not None:
        return pruned_bits(source, tensor.decided_as, tensor.pruned.mask, start, stop)
    bits = source.read(tensor.spec.name, start, stop)
    return bits, bits


def _errors(block: Block, codes: Codes, params: Params, scheme: Scheme, dtype: DType, restored: Bits | None) -> Sums:
    """Decode the codes of `block`, a piece at a time, which stays in the cache; fill `restored` if it is given."""
    rows, columns = block.shape
    unit = SLAB_LANES // math.gcd(SLAB_LANES, max(columns, 1))
    height = max(1, PIECE_WEIGHTS // max(columns, 1) // unit) * unit
    found = ErrorSums()
    for first in range(0, rows, height):
        part = slice(first, first + height)
        local = {name: values[part] if len(values) == rows else values for name, values in params.items()}
        values = rounded(scheme.decode(codes[part], local), dtype)
        found.add(block[part].reshape(-1), values.reshape(-1))
        if restored is not None:
            restored[part] = narrow(values, dtype)
    return found.sums


def _errors_of_bits(before: Bits, after: Bits, dtype: DType) -> Sums:
    """The errors of raw units [n] once they are changed into others, widened a piece at a time as above."""
    found = ErrorSums()
    for first in range(0, len(before), PIECE_WEIGHTS):
        pieces = (each[first : first + PIECE_WEIGHTS].reshape(1, -1) for each in (before, after))
        found.add(*(widen(piece, dtype).reshape(-1) for piece in pieces))
    return found.sums


def _stored(bits: Bits, summed: bool) -> tuple[memoryview, int]:
    """Bytes and their CRC-32."""
    data = np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data
    return data, zlib.crc32(data) if summed else 0
