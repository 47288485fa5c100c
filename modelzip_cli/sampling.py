"""A sample of the tensors that `ecq` treats, and what a step makes of it.

One pass over a tensor takes the energies of its rows and columns, which make the classes of all weights known, and
keeps some columns of some slabs. A step is tried on these alone; its counts are scaled class by class, since it is
the class that tells how many bits a weight takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.coders.rans import count_points
from modelzip_cli.coders.tables import RATES, Tables, from_counts
from modelzip_cli.kernels.rans import LANES
from modelzip_cli.kernels.sums import energies, error_sums
from modelzip_cli.kernels.widen import narrow, widen
from modelzip_cli.schemes.base import Params
from modelzip_cli.schemes.ecq import CLASSES, LEAST_STEP, Ecq, along_rows
from modelzip_cli.tensors import F32, DType, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits, Block

SAMPLED = 4 << 20  # weights of all tensors together
LEAST_LANES = 32
TILE_WEIGHTS = 32 * 1024  # a tile costs about as much again as trying so many weights: few large ones are quicker
PIECE_WEIGHTS = 128 * 1024  # that are read at a time, so that they stay in the cache
COARSE = 1.1  # times the root mean square: some 3.5 dB
CHANCE = 1.0  # bits of a sample for a frequency: by half of it tables that were learnt gain too much, by half they lose

Treated = tuple[TensorSpec, Ecq, "NDArray[np.uint8] | None"]  # with the steps of its columns, where they have their own
Read = Callable[[TensorSpec, int, int], "Block"]


@dataclass(frozen=True)
class Tile:
    """A part of a slab [first, last): `bits` has its columns (or, with paths along the rows, its rows) from `left`."""

    first: int
    last: int
    left: int
    bits: Bits  # of `Sampled.dtype`


@dataclass(frozen=True)
class Sampled:
    """What one pass over a tensor left: sums of squares of all, of rows and of columns, the tiles, the largest |w|."""

    spec: TensorSpec
    scheme: Ecq
    total: float
    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    tiles: tuple[Tile, ...]
    largest: float = 0.0
    factor: float = 1.0  # of the common step: how coarse this tensor may be beside the others
    fed: bool = False  # it is rounded with feedback, which spends the SQNR of weights on the outputs
    column_step: NDArray[np.uint8] | None = None  # with them, all that is held here is relative to the columns' factors

    @property
    def rms(self) -> float:
        """The root mean square of the weights."""
        return math.sqrt(self.total / self.spec.size) if self.spec.size else 0.0

    def own_step(self, step: float) -> float:
        """Its step, where the common one is `step`; not so coarse that next to nothing would be left of it."""
        return min(max(step * self.factor, LEAST_STEP), max(step, COARSE))

    @property
    def finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        return math.isfinite(self.total)

    @property
    def dtype(self) -> DType:
        """How the weights of the tiles are held."""
        return _held(self.spec, self.scheme)

    @property
    def mean_squares(self) -> NDArray[np.float64]:
        """Of the rows."""
        return self.rows / self.spec.matrix[1]


@dataclass(frozen=True)
class Trial:
    """One tensor at one step: params; symbols counted in the tiles, scaled to the tensor; bytes beside its symbols."""

    params: Params
    scheme: Ecq
    counts: NDArray[np.int64]  # [tables, 256]
    population: NDArray[np.int64]  # weights of each class
    beside: float
    signal: float
    noise: float
    scale: float = 1.0  # weights of the tensor over those of its tiles

    @property
    def chance(self) -> float:
        """Bits by which tables that were learnt from the tiles do better on these than on the whole tensor."""
        return CHANCE * (self.scale - 1) * np.count_nonzero(self.counts)


def _held(spec: TensorSpec, scheme: Ecq) -> DType:
    return spec.dtype if spec.dtype.bits == 16 and not scheme.columns else F32


def sample(spec: TensorSpec, scheme: Ecq, share: float, read: Callable[[int, int], Block]) -> Sampled:
    """Go through a tensor once, keeping about `share` of it. `read` gives rows [first, last) as float32."""
    rows, columns = np.zeros(spec.matrix[0]), np.zeros(spec.matrix[1])
    total, largest, tiles, dtype = 0.0, 0.0, [], _held(spec, scheme)
    height = max(1, PIECE_WEIGHTS // max(1, spec.matrix[1]))
    slabs = list(spec.row_slabs(tall=True))
    tiled = _some(len(slabs), len(slabs) if share >= 1 else share * spec.size / TILE_WEIGHTS)
    for number, (first, last) in enumerate(slabs):
        turned = along_rows(last - first, spec.matrix[1])
        lanes = last - first if turned else spec.matrix[1]
        wanted = math.ceil(share * len(slabs) / len(tiled) * lanes / LEAST_LANES) * LEAST_LANES
        kept = min(lanes, max(LEAST_LANES, wanted)) if number in tiled else 0
        left = number * 7 * kept % (lanes - kept + 1)
        parts = []
        for begin in range(first, last, height):
            end = min(begin + height, last)
            block = np.ascontiguousarray(read(begin, end))
            rows[begin:end] = energies(block, columns)
            total = float(np.add.accumulate(np.concatenate([[total], rows[begin:end]]))[-1])
            largest = max(largest, float(block.max(initial=0)), -float(block.min(initial=0)))
            part = block[:, left : left + kept]
            if turned:
                top = first + left - begin
                part = block[max(0, top) : max(0, top + kept)]
            if part.size:
                parts.append(narrow(np.array(part, np.float32, order="C"), dtype))
        if parts:
            tiles.append(Tile(first, last, left, np.concatenate(parts)))
    return Sampled(spec, scheme, total, rows, columns, tuple(tiles), largest)


def _some(count: int, wanted: float) -> set[int]:
    """About as many of the numbers below `count` as are wanted, at least one, evenly spaced."""
    kept = min(count, max(1, round(wanted)))
    return {(2 * k + 1) * count // (2 * kept) for k in range(kept)}


def sample_all(treated: Sequence[Treated], read: Read, executor: Executor) -> list[Sampled]:
    """Sample every tensor, one a task. `read` gives rows [first, last) of a tensor as float32."""
    share = min(1.0, SAMPLED / max(1, sum(spec.size for spec, _, _ in treated)))

    def one(item: Treated) -> Sampled:
        spec, scheme, steps = item
        factors = {} if steps is None else {"column_step": steps}
        found = sample(spec, scheme, share, lambda first, last: scheme.relative(read(spec, first, last), factors))
        return replace(found, column_step=steps)

    return list(executor.map(one, treated))


def try_step(each: Sampled, step: float, tables: dict[bool, Tables], prices: dict[bool, Any]) -> Trial:
    """Encode the tiles of a tensor."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what does not fit is refused by the engine
        return _encoded(each, step, tables, prices)


def _encoded(each: Sampled, step: float, tables: dict[bool, Tables], prices: dict[bool, Any]) -> Trial:
    scheme = each.scheme if each.scheme.step is not None else replace(each.scheme, step=each.own_step(step))
    columns = each.spec.matrix[1]
    params = scheme.fit_energies(each.spec.size, each.total, each.columns)
    plain = replace(scheme, columns=False)  # tiles are relative to the factors of their columns
    row_class = scheme.row_classes(each.mean_squares, params)
    column_class = params["column_class"][0].astype(np.int32)
    width = 2 if scheme.trellis else 1
    counts = np.zeros((CLASSES * width, 256), np.int64)
    beside, signal, noise, rows = 0.0, 0.0, 0.0, 0
    for tile in each.tiles:
        height, block = tile.last - tile.first, widen(tile.bits, each.dtype)
        rows += height
        turned = along_rows(height, columns)
        of_rows, of_columns = row_class[tile.first : tile.last], params["column_class"]
        kept = slice(tile.left, tile.left + block.shape[0 if turned else 1])
        local = {
            "step": params["step"],
            "row_class": (of_rows[kept] if turned else of_rows).reshape(-1, 1),
            "column_class": of_columns if turned else of_columns[:, kept],
        }
        contexts = replace(scheme.contexts(local, height, columns), along_rows=turned)
        points = plain.encode_path(block, local, prices[scheme.trellis], turned)
        found, extra = count_points(points, contexts, tables[scheme.trellis])
        counts += found
        decoded = plain.decode(points, local)
        sums = error_sums(block.reshape(-1), decoded.reshape(-1))
        signal, noise = signal + float(sums[0]), noise + float(sums[1])
        width_of = height if turned else columns
        beside += extra * (height * columns / block.size) + 4 * min(LANES, width_of) + 4 + _vector(of_rows)
    beside = beside * each.spec.matrix[0] / max(rows, 1) + 8 + _vector(column_class)
    if each.column_step is not None:
        params["column_step"] = each.column_step
        beside += 4 + _vector(each.column_step.astype(np.int32))
    sampled = counts.reshape(CLASSES, -1).sum(axis=1)
    population = _population(row_class, column_class)
    scale = np.where(sampled > 0, population / np.maximum(sampled, 1), 0.0)
    missing = float(population[sampled == 0].sum())
    if missing:
        scale *= each.spec.size / max(each.spec.size - missing, 1.0)
    scaled = np.rint(counts * np.repeat(scale, width)[:, None]).astype(np.int64)
    whole = each.spec.size / max(int(sampled.sum()), 1)
    return Trial(params, scheme, scaled, population, beside, signal, noise, whole)


def _population(rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.int64]:
    """How many weights each class has."""
    found = np.convolve(np.bincount(rows, minlength=1), np.bincount(columns, minlength=1))
    population = np.zeros(CLASSES, np.int64)
    population[: min(len(found), CLASSES)] = found[:CLASSES]
    return population


def _vector(classes: NDArray[Any]) -> float:
    """About the bytes of a coded vector."""
    counts = np.bincount(classes.reshape(-1), minlength=256)[:256]
    table = from_counts(counts)
    return float((counts * RATES[table]).sum() / 2048) + len(Tables(table[None]).to_bytes()) + 5
