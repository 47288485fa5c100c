"""Weights to grid points by the path of least cost through an 8-state trellis, or one by one on the plain grid.

Trellis-coded quantization: Marcellin and Fischer, IEEE Transactions on Communications 38(1), 1990; Ungerboeck's 8-state
code, parity polynomials 13 and 04 (octal). Entropy-constrained: Fischer and Wang, IEEE Transactions on Information
Theory 38(2), 1992. A weight is `n * step`. In states with q = 0 (the even ones) the points are n = 2k, in those with
q = 1 they are 0 and the odd n = 2k - sign k; the next state depends on the parity of k.

The cost of a path is its squared error plus a price on bits that is linear in the magnitude of k, with a price of its
own for zero. All of it is integer arithmetic: every CPU finds the same path.

**Units.** Magnitudes `y` are in 1/32 of the step; costs in 1/128 of a squared step, so (y - 32 n)^2 >> 3. Prices of a
class are 10 integers (`PRICES`): A0..A3 and B0, B1, so that the point n = 4m + r of the coset r, of quantizer
q = r & 1, costs A_r + min(B_q m, 1200); Z0, Z1 for k = 0; D0, D1, the shift of the threshold between neighbours of a
coset that follows from B_q. With 0 <= B <= 249, D = B / 32 and all others at most 1,200, nothing leaves 16 bits: a
branch costs at most 4,448, states differ by at most three branches, and four rows pass between renormalisations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels import jit as choice
from modelzip_cli.kernels.jit import jit

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

Points = NDArray[Any]  # int16, or int32 where one needs it
Prices = NDArray[np.int16]

PRICES = ("A0", "A1", "A2", "A3", "B0", "B1", "Z0", "Z1", "D0", "D1")
STATES = 8
TILE = 128  # lanes at a time: metrics, 4 bytes of scratch a weight and the prices of a tile stay in the L2 cache
ROUND = np.float32(3 << 22)  # adding and subtracting it rounds what is below 2^22, ties to even, without a call
FOLD = 1 << 14
MOST_UNITS = float(1 << 35)  # 2^30 steps: no weight is that far from the root mean square of its tensor
RENORMALISE = 4
FORBIDDEN = 4448  # no branch costs more
ONLY_ZERO = np.int16(0x3CC)  # the decisions that lead along even k, and both flags of zero

# What differs between numba and plain Python: 16-bit arithmetic needs every constant to be an int16 argument.
CONSTANTS = np.array([0, 1, 2, 3, 4, 8, 16, 32, 64, 96, 128, 181, 256, 512, 1200, FORBIDDEN, ONLY_ZERO], np.int16)


def trellis_path(weights: Block, step: np.float32, path_class: NDArray[np.int32], prices: Prices) -> Points:
    """Grid points int32 or int16 [path, lanes] of `weights` float32 [path, lanes], each lane a path from state 0.

    `prices` int16 [classes of path positions, 10, lanes]; `path_class` int32 [path] says which of them holds at a
    position. A weight of 0 always gets the point 0.
    """
    per_step = np.float32(32) / np.float32(step)
    block, far, turns = _folded(np.ascontiguousarray(weights), per_step)
    length, lanes = block.shape
    points = np.empty((length, lanes), np.int16)
    tile = TILE if choice.runs_compiled() else lanes
    scratch = np.empty((2, length, tile), np.int16)
    price = np.zeros((len(prices), len(PRICES), tile), np.int16)
    for left in range(0, lanes, tile):
        width = min(tile, lanes - left)
        price[:, :, :width] = prices[:, :, left : left + width]
        states = _forward(block, left, width, per_step, path_class, price, CONSTANTS, scratch)
        _trace_back(width, path_class, price, CONSTANTS, scratch, states)
        points[:, left : left + width] = scratch[0, :, :width]
    if not far.size:
        return points
    wide = points.astype(np.int32)
    wide.reshape(-1)[far] += turns
    return wide


def _folded(weights: Block, per_step: np.float32) -> tuple[Block, NDArray[np.int64], Points]:
    """Bring magnitudes below 2^14 units, which 16 bits hold: the cost of a path depends on them modulo 4 steps only.

    Returns the weights, the places (flat) of those that were changed, and what their points lack.
    """
    limit = np.float32(min((FOLD - 2) / float(per_step), float(np.finfo(np.float32).max)))
    weights = weights if weights.flags.writeable else weights.copy()  # numba would compile for both kinds
    flat = weights.reshape(-1)
    far = _far(flat, limit)
    if not far.size:
        return weights, far, np.empty(0, np.int32)
    units = np.rint(np.minimum(np.abs(flat[far].astype(np.float64)) * float(per_step), MOST_UNITS)).astype(np.int64)
    near = FOLD - 128 + (units & 127)
    sign = np.where(flat[far] < 0, -1, 1)
    folded = weights.copy()
    folded.reshape(-1)[far] = sign * near / float(per_step)
    return folded, far, (sign * (units - near >> 5)).astype(np.int32)


def _far_numpy(flat: Block, limit: np.float32) -> NDArray[np.int64]:
    """The places of weights of at least `limit`, up or down."""
    return np.flatnonzero((flat >= limit) | (flat <= -limit))


@jit(twin=_far_numpy)
def _far(flat: Block, limit: np.float32) -> NDArray[np.int64]:
    found = np.empty(flat.size // 64 + 4096, np.int64)
    count = 0
    for start in range(0, flat.size, 4096):
        part = flat[start : min(start + 4096, flat.size)]
        rare = np.int32(0)
        for i in range(part.size):
            rare = np.int32(rare | np.int32(abs(part[i]) >= limit))
        if rare:
            if count + part.size > found.size:
                found = np.concatenate((found, np.empty(found.size + part.size, np.int64)))
            for i in range(part.size):
                if abs(part[i]) >= limit:
                    found[count] = start + i
                    count += 1
    return found[:count].copy()


def _forward_numpy(
    weights: Block,
    left: int,
    lanes: int,
    per_step: np.float32,
    path_class: NDArray[np.int32],
    prices: Prices,
    constants: Prices,
    scratch: Prices,
) -> Prices:
    """Go down the paths of a tile: fill `scratch` int16 [2, path, lanes] with signed units and decisions.

    Returns the last state of the best path of each lane, int16 [lanes]. Bit s of a decision: the best path into state
    s comes from the second of its two predecessors; bits 8 and 9: the best even k of quantizer 0 and 1 is zero.
    """
    length = len(weights)
    weights = weights[:, left : left + lanes]
    metrics = np.full((STATES, lanes), 3 * FORBIDDEN, np.int32)
    metrics[0] = 0
    for i in range(length):
        y = ((np.abs(weights[i] * per_step) + ROUND) - ROUND).astype(np.int32)
        y = np.maximum(y, weights[i] != 0)
        price = prices[path_class[i], :, :lanes].astype(np.int32)
        cost = []
        for r in range(4):
            m = np.maximum(y - price[8 + (r & 1)] + 64 - 32 * r, 128 if r == 0 else 0) >> 7
            off = y - 128 * m - 32 * r
            cost.append((off * off >> 3) + price[r] + np.minimum(price[4 + (r & 1)] * m, 1200))
        near = np.minimum(y, 181)
        zero = [(near * near >> 3) + price[6 + q] for q in range(2)]
        is_zero = y == 0
        even = [np.minimum(cost[0], zero[0]), np.minimum(cost[3], zero[1])]
        odd = [np.where(is_zero, FORBIDDEN, cost[2]), np.where(is_zero, FORBIDDEN, cost[1])]
        decision = (zero[0] < cost[0]) * 256 + (zero[1] < cost[3]) * 512
        after = np.empty_like(metrics)
        for state in range(STATES):
            s0, s1, s2 = state & 1, state >> 1 & 1, state >> 2
            before = (s0 ^ s2) << 1 | s2
            branches = (even[s2], odd[s2])
            first, second = metrics[before] + branches[s1], metrics[before + 4] + branches[s1 ^ 1]
            decision += (second < first) << state
            after[state] = np.minimum(first, second)
        scratch[0, i, :lanes] = np.where(weights[i] < 0, -y, y)
        scratch[1, i, :lanes] = np.where(is_zero, int(ONLY_ZERO), decision)
        metrics = after - after[0] if i % RENORMALISE == RENORMALISE - 1 else after
    best: Prices = metrics.argmin(axis=0).astype(np.int16)
    return best


@jit(twin=_forward_numpy)
def _forward(
    weights: Block,
    left: int,
    lanes: int,
    per_step: np.float32,
    path_class: NDArray[np.int32],
    prices: Prices,
    constants: Prices,
    scratch: Prices,
) -> Prices:
    i16 = np.int16
    c0, c1, c2, c4, c8, c16 = constants[0], constants[1], constants[2], constants[4], constants[5], constants[6]
    c32, c64, c96, c128, c181 = constants[7], constants[8], constants[9], constants[10], constants[11]
    c256, c512, c1200, never, only_zero = constants[12], constants[13], constants[14], constants[15], constants[16]
    length = weights.shape[0]
    work = np.full(10 * 128, i16(3 * 4448), np.int16)  # one array: LLVM then proves that its rows do not overlap
    m0, m1, m2, m3 = work[0:128], work[128:256], work[256:384], work[384:512]
    m4, m5, m6, m7 = work[512:640], work[640:768], work[768:896], work[896:1024]
    ys, ds = work[1024:1152], work[1152:1280]
    m0[:] = c0
    for i in range(length):
        row = weights[i, left : left + lanes]
        for j in range(lanes):
            w = row[j]
            near = (abs(w * per_step) + np.float32(12582912.0)) - np.float32(12582912.0)
            ys[j] = i16(max(np.int32(near), np.int32(w != np.float32(0))))
        price = prices[path_class[i]].reshape(-1)
        a0, a1, a2, a3 = price[0:128], price[128:256], price[256:384], price[384:512]
        p0, p1, z0, z1 = price[512:640], price[640:768], price[768:896], price[896:1024]
        d0, d1 = price[1024:1152], price[1152:1280]
        for j in range(lanes):
            y = ys[j]
            t0, t1 = i16(i16(y - d0[j]) + c64), i16(i16(y - d1[j]) + c64)
            k0 = i16(max(t0, c128) >> 7)
            k1 = i16(max(i16(t1 - c32), c0) >> 7)
            k2 = i16(max(i16(t0 - c64), c0) >> 7)
            k3 = i16(max(i16(t1 - c96), c0) >> 7)
            e0 = i16(y - i16(k0 << 7))
            e1 = i16(i16(y - c32) - i16(k1 << 7))
            e2 = i16(i16(y - c64) - i16(k2 << 7))
            e3 = i16(i16(y - c96) - i16(k3 << 7))
            f0 = i16(i16(i16(i16(e0 * e0) >> 3) + a0[j]) + min(i16(p0[j] * k0), c1200))
            f1 = i16(i16(i16(i16(e1 * e1) >> 3) + a1[j]) + min(i16(p1[j] * k1), c1200))
            f2 = i16(i16(i16(i16(e2 * e2) >> 3) + a2[j]) + min(i16(p0[j] * k2), c1200))
            f3 = i16(i16(i16(i16(e3 * e3) >> 3) + a3[j]) + min(i16(p1[j] * k3), c1200))
            z = min(y, c181)
            z = i16(i16(z * z) >> 3)
            g0, g1 = i16(z + z0[j]), i16(z + z1[j])
            d = i16((c256 if g0 < f0 else c0) | (c512 if g1 < f3 else c0))
            even0, even1 = min(g0, f0), min(g1, f3)
            odd0, odd1 = never if y == c0 else f2, never if y == c0 else f1
            x0, x1, x2, x3 = m0[j], m1[j], m2[j], m3[j]
            x4, x5, x6, x7 = m4[j], m5[j], m6[j], m7[j]
            u, v = i16(x0 + even0), i16(x4 + odd0)  # state 0 from 0 and 4
            m0[j] = min(u, v)
            d = i16(d | (c1 if v < u else c0))
            u, v = i16(x2 + even0), i16(x6 + odd0)  # 1 from 2 and 6
            m1[j] = min(u, v)
            d = i16(d | (c2 if v < u else c0))
            u, v = i16(x0 + odd0), i16(x4 + even0)  # 2 from 0 and 4
            m2[j] = min(u, v)
            d = i16(d | (c4 if v < u else c0))
            u, v = i16(x2 + odd0), i16(x6 + even0)  # 3 from 2 and 6
            m3[j] = min(u, v)
            d = i16(d | (c8 if v < u else c0))
            u, v = i16(x3 + even1), i16(x7 + odd1)  # 4 from 3 and 7
            m4[j] = min(u, v)
            d = i16(d | (c16 if v < u else c0))
            u, v = i16(x1 + even1), i16(x5 + odd1)  # 5 from 1 and 5
            m5[j] = min(u, v)
            d = i16(d | (c32 if v < u else c0))
            u, v = i16(x3 + odd1), i16(x7 + even1)  # 6 from 3 and 7
            m6[j] = min(u, v)
            d = i16(d | (c64 if v < u else c0))
            u, v = i16(x1 + odd1), i16(x5 + even1)  # 7 from 1 and 5
            m7[j] = min(u, v)
            d = i16(d | (c128 if v < u else c0))
            ds[j] = only_zero if y == c0 else d
        signed, decided = scratch[0, i], scratch[1, i]
        for j in range(lanes):
            signed[j] = i16(-ys[j]) if row[j] < np.float32(0) else ys[j]
        for j in range(lanes):
            decided[j] = ds[j]
        if i % 4 == 3:
            for j in range(lanes):
                base = m0[j]
                m0[j] = c0
                m1[j], m2[j], m3[j] = i16(m1[j] - base), i16(m2[j] - base), i16(m3[j] - base)
                m4[j], m5[j] = i16(m4[j] - base), i16(m5[j] - base)
                m6[j], m7[j] = i16(m6[j] - base), i16(m7[j] - base)
    states = np.empty(lanes, np.int16)
    for j in range(lanes):
        best, least = c0, m0[j]
        for s in range(1, 8):
            if work[s * 128 + j] < least:
                best, least = i16(s), work[s * 128 + j]
        states[j] = best
    return states


def _trace_back_numpy(
    lanes: int, path_class: NDArray[np.int32], prices: Prices, constants: Prices, scratch: Prices, states: Prices
) -> None:
    """Go back from the last `states` along the decisions in `scratch`; the points take the place of the units there.

    Going back row by row through an array that is wider than a tile would wait for memory.
    """
    length = scratch.shape[1]
    everything = np.arange(lanes)
    state = states.astype(np.int32)
    for i in reversed(range(length)):
        price, signed = prices[path_class[i], :, :lanes].astype(np.int32), scratch[0, i, :lanes].astype(np.int32)
        decision = scratch[1, i, :lanes].astype(np.int32)
        bit, q = decision >> state & 1, state >> 2
        parity = bit ^ (state >> 1 & 1)
        r = np.where(q == 0, 2 * parity, 3 - 2 * parity)
        m = np.maximum(np.abs(signed) - price[8 + q, everything] + 64 - 32 * r, np.where(r == 0, 128, 0)) >> 7
        n = np.where((parity == 0) & (decision >> (8 + q) & 1 == 1), 0, 4 * m + r)
        scratch[0, i, :lanes] = np.where(signed < 0, -n, n)
        state = ((state ^ state >> 2) & 1) << 1 | state >> 2 | bit << 2


@jit(twin=_trace_back_numpy)
def _trace_back(
    lanes: int, path_class: NDArray[np.int32], prices: Prices, constants: Prices, scratch: Prices, states: Prices
) -> None:
    i16 = np.int16
    c0, c1, c3, c64, c128 = constants[0], constants[1], constants[3], constants[8], constants[10]
    length = scratch.shape[1]
    work = np.empty(4 * 128, np.int16)
    ys, ds, now, ns = work[0:128], work[128:256], work[256:384], work[384:512]
    for j in range(lanes):
        now[j] = states[j]
    for back in range(length):
        i = length - 1 - back
        price = prices[path_class[i]].reshape(-1)
        d0, d1 = price[1024:1152], price[1152:1280]
        signed, decided = scratch[0, i], scratch[1, i]
        for j in range(lanes):
            ys[j], ds[j] = signed[j], decided[j]
        for j in range(lanes):
            y, d, s, delta0, delta1 = i16(abs(ys[j])), ds[j], now[j], d0[j], d1[j]
            s0, s1, s2 = i16(s & c1), i16(i16(s >> 1) & c1), i16(s >> 2)
            shifted = i16(d >> 4) if s2 != c0 else d
            shifted = i16(shifted >> 2) if s1 != c0 else shifted
            shifted = i16(shifted >> 1) if s0 != c0 else shifted
            bit = i16(shifted & c1)
            parity = i16(bit ^ s1)
            q = i16(-s2)  # a mask: one more `if` on s2 and LLVM would branch
            r = i16(i16(parity << 1) ^ i16(q & c3))
            delta = i16(delta0 ^ i16(i16(delta0 ^ delta1) & q))
            low = c128 if r == c0 else c0
            m = i16(max(i16(i16(i16(y - delta) + c64) - i16(r << 5)), low) >> 7)
            n = i16(i16(m << 2) + r)
            flag = i16(d >> 9) if s2 != c0 else i16(d >> 8)
            n = c0 if i16(flag & c1) > parity else n
            ns[j] = i16(-n) if ys[j] < c0 else n
            now[j] = i16(i16(i16(s0 ^ s2) << 1) | i16(s2 | i16(bit << 2)))
        for j in range(lanes):
            signed[j] = ns[j]


def _grid_points_numpy(
    weights: Block, per_step: np.float32, path_class: NDArray[np.int32], prices: Points, points: Prices
) -> None:
    """Fill `points`: 0 where |w| is below the class's threshold of zero, else the nearest point after a shift."""
    for i in range(len(weights)):
        threshold, shift = prices[path_class[i]]
        y = ((np.abs(weights[i] * per_step) + ROUND) - ROUND).astype(np.int32)
        n = np.where(y < threshold, 0, np.maximum(y + shift >> 8, 1))
        points[i] = np.where(weights[i] < 0, -n, n)


@jit(twin=_grid_points_numpy)
def _grid_points(
    weights: Block, per_step: np.float32, path_class: NDArray[np.int32], prices: Points, points: Prices
) -> None:
    for i in range(weights.shape[0]):
        row, out = weights[i], points[i]
        threshold, shift = prices[path_class[i], 0], prices[path_class[i], 1]
        for j in range(row.size):
            y = np.int32((abs(row[j] * per_step) + np.float32(12582912.0)) - np.float32(12582912.0))
            n = np.int32(max(np.int32(y + shift[j]) >> np.int32(8), np.int32(1)))
            n = np.int32(0) if y < threshold[j] else n
            out[j] = np.int16(-n) if row[j] < np.float32(0) else np.int16(n)


def grid_points(weights: Block, step: np.float32, path_class: NDArray[np.int32], prices: Points) -> Points:
    """Grid points int32 or int16 [path, lanes] of `weights` float32 [path, lanes], each for itself.

    `prices` int32 [classes of path positions, 2, lanes]: below which magnitude a weight becomes 0, and what is added
    to a magnitude before it is cut to a whole number of steps, both in 1/256 of a step.
    """
    per_step = np.float32(256) / np.float32(step)
    block, far, turns = _folded(np.ascontiguousarray(weights), per_step / 8)
    points = np.empty(block.shape, np.int16)
    _grid_points(block, per_step, path_class, prices, points)
    if not far.size:
        return points
    wide = points.astype(np.int32)
    wide.reshape(-1)[far] += turns
    return wide
