"""Sums that decide a byte of the output: float64, in an order that no CPU and no thread count changes.

The order (docs/format.md, section 3): terms are dealt to lanes, added one after the other within a lane, then the
lanes are added in order. Over a slab: 64 lanes, weight i of the slab in row-major order in lane i mod 64; then slabs in
order. Over a group: 16 lanes, weight i of the group in lane i mod 16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.jit import jit
from modelzip_cli.kernels.rounding import spread

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

Sums = NDArray[np.float64]

SLAB_LANES = 64
GROUP_LANES = 16  # a group of 32 has two terms a lane
STRIP = 1024  # what the three loops of the error sums pass over in turn stays in the first-level cache
TWIN_CHUNK = 512 * SLAB_LANES  # the twin's temporaries stay in the cache: 200 Mw/s instead of 42
ERROR_SUMS = ("w2", "e2", "r2", "max_e", "zeros_before", "zeros_after")  # the entries of `error_sums`


def running_total(total: Sums, row_sums: Sums) -> Sums:
    """Add row sums [..., rows, 1] to a total [..., 1, 1], one row after the other: no cut into blocks changes a bit."""
    return np.add.accumulate(np.concatenate([total, row_sums], axis=-2), axis=-2)[..., -1:, :]


def _in_order(lanes: Sums) -> float:
    total = 0.0
    for lane in lanes:
        total += float(lane)
    return total


class ErrorSums:
    """Sums over a slab for the error figures. It may come in pieces: all but the last a multiple of 64 weights."""

    def __init__(self) -> None:
        self._lanes, self._rest = np.zeros((3, SLAB_LANES)), np.zeros(3)

    def add(self, weights: Block, restored: Block) -> None:
        """Take in the next piece: the weights and what they are restored to, both float32 [weights]."""
        largest = self._rest[0]
        rest = add_errors(weights, restored, self._lanes)
        self._rest += rest
        self._rest[0] = max(largest, rest[0])

    @property
    def sums(self) -> Sums:
        """The sums of all pieces, float64 [6], named by `ERROR_SUMS`."""
        return np.array([*(_in_order(lane) for lane in self._lanes), *self._rest])


def error_sums(weights: Block, restored: Block) -> Sums:
    """The sums of a slab that is at hand whole, float64 [6], named by `ERROR_SUMS`."""
    found = ErrorSums()
    found.add(weights, restored)
    return found.sums


def _add_errors_numpy(weights: Block, restored: Block, lanes: Sums) -> Sums:
    """Add the terms of a piece of a slab to `lanes`, float64 [3, 64], the first weight in lane 0.

    w = `weights`, r = `restored`, both float32 [weights], e = w - r: the terms are w*w, e*e and r*r. Returns float64
    [3]: the largest |e| as float32, and how many w and r are zero. NaN and infinity show as NaN or infinity in lanes.
    """
    largest = np.float32(0)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, weights.size, TWIN_CHUNK):
            part = slice(start, start + TWIN_CHUNK)
            w, r = weights[part].astype(np.float64), restored[part].astype(np.float64)
            e = w - r
            for k, term in enumerate((w * w, e * e, r * r)):
                whole = term.size // SLAB_LANES * SLAB_LANES
                rows = np.concatenate([lanes[k : k + 1], term[:whole].reshape(-1, SLAB_LANES)])
                lanes[k] = np.add.reduce(rows, axis=0)
                lanes[k, : term.size - whole] += term[whole:]
            largest = max(largest, np.abs(weights[part] - restored[part]).max())
    zeros = weights.size - np.count_nonzero(weights), restored.size - np.count_nonzero(restored)
    return np.array([largest, *zeros], np.float64)


@jit(twin=_add_errors_numpy)
def add_errors(weights: Block, restored: Block, lanes: Sums) -> Sums:
    w2, e2, r2 = lanes[0], lanes[1], lanes[2]
    magnitudes = np.empty(STRIP, np.float32)
    keys = magnitudes.view(np.int32)  # magnitudes sort like their bits
    largest, before, after = np.int32(0), 0, 0
    for strip in range(0, weights.size, STRIP):
        a, b = weights[strip : min(strip + STRIP, weights.size)], restored[strip : min(strip + STRIP, weights.size)]
        whole = a.size // SLAB_LANES * SLAB_LANES
        for start in range(0, whole, SLAB_LANES):
            x, y = a[start : start + SLAB_LANES], b[start : start + SLAB_LANES]
            for lane in range(SLAB_LANES):
                w, r = np.float64(x[lane]), np.float64(y[lane])
                e = w - r
                w2[lane] += w * w
                e2[lane] += e * e
                r2[lane] += r * r
        for i in range(whole, a.size):
            w, r = np.float64(a[i]), np.float64(b[i])
            e = w - r
            w2[i - whole] += w * w
            e2[i - whole] += e * e
            r2[i - whole] += r * r
        for i in range(a.size):
            magnitudes[i] = abs(a[i] - b[i])
        for i in range(a.size):
            largest = np.int32(max(largest, keys[i]))
        strip_before, strip_after = np.int32(0), np.int32(0)  # 32 bits: numba counts in 64, half as many at a time
        for i in range(a.size):
            strip_before = np.int32(strip_before + np.int32(a[i] == 0))
            strip_after = np.int32(strip_after + np.int32(b[i] == 0))
        before += int(strip_before)
        after += int(strip_after)
    rest = np.empty(3)
    keys[0] = largest
    rest[0], rest[1], rest[2] = np.float64(magnitudes[0]), before, after
    return rest


def _group_lanes(terms: Sums, group_size: int) -> Sums:
    """Sums of the groups of float64 [rows, columns] in the order above: float64 [rows, groups]."""
    rows, columns = terms.shape
    group_size = max(1, min(group_size, columns))
    groups = -(-columns // group_size)
    sets = -(-group_size // GROUP_LANES)
    padded = np.zeros((rows, groups, sets * GROUP_LANES))
    whole = columns // group_size
    padded[:, :whole, :group_size] = terms[:, : whole * group_size].reshape(rows, whole, group_size)
    padded[:, whole:, : columns - whole * group_size] = terms[:, None, whole * group_size :]
    lanes = np.add.reduce(padded.reshape(rows, groups, sets, GROUP_LANES).transpose(2, 0, 1, 3), axis=0)
    sums = np.zeros((rows, groups))
    for lane in range(GROUP_LANES):
        sums += lanes[..., lane]
    return sums


def _magnitude_sums_numpy(block: Block, group_size: int) -> Sums:
    """Sum of |w| of each group: float64 [rows, groups] from float32 [rows, columns]."""
    return _group_lanes(np.abs(block).astype(np.float64), group_size)


@jit(twin=_magnitude_sums_numpy)
def magnitude_sums(block: Block, group_size: int) -> Sums:
    rows, columns = block.shape
    groups = (columns + group_size - 1) // group_size
    sums = np.zeros((rows, groups))
    lanes = np.empty(GROUP_LANES)
    for r in range(rows):
        row, out = block[r], sums[r]
        for g in range(groups):
            group = row[g * group_size : min((g + 1) * group_size, columns)]
            whole = group.size // GROUP_LANES * GROUP_LANES
            lanes[:] = 0
            for start in range(0, whole, GROUP_LANES):
                part = group[start : start + GROUP_LANES]
                for lane in range(GROUP_LANES):
                    lanes[lane] += np.float64(abs(part[lane]))
            for i in range(whole, group.size):
                lanes[i - whole] += np.float64(abs(group[i]))
            for lane in range(GROUP_LANES):
                out[g] += lanes[lane]
    return sums


def _fit_sums_numpy(block: Block, scale: Block, zero_point: Block, top: int, group_size: int) -> tuple[Sums, Sums]:
    """Least-squares sums of a trial scale: sum of w*q and of q*q of each group, two float64 arrays [rows, groups].

    q = `clip(round(w / scale) + zero_point, 0, top) - zero_point`; `block` is float32 [rows, columns], `scale` (never
    0) and `zero_point` float32 [rows, groups]. The scale of least error for these codes is sum(w*q) / sum(q*q).
    """
    columns = block.shape[1]
    zeros = spread(zero_point, group_size, columns)
    with np.errstate(over="ignore", invalid="ignore"):
        q = np.rint(block / spread(scale, group_size, columns)) + zeros
        q = (q.clip(0, top) - zeros).astype(np.float64)
    return _group_lanes(block.astype(np.float64) * q, group_size), _group_lanes(q * q, group_size)


@jit(twin=_fit_sums_numpy)
def fit_sums(block: Block, scale: Block, zero_point: Block, top: int, group_size: int) -> tuple[Sums, Sums]:
    rows, columns = block.shape
    low, high = np.float32(0), np.float32(top)
    wq, qq = np.zeros(scale.shape), np.zeros(scale.shape)
    lanes = np.empty((2, GROUP_LANES))
    wq_lanes, qq_lanes = lanes[0], lanes[1]
    for r in range(rows):
        row, scales, zeros, wq_out, qq_out = block[r], scale[r], zero_point[r], wq[r], qq[r]
        for g in range(scales.size):
            group = row[g * group_size : min((g + 1) * group_size, columns)]
            whole, s, z = group.size // GROUP_LANES * GROUP_LANES, scales[g], zeros[g]
            lanes[:] = 0
            for start in range(0, whole, GROUP_LANES):
                part = group[start : start + GROUP_LANES]
                for lane in range(GROUP_LANES):
                    q = np.float64(min(max(np.rint(part[lane] / s) + z, low), high) - z)
                    wq_lanes[lane] += np.float64(part[lane]) * q
                    qq_lanes[lane] += q * q
            for i in range(whole, group.size):
                q = np.float64(min(max(np.rint(group[i] / s) + z, low), high) - z)
                wq_lanes[i - whole] += np.float64(group[i]) * q
                qq_lanes[i - whole] += q * q
            for lane in range(GROUP_LANES):
                wq_out[g] += wq_lanes[lane]
                qq_out[g] += qq_lanes[lane]
    return wq, qq


def _energies_numpy(block: Block, columns: Sums) -> Sums:
    """Sum of w * w of each row: float64 [rows] from float32 [rows, columns]; those of each column are added to
    `columns` float64 [columns], row by row."""
    rows = np.empty(len(block))
    for first in range(0, len(block), STRIP):
        squares = np.square(block[first : first + STRIP], dtype=np.float64)
        rows[first : first + STRIP] = _group_lanes(squares, block.shape[1])[:, 0]
        columns[:] = np.add.reduce(np.concatenate([columns[None], squares]), axis=0)
    return rows


@jit(twin=_energies_numpy)
def energies(block: Block, columns: Sums) -> Sums:
    sums, lanes = np.zeros(block.shape[0]), np.empty(GROUP_LANES)
    for r in range(block.shape[0]):
        row = block[r]
        lanes[:] = 0
        for start in range(0, row.size // GROUP_LANES * GROUP_LANES, GROUP_LANES):
            part = row[start : start + GROUP_LANES]
            for lane in range(GROUP_LANES):
                lanes[lane] += np.float64(part[lane]) * np.float64(part[lane])
        whole = row.size // GROUP_LANES * GROUP_LANES
        for i in range(whole, row.size):
            lanes[i - whole] += np.float64(row[i]) * np.float64(row[i])
        for lane in range(GROUP_LANES):
            sums[r] += lanes[lane]
        for i in range(row.size):
            columns[i] += np.float64(row[i]) * np.float64(row[i])
    return sums
