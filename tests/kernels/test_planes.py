"""The kernels of the lossless coder give the bytes of their twins, and undo each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelzip_cli.coders.tables import RATES, TOTAL, Tables
from modelzip_cli.kernels import coding_tables, planes
from tests.strategies import shapes

BYTES = st.integers(0, 255) | st.sampled_from([0, 0, 1, 120, 255])
PLANES = hnp.arrays(np.uint8, shapes(min_side=1), elements=BYTES)


def same(kernel, *arguments, fills=None):
    """Run both bodies; what they return, or what they leave in the arguments `fills`, must be equal."""
    results: list = []
    for body in (kernel.compiled, kernel.twin):
        own = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        returned = body(*own)
        results.append((returned, *(own[place] for place in fills or ())))
    left, right = (_flat(result) for result in results)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert np.array_equal(a, b)
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None) or not isinstance(a, np.ndarray)
    return results[0]


def _flat(value):
    return [part for each in value for part in _flat(each)] if isinstance(value, tuple) else [value]


@given(hnp.arrays(np.uint16, st.integers(0, 300)))
def test_units_of_16_bits_are_split_and_merged(bits):
    _, halves = same(planes.split16, bits, np.empty((2, len(bits)), np.uint8), fills=[1])
    merged, *_ = same(planes.merge16, halves[0], halves[1])
    assert np.array_equal(merged, bits)


@given(hnp.arrays(np.uint16, shapes(min_side=1)))
def test_units_of_16_bits_are_split_and_surveyed(bits):
    halves = np.empty((2, bits.size), np.uint8)
    (rows, columns, least), halves = same(planes.survey16, bits.reshape(-1), bits.shape[1], halves, fills=[2])
    assert np.array_equal(halves[0], bits.reshape(-1) >> 7 & 255)
    assert (rows.sum(), least) == (columns.sum(), halves[0].min())


def test_a_survey_does_not_overflow():
    same(planes.survey16, np.full(700 * 600, 0x7FFF, np.uint16), 600, np.empty((2, 700 * 600), np.uint8), fills=[2])


@given(hnp.arrays(np.uint32, st.integers(0, 300)))
def test_units_of_32_bits_are_split_and_merged(bits):
    _, parts = same(planes.split32, bits, np.empty((4, len(bits)), np.uint8), fills=[1])
    assert np.array_equal(parts[0], bits >> 23 & 255)
    merged, *_ = same(planes.merge32, *parts)
    assert np.array_equal(merged, bits)


@given(PLANES)
def test_sums_and_zeros_are_those_of_the_twins(plane):
    same(planes.sums, plane)
    same(planes.zeros, plane)
    same(planes.count, plane.reshape(-1))


def test_sums_do_not_overflow():
    same(planes.sums, np.full((700, 600), 255, np.uint8))
    same(planes.zeros, np.zeros((2, 1000), np.uint8))


@given(PLANES, st.data())
def test_contexts_are_those_of_the_twins(plane, data):
    classes = [data.draw(hnp.arrays(np.uint8, side, elements=st.integers(0, 31))) for side in plane.shape]
    counts, *_ = same(planes.tally, plane, *classes, 63)
    assert counts.sum() == plane.size
    for shift in range(3):
        for few in (1, 50, 10_000):
            (_, groups), *_ = same(coding_tables.grouped, counts, shift, few)
            assert groups.sum() == plane.size


@given(
    hnp.arrays(np.int64, st.integers(0, 30), elements=st.integers(0, 255)),
    hnp.arrays(np.uint8, st.integers(1, 30)),
    st.integers(0, 7),
    st.integers(0, 255),
    st.integers(1, 64),
    st.sampled_from([8, 11]),
)
def test_offsets_lie_inside_the_tables(rows, columns, shift, low, tables, bits):
    found = np.empty((len(rows), len(columns)), np.int32)
    _, found = same(planes.places, rows, columns, shift, low, tables, bits, found, fills=[6])
    assert ((found >= 0) & (found < tables << bits) & (found % (1 << bits) == 0)).all()


@given(
    hnp.arrays(np.int64, st.integers(0, 300), elements=st.integers(0, 255 * 99)),
    st.sampled_from([1, 8, 16]),
    st.sampled_from([1, 20, 99, 5000]),
    st.integers(1, 99),
)
def test_levels_are_those_of_the_twins(sums, octave, length, most_used):
    used = np.minimum(-(-sums // 255) * 2, 99)
    used[used > 0] = np.maximum(used[used > 0], -(-sums[used > 0] // 255))
    (_, levels), *_ = same(planes.levels, sums, used, octave, length, 32)
    assert (levels < 32).all()


COUNTS = hnp.arrays(
    np.int64,
    st.tuples(st.integers(1, 2), st.just(256)),
    elements=st.sampled_from([0, 0, 0, 1, 2, 17]) | st.integers(0, 1 << 19),
    fill=st.sampled_from([0, 0, 1]),
)


@given(COUNTS)
def test_tables_add_up_and_come_back(counts):
    (frequencies, bits), *_ = same(coding_tables.normalised, counts, RATES)
    assert (frequencies.sum(axis=1) == TOTAL).all()
    assert frequencies.max() < TOTAL
    assert (frequencies[counts > 0] > 0).all()
    assert bits >= 0
    written, *_ = same(coding_tables.write_tables, frequencies)
    slots, *_ = same(coding_tables.slots, frequencies)
    assert np.array_equal(slots, Tables(frequencies).slots)
    empty = np.zeros_like(frequencies)
    end, read = same(coding_tables.read_tables, written, 0, empty, TOTAL, fills=[2])
    assert end == len(written)
    assert np.array_equal(read, frequencies)


@given(COUNTS, st.data())
def test_damaged_tables_are_refused_or_add_up(counts, data):
    written = coding_tables.write_tables.twin(coding_tables.normalised.twin(counts[:1], RATES)[0]).copy()
    place = data.draw(st.integers(0, min(len(written), 40) - 1))
    written[place] ^= data.draw(st.integers(1, 255))
    read = np.zeros((2, 1, 256), np.int64)
    end = coding_tables.read_tables.compiled(written, 0, read[0], TOTAL)
    assert coding_tables.read_tables.twin(written, 0, read[1], TOTAL) == end
    if end >= 0:
        assert np.array_equal(read[0], read[1])
        assert read[0].sum() == TOTAL > read[0].max()


@given(hnp.arrays(np.uint8, st.tuples(st.integers(2, 4), st.integers(0, 300)), elements=BYTES), st.integers(1, 255))
def test_words_that_are_not_zero_but_begin_with_zero_get_a_symbol(words, other):
    used, *_ = same(planes.used, words)
    assert np.array_equal(used, words.any(axis=0))
    symbols, *_ = same(planes.with_other, words[0], used, np.uint8(other))
    assert np.array_equal(symbols == 0, ~words.any(axis=0))
    assert np.array_equal(symbols[words[0] > 0], words[0][words[0] > 0])


@given(hnp.arrays(np.uint8, st.integers(0, 300), elements=BYTES), st.data())
def test_what_belongs_to_zeros_is_left_out_and_put_back(symbols, data):
    plane = data.draw(hnp.arrays(np.uint8, len(symbols)))
    kept, *_ = same(planes.without_zeros, symbols, plane)
    back, *_ = same(planes.with_zeros, symbols, kept)
    assert np.array_equal(back, np.where(symbols == 0, 0, plane))


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_smallest_inputs_are_counted(size):
    counts, *_ = same(planes.count, np.full(size, 7, np.uint8))
    assert counts[7] == size


@pytest.mark.parametrize("size", [(1 << 17) - 1, 1 << 17, (1 << 17) + 1])
def test_large_inputs_are_counted_by_pairs(size):
    symbols = np.random.default_rng(size).geometric(0.03, size).astype(np.uint8)
    same(planes.count, symbols)
    same(planes.count, np.full(size, 255, np.uint8))
