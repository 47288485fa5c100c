"""Every kernel gives the bytes of its twin. A kernel without a line in `ARGUMENTS` fails."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelzip_cli import kernels
from modelzip_cli.kernels.histogram import empty_histogram
from modelzip_cli.kernels.jit import Kernel
from modelzip_cli.kernels.rans import LANES, LOWEST
from modelzip_cli.kernels.sums import SLAB_LANES
from modelzip_cli.kernels.trellis import CONSTANTS
from modelzip_cli.schemes.base import group_count
from modelzip_cli.schemes.granularity import WHOLE_ROW
from tests.kernels.codes import Codes, random_codes
from tests.strategies import any_float_bits, any_weight, shapes

Arguments = tuple[Any, ...]
GROUP_SIZES = st.sampled_from([1, 2, 3, 16, 17, 32, 128, WHOLE_ROW])
BITS16 = st.integers(0, 2**16 - 1)


@cache
def all_kernels() -> dict[str, Kernel]:
    """The kernels of all modules by module and name, but those of the lossless coder: test_planes.py has them."""
    found = {}
    for module in pkgutil.iter_modules(kernels.__path__):
        if module.name in ("planes", "coding_tables"):
            continue
        for value in vars(import_module(f"{kernels.__name__}.{module.name}")).values():
            if isinstance(value, Kernel) and value.body.__module__.endswith(f".{module.name}"):
                found[f"{module.name}.{value.__name__}"] = value
    return found


def not_nan(bits: np.ndarray) -> np.ndarray:
    """Infinity where a NaN was: narrowing is not defined for it."""
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, np.uint32(0x7F800000), bits)


@st.composite
def packing(draw: st.DrawFn, widths: list[int], dtype: type) -> Arguments:
    bits = draw(st.sampled_from(widths))
    return draw(hnp.arrays(dtype, draw(shapes()), elements=st.integers(0, 2**bits - 1))), bits


@st.composite
def unpacking(draw: st.DrawFn, widths: list[int]) -> Arguments:
    bits, (rows, columns) = draw(st.sampled_from(widths)), draw(shapes())
    return draw(hnp.arrays(np.uint8, (rows, -(-columns * bits // 8)))), bits, columns


@st.composite
def grid(draw: st.DrawFn, tops: list[int], *, codes: type | None = None, into: type | None = None) -> Arguments:
    """A block (or codes), scales and zero points of its groups, the largest code, the group size."""
    top, group_size = draw(st.sampled_from(tops)), draw(GROUP_SIZES)
    block = draw(any_weight(min_side=1))
    groups = len(block), group_count(block.shape[1], group_size)
    scales = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool)
    scale = draw(hnp.arrays(np.float32, groups, elements=scales))
    if draw(st.booleans()):  # scales that fit the block: no code is clipped
        scale = np.full(groups, np.float32(np.abs(block).max() / (top / 2)) or np.float32(1))
    zero_point = draw(hnp.arrays(np.float32, groups, elements=st.integers(0, top).map(float)))
    if codes is None:
        return block, scale, zero_point, top, group_size, *([np.empty(0, into)] if into else [])
    return draw(hnp.arrays(codes, block.shape, elements=st.integers(0, top))), scale, zero_point, group_size


@st.composite
def leveled(draw: st.DrawFn) -> Arguments:
    """A block, scales of its groups, ascending borders between 2^b levels, the group size."""
    block, scale, _, _, group_size = draw(grid([3]))
    size = draw(st.sampled_from([1, 3, 7, 15, 31, 63, 255]))
    ratios = st.floats(-4, 4, width=32)
    borders = np.sort(draw(hnp.arrays(np.float32, size, elements=ratios)))
    if draw(st.booleans()):
        scale = np.ones_like(scale)
        block = draw(hnp.arrays(np.float32, block.shape, elements=st.sampled_from(borders.tolist()) | ratios))
    return block, scale, borders, group_size


@st.composite
def coded(draw: st.DrawFn) -> Arguments:
    """Codes, a table of 2^b levels, scales of the groups, the group size."""
    bits = draw(st.sampled_from([1, 2, 4, 8]))
    codes, scale, _, group_size = draw(grid([2**bits - 1], codes=np.uint8))
    table = draw(hnp.arrays(np.float32, 2**bits, elements=st.floats(-4, 4, width=32)))
    return codes, table, scale, group_size


@st.composite
def counted(draw: st.DrawFn) -> Arguments:
    """Bits and weights of a slab, counts and sums of those before."""
    weights = draw(hnp.arrays(np.float32, st.integers(0, 80), elements=st.floats(width=32, allow_nan=False)))
    counts, sums = empty_histogram()
    counts[::7], sums[::7] = 3, draw(st.floats(-1e6, 1e6))
    return weights.view(np.uint32), weights, counts, sums


@st.composite
def binned(draw: st.DrawFn) -> Arguments:
    """Running counts and sums of ascending bins, and a number of runs."""
    bins = draw(st.integers(1, 40))
    counts = draw(hnp.arrays(np.float64, bins, elements=st.integers(1, 1000).map(float)))
    means = np.sort(
        draw(hnp.arrays(np.float32, bins, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
    )
    totals = [np.concatenate([[0.0], np.cumsum(terms)]) for terms in (counts, counts * means)]
    return *totals, draw(st.integers(1, bins))


@st.composite
def two_slabs(draw: st.DrawFn) -> Arguments:
    """Weights and restored weights in one row, from none to several times as many as there are lanes, and sums of those
    before."""
    size = draw(st.integers(0, 200))
    slab = hnp.arrays(np.float32, size, elements=st.floats(width=32))
    return draw(slab), draw(slab), draw(st.sampled_from([0.0, 1.5])) + np.zeros((3, SLAB_LANES))


def codes() -> st.SearchStrategy[Codes]:
    """Contexts, tables and points of up to 9 rows, with and without a tail beside the groups of 32 columns."""
    return st.builds(
        random_codes,
        st.integers(0, 2**32 - 1),
        st.integers(1, 9),
        st.integers(1, 140),
        machine=st.booleans(),
        low=st.booleans(),
        bits=st.sampled_from([11, 12]),
    )


def indices(found: Codes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the twin makes of the points: index, escapes and low bits."""
    index = np.empty(found.points.shape, np.uint16)
    escapes = np.empty(index.size, np.int32)
    low = np.empty(index.size * bool(found.low_bits.any()), np.uint8)
    contexts = found.rows, found.columns, found.machine, found.low_bits
    twin = all_kernels()["points._index_of"].twin
    counts = twin(found.points, *contexts, found.known, index, escapes, low)
    return index, escapes[: counts[0]], low[: counts[1]]


def words_of(found: Codes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Index, states, words, escapes and low bits, as the twins write them."""
    index, escapes, low = indices(found)
    states = np.full(min(LANES, index.shape[1]), LOWEST, np.uint32)
    room = np.empty(index.size + LANES + 1, np.uint16)
    begin = all_kernels()["rans._encode"].twin(*placed(index), found.intervals, found.bits, states, room)
    return index, states, room[begin:].copy(), escapes, low


def placed(index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of an index, where the tables of rows begin, and which of these a row has."""
    lines, line_of = np.unique((index >> 8).astype(np.int32) << 8, axis=0, return_inverse=True)
    return (index & 255).astype(np.uint8), lines, line_of.reshape(-1)


def encoding(found: Codes) -> Arguments:
    """Arguments of the encoder."""
    index = indices(found)[0]
    states = np.full(min(LANES, index.shape[1]), LOWEST, np.uint32)
    return *placed(index), found.intervals, found.bits, states, np.zeros(index.size + LANES + 1, np.uint16)


def decoding(found: Codes) -> Arguments:
    """Arguments of the decoder of symbols."""
    index, states, words, _, _ = words_of(found)
    lines, line_of = np.unique(found.offsets(index), axis=0, return_inverse=True)
    return words, states, found.slots, lines, line_of.reshape(-1), found.bits, np.zeros(index.shape, np.uint8)


def merging(found: Codes) -> Arguments:
    """Arguments of the decoder of units; the last row may be filled up with what is another symbol."""
    *stream, symbols = decoding(found)
    size = max(symbols.size - min(len(found.rows), symbols.shape[1] - 1), 1)
    second = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    return *stream, second, np.zeros(size, np.uint16)


def indexing(found: Codes) -> Arguments:
    """Arguments of the pass before the coder, with room for half of the escapes."""
    index, escapes, low = (np.zeros_like(part) for part in indices(found))
    low = np.zeros(index.size * bool(low.size), np.uint8)
    contexts = found.rows, found.columns, found.machine, found.low_bits
    return found.points, *contexts, found.known, index, escapes[: len(escapes) // 2], low


def point_decoding(found: Codes) -> Arguments:
    """Arguments of the decoder of points."""
    _, states, words, escapes, low = words_of(found)
    contexts = found.rows, found.columns, found.bits, found.machine, found.low_bits
    values = np.zeros(found.points.shape, np.float32)
    return words, states, found.slots, *contexts, escapes, low, np.float32(0.1), values


@st.composite
def paths(draw: st.DrawFn) -> tuple[np.random.Generator, int, int, np.ndarray, np.ndarray, np.ndarray]:
    """A generator, length and lanes of a tile, its weights, the classes of its rows, and prices of the whole range."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    length, lanes = draw(st.integers(0, 11)), draw(st.integers(1, 128))
    weights = random.standard_normal((length, lanes)).astype(np.float32) * np.float32(draw(st.sampled_from([1, 60])))
    weights[random.random((length, lanes)) < 0.1] = 0
    prices = random.integers(0, 1201, (3, 10, lanes)).astype(np.int16)
    prices[:, 4:6] %= 250
    prices[:, 8:] = prices[:, 4:6] // 32  # the shift that follows from B
    return random, length, lanes, weights, random.integers(0, 3, length).astype(np.int32), prices


@st.composite
def forward(draw: st.DrawFn) -> Arguments:
    """Weights, of which the last columns are a tile; classes and prices; room for the decisions."""
    _, length, lanes, weights, classes, prices = draw(paths())
    left = draw(st.integers(0, lanes - 1))
    scratch = np.zeros((2, length, 128), np.int16)
    return weights, left, lanes - left, np.float32(32), classes, padded(prices[:, :, left:]), CONSTANTS, scratch


def padded(prices: Any) -> Any:
    """Prices as a tile of 128 lanes has them."""
    return np.concatenate([prices, np.zeros((*prices.shape[:2], 128 - prices.shape[2]), np.int16)], axis=2)


@st.composite
def trace_back(draw: st.DrawFn) -> Arguments:
    """Any units and decisions that going forward can leave, and the last states."""
    random, length, lanes, _, classes, prices = draw(paths())
    scratch = np.zeros((2, length, 128), np.int16)
    scratch[0] = random.integers(-(2**14), 2**14 + 1, scratch[0].shape)
    scratch[1] = random.integers(0, 1024, scratch[1].shape)
    states = random.integers(0, 8, lanes).astype(np.int16)
    return lanes, classes, padded(prices), CONSTANTS, scratch, states


@st.composite
def plain_grid(draw: st.DrawFn) -> Arguments:
    """Weights, classes of rows, a threshold of zero and a shift for every lane; room for the points."""
    random, length, lanes, weights, classes, _ = draw(paths())
    prices = random.integers(0, 400, (3, 2, lanes)).astype(np.int32)
    return weights, np.float32(256), classes, prices, np.zeros((length, lanes), np.int16)


@st.composite
def scored(draw: st.DrawFn, shape: st.SearchStrategy[tuple[int, ...]]) -> Arguments:
    """Raw bits of some width, and scores of the same shape with or without a sign, of which many are equal."""
    sides, kind = draw(shape), draw(st.sampled_from([np.uint16, np.uint32]))
    most = 8 * np.dtype(kind).itemsize
    alike = st.integers(0, 3).map(
        lambda place: (0, 1 << (most - 1), 0x3F80 << (most - 16), (0x3F80 << (most - 16)) + 1)[place]
    )
    scores = draw(hnp.arrays(kind, sides, elements=alike) | hnp.arrays(kind, sides))
    return draw(hnp.arrays(draw(st.sampled_from([np.uint16, np.uint32, np.uint64])), sides)), scores


def magnitude_of(scores: np.ndarray) -> Any:
    """All bits but the sign."""
    return scores.dtype.type(np.iinfo(scores.dtype).max >> 1)


def zeroing(found: Arguments) -> Arguments:
    """Bits, scores, their magnitude, a bound that is one of them, and 0."""
    bits, scores = found
    magnitude = magnitude_of(scores)
    least = scores[len(scores) // 2] & magnitude if len(scores) else magnitude
    return bits, scores, magnitude, least, bits.dtype.type(0)


@st.composite
def keeping(draw: st.DrawFn) -> Arguments:
    """Bits and scores [groups, M, inner], and how many of each M to drop."""
    groups, size, inner = draw(st.integers(0, 5)), draw(st.integers(2, 9)), draw(st.integers(1, 4))
    bits, scores = draw(scored(st.just((groups, size, inner))))
    return bits, scores, magnitude_of(scores), draw(st.integers(1, size - 1)), bits.dtype.type(0)


@st.composite
def keeping_of_four(draw: st.DrawFn) -> Arguments:
    """The same for groups of four side by side."""
    bits, scores = draw(scored(st.integers(0, 20).map(lambda groups: (4 * groups,))))
    return bits, scores, magnitude_of(scores), draw(st.integers(1, 3))


def scores_of(kind: type) -> st.SearchStrategy[np.ndarray]:
    """Any bits, some hundreds at most."""
    return hnp.arrays(kind, st.integers(0, 300))


def few_high_bits() -> st.SearchStrategy[np.ndarray]:
    """Scores with one of three upper halves, some of them negative."""
    high, low = st.sampled_from([0, 1, 2, 1 << 15]), st.sampled_from([0, 1, 2**16 - 1])
    return hnp.arrays(
        np.uint32, st.integers(0, 300), elements=st.builds(lambda upper, lower: upper << 16 | lower, high, low)
    )


def decoded(returned: int, filled: Arguments) -> Arguments:
    """What was decoded; of a damaged stream, that it is."""
    return (returned, *filled) if returned >= 0 else (returned,)


Results = Callable[[Any, Arguments], Arguments]

RESULTS: dict[str, Results] = {  # of kernels that fill their arguments: what must agree
    "sums.add_errors": lambda rest, given: (np.append(given[2], rest),),
    "sums.energies": lambda rows, given: (rows, given[1]),
    "rans._encode": lambda begin, given: (begin, given[5], given[6][begin:]),
    "rans._decode_symbols": lambda taken, given: decoded(taken, (given[1], given[6])),
    "points._index_of": lambda counts, given: (*counts, given[6], given[7], given[8][: counts[1]]),
    "points._decode_points": lambda taken, given: decoded(taken, (given[1], given[11])),
    "trellis._forward": lambda states, given: (states, given[7]),
    "trellis._trace_back": lambda nothing, given: (given[4],),
    "trellis._grid_points": lambda nothing, given: (given[4],),
}
RESULTS |= {f"vector.{name}": RESULTS[f"rans._{name}"] for name in ("encode", "decode_symbols")}
RESULTS |= {"vector.decode_units16": lambda taken, given: decoded(taken, (given[1], given[7]))}
RESULTS |= {"vector.decode_points": RESULTS["points._decode_points"]}

ARGUMENTS: dict[str, st.SearchStrategy[Arguments]] = {
    "bitpack._pack_whole": packing([1, 2, 4], np.uint8),
    "bitpack._unpack_whole": unpacking([1, 2, 4]),
    "bitpack._pack_across": packing([3, 5, 6, 7], np.uint8) | packing(list(range(9, 16)), np.uint16),
    "bitpack._unpack_across": unpacking([3, 5, 6, 7, *range(9, 16)]),
    "rounding._largest_bits": st.tuples(any_float_bits(min_side=1).map(lambda b: b.view(np.int32)), GROUP_SIZES),
    "rounding._quantize": grid([3, 15, 254, 255], into=np.uint8) | grid([510, 2**15, 2**16 - 2], into=np.uint16),
    "rounding.dequantize": grid([3, 15, 255], codes=np.uint8) | grid([510, 2**16 - 2], codes=np.uint16),
    "tables._nearest": leveled(),
    "tables.look_up": coded(),
    "small_floats._to_e4m3": grid([3]).map(lambda found: (*found[:2], found[4])),
    "histogram._tally": counted(),
    "partition._last_starts": binned(),
    "widen.widen_bf16": hnp.arrays(np.uint16, shapes(), elements=BITS16).map(lambda bits: (bits,)),
    "widen.widen_f16": hnp.arrays(np.uint16, shapes(), elements=BITS16).map(lambda bits: (bits,)),
    "widen.narrow_bf16": any_float_bits().map(lambda bits: (not_nan(bits),)),
    "widen._round_bf16": any_float_bits().map(lambda bits: (not_nan(bits),)),
    "widen.narrow_f16": any_float_bits().map(lambda bits: (not_nan(bits),)),
    "sums.add_errors": two_slabs(),
    "sums.magnitude_sums": st.tuples(any_weight(min_side=1), GROUP_SIZES),
    "sums.fit_sums": grid([3, 15, 254, 255, 2**16 - 2]),
    "sums.energies": any_weight(min_side=1).map(lambda block: (block, np.zeros(block.shape[1]))),
    "rans._encode": codes().map(encoding),
    "rans._decode_symbols": codes().map(decoding),
    "points._index_of": codes().map(indexing),
    "points._decode_points": codes().map(point_decoding),
    "vector.encode": codes().map(encoding),
    "vector.decode_symbols": codes().map(decoding),
    "vector.decode_units16": codes().map(merging),
    "vector.decode_points": codes().map(point_decoding),
    "trellis._far": hnp.arrays(np.float32, st.integers(0, 9000), elements=st.floats(-4, 4, width=32)).map(
        lambda weights: (weights, np.float32(3))
    ),
    "trellis._forward": forward(),
    "trellis._trace_back": trace_back(),
    "trellis._grid_points": plain_grid(),
    "pruning._count_high": scores_of(np.uint16).map(lambda scores: (scores, 0))
    | scores_of(np.uint32).map(lambda scores: (scores, 16)),
    "pruning._count_low": st.tuples(scores_of(np.uint32) | few_high_bits(), st.integers(0, 2)),
    "pruning._zero_below": scored(st.integers(0, 60).map(lambda size: (size,))).map(zeroing),
    "pruning.random_scores": st.tuples(
        st.integers(0, 2**64 - 1).map(np.uint64), st.integers(0, 2**40), st.integers(0, 99)
    ),
    "pruning._keep_largest": keeping(),
    "pruning._keep_of_four": keeping_of_four(),
}


@pytest.mark.parametrize("name", all_kernels())
@given(data=st.data())
def test_a_kernel_gives_the_bytes_of_its_twin(name, data):
    kernel = all_kernels()[name]
    arguments = data.draw(ARGUMENTS[name])
    if results := RESULTS.get(name):
        assert_same(fill(kernel.compiled, arguments, results), fill(kernel.twin, arguments, results))
    else:
        assert_same(run(kernel.compiled, arguments), run(kernel.twin, arguments))


def fill(body: Callable[..., Any], arguments: Arguments, results: Results) -> tuple[np.ndarray, ...]:
    """What a body leaves in copies of its arguments, and what it returns."""
    given = tuple(part.copy() if isinstance(part, np.ndarray) else part for part in arguments)
    return tuple(np.asarray(part) for part in results(body(*given), given))


def run(body: Callable[..., Any], arguments: Arguments) -> tuple[np.ndarray, ...]:
    """What a body returns; the arguments are the same afterwards. The first cannot be written, as a mapped file."""
    first, *others = arguments
    if isinstance(first, np.ndarray):
        first = first.view()
        first.flags.writeable = False
    before = [argument.tobytes() for argument in arguments if isinstance(argument, np.ndarray)]
    returned = body(first, *others)
    assert before == [argument.tobytes() for argument in arguments if isinstance(argument, np.ndarray)]
    return returned if isinstance(returned, tuple) else (returned,)


def assert_same(ours: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...]) -> None:
    """The same bytes; where weights were not finite, only that the sums show it."""
    for one, other in zip(ours, theirs, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if one.dtype == np.float64 and not np.isfinite(one).all():
            assert not np.isfinite(other).all()
        else:
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 512 * 64 - 1, 512 * 64, 512 * 64 + 1, 3 * 512 * 64 + 77])
def test_error_sums_are_the_same_over_several_chunks_of_the_twin(size):
    both = all_kernels()["sums.add_errors"].compiled, all_kernels()["sums.add_errors"].twin
    random = np.random.default_rng(size)
    weights = random.normal(0, 1, size).astype(np.float32)
    restored = np.where(random.random(size) < 0.3, np.float32(0), weights + np.float32(0.01))
    found = [fill(body, (weights, restored, np.zeros((3, SLAB_LANES))), RESULTS["sums.add_errors"]) for body in both]
    assert_same(*found)


def test_every_kernel_has_its_arguments_here():
    assert set(ARGUMENTS) == set(all_kernels())
