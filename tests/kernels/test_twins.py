"""Every kernel gives the bytes of its twin. A kernel without a line in `ARGUMENTS` fails."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
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
from modelzip_cli.schemes.base import group_count
from modelzip_cli.schemes.granularity import WHOLE_ROW
from tests.strategies import any_float_bits, any_weight, shapes

Arguments = tuple[Any, ...]
GROUP_SIZES = st.sampled_from([1, 2, 3, 16, 17, 32, 128, WHOLE_ROW])
BITS16 = st.integers(0, 2**16 - 1)


def all_kernels() -> dict[str, Kernel]:
    """The kernels of all modules by module and name."""
    found = {}
    for module in pkgutil.iter_modules(kernels.__path__):
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
    """Weights and restored weights in one row, from none to several times as many as there are lanes."""
    size = draw(st.integers(0, 200))
    slab = hnp.arrays(np.float32, size, elements=st.floats(width=32))
    return draw(slab), draw(slab)


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
    "sums.error_sums": two_slabs(),
    "sums.magnitude_sums": st.tuples(any_weight(min_side=1), GROUP_SIZES),
    "sums.fit_sums": grid([3, 15, 254, 255, 2**16 - 2]),
}


@pytest.mark.parametrize("name", all_kernels())
@given(data=st.data())
def test_a_kernel_gives_the_bytes_of_its_twin(name, data):
    kernel = all_kernels()[name]
    arguments = data.draw(ARGUMENTS[name])
    assert_same(run(kernel.compiled, arguments), run(kernel.twin, arguments))


def run(body: Callable[..., Any], arguments: Arguments) -> tuple[np.ndarray, ...]:
    """What a body returns; the arguments are the same afterwards."""
    before = [argument.tobytes() for argument in arguments if isinstance(argument, np.ndarray)]
    returned = body(*arguments)
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
    kernel = all_kernels()["sums.error_sums"]
    random = np.random.default_rng(size)
    weights = random.normal(0, 1, size).astype(np.float32)
    restored = np.where(random.random(size) < 0.3, np.float32(0), weights + np.float32(0.01))
    assert_same(run(kernel.compiled, (weights, restored)), run(kernel.twin, (weights, restored)))


def test_every_kernel_has_its_arguments_here():
    assert set(ARGUMENTS) == set(all_kernels())
