"""Frequency tables: from counts, as bytes and back, and what is no table is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelzip_cli.coders.tables import (
    OPEN_CLASSES,
    RATES,
    TOTAL,
    Damaged,
    Tables,
    from_counts,
    read_number,
    read_set,
    symmetric_from_counts,
    write_number,
    write_set,
)

any_counts = hnp.arrays(np.int64, 256, elements=st.sampled_from([0, 0, 0, 1, 2, 7, 100, 5000, 10**9]))
each_open_width = pytest.mark.parametrize("width", [1, 2])


def bell(sigma: float, weights: float = 1e6) -> np.ndarray:
    """Counts of a symmetric bell around the symbol of 0."""
    density = np.exp(-0.5 * ((np.arange(256) - 127) / sigma) ** 2)
    density[255] = 0
    return np.floor(density / density.sum() * weights).astype(np.int64)


def bits(counts: np.ndarray, frequencies: np.ndarray) -> float:
    """What symbols cost with a table."""
    used = counts > 0
    return float((counts[used] * (math.log2(TOTAL) - np.log2(frequencies[used]))).sum())


def entropy(counts: np.ndarray) -> float:
    used = counts[counts > 0]
    return float((used * np.log2(used.sum() / used)).sum())


def a_set(width: int, first: int, last: int) -> Tables:
    """Tables of the classes [first, last)."""
    bells = [bell(0.3 * 1.2**c) for c in range(OPEN_CLASSES) for _ in range(width)]
    return Tables(np.array([symmetric_from_counts(counts) for counts in bells]), (first * width, last * width))


@given(counts=any_counts)
@example(counts=np.zeros(256, np.int64))
@example(counts=np.ones(256, np.int64))
@example(counts=np.eye(256, dtype=np.int64)[255] * 10**12)
def test_frequencies_add_up_and_every_symbol_that_was_counted_has_one(counts):
    frequencies = from_counts(counts)
    assert frequencies.sum() == TOTAL
    assert ((frequencies > 0) >= (counts > 0)).all()
    assert frequencies.max() < TOTAL


@given(counts=any_counts)
@example(counts=np.zeros(256, np.int64))
@example(counts=np.eye(256, dtype=np.int64)[255] * 10**12)
@example(counts=np.eye(256, dtype=np.int64)[0] * 10**12)
def test_with_an_escape_rare_symbols_have_no_frequency_and_the_escape_always_has(counts):
    frequencies = from_counts(counts, escape=255)
    assert frequencies.sum() == TOTAL
    assert 0 < frequencies[255] < TOTAL
    common = counts[:255] * 2**13 >= max(1, counts.sum())
    assert (frequencies[:255] > 0)[common].all()
    assert not (frequencies[:255] > 0)[~common].any() or not common.any()


@given(counts=any_counts)
@example(counts=np.zeros(256, np.int64))
@example(counts=np.eye(256, dtype=np.int64)[255] * 10**12)
@example(counts=np.eye(256, dtype=np.int64)[127])
@example(counts=np.eye(256, dtype=np.int64)[0])
@example(counts=np.ones(256, np.int64))
def test_tables_of_an_open_range_are_symmetric_and_can_escape(counts):
    frequencies = symmetric_from_counts(counts)
    assert frequencies.sum() == TOTAL
    assert (frequencies[:255] == frequencies[254::-1]).all()
    assert 0 < frequencies[255] < TOTAL
    assert frequencies[:255].any()
    assert frequencies.max() < TOTAL
    one = Tables(frequencies[None])
    assert np.array_equal(Tables.from_bytes(one.to_bytes(), 1)[0].frequencies, one.frequencies)


def best_frequencies(counts: np.ndarray) -> np.ndarray:
    """The loss in bits is convex, so giving one after the other to whom it saves most is the best there is."""
    (used,) = np.nonzero(counts)
    found = np.ones(len(used), np.int64)
    for _ in range(TOTAL - len(used)):
        found[np.argmax(counts[used] * np.log2((found + 1) / found))] += 1
    frequencies = np.zeros(256, np.int64)
    frequencies[used] = found
    return frequencies


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.5, 4, 11])
def test_frequencies_are_the_best_there_are_to_a_thousandth_of_a_bit(sigma):
    counts = bell(sigma)
    assert bits(counts, from_counts(counts)) < bits(counts, best_frequencies(counts)) + 0.001 * counts.sum()


@given(counts=hnp.arrays(np.int64, 256, elements=st.integers(0, 1000)))
def test_frequencies_of_any_counts_are_nearly_the_best_there_are(counts):
    if np.count_nonzero(counts) > 1:
        assert bits(counts, from_counts(counts)) < bits(counts, best_frequencies(counts)) + 0.005 * counts.sum()


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.5, 4, 11])
def test_escapes_leave_frequencies_to_those_that_need_them(sigma):
    counts = bell(sigma)
    symmetric, escaping = symmetric_from_counts(counts), from_counts(counts, escape=255)
    for frequencies in (symmetric, escaping):
        rare = (counts > 0) & (frequencies == 0)
        assert counts[rare].sum() < 0.003 * counts.sum()
        assert bits(np.where(rare, 0, counts), frequencies) < entropy(counts) + 0.005 * counts.sum()


def test_rates_are_logarithms_to_half_a_unit():
    exact = 256 * (11 - np.log2(np.arange(1, TOTAL + 1)))
    assert np.abs(RATES[1:] - exact).max() <= 0.51
    assert RATES[0] == 1 << 15


def test_slots_and_intervals_are_two_views_of_one_table():
    tables = Tables(np.array([from_counts(bell(2)), symmetric_from_counts(bell(0.4)), from_counts(np.ones(256, int))]))
    slots, intervals = tables.slots.reshape(3, TOTAL), tables.intervals.reshape(3, 256)
    for table, row in enumerate(tables.frequencies):
        for symbol in np.flatnonzero(row):
            start, frequency = int(intervals[table, symbol]) >> 16, int(intervals[table, symbol]) & 0xFFFF
            assert frequency == row[symbol]
            part = slots[table, start : start + frequency]
            assert (part & 255 == symbol).all()
            assert (part >> 20 == frequency).all()
            assert (part >> 8 & 4095 == np.arange(frequency)).all()
    assert (tables.known == (tables.frequencies > 0)).all()


@given(counts=any_counts, escape=st.sampled_from([None, 255]))
def test_a_table_comes_back_from_its_bytes(counts, escape):
    tables = Tables(np.array([from_counts(counts, escape=escape), from_counts(counts[::-1], escape=escape)]))
    data = tables.to_bytes()
    found, end = Tables.from_bytes(b"xyz" + data + b"more", 2, 3)
    assert end == 3 + len(data)
    assert np.array_equal(found.frequencies, tables.frequencies)


def test_symmetric_tables_take_half_the_bytes():
    one_sided = from_counts(np.roll(bell(5), 1))
    assert len(Tables(symmetric_from_counts(bell(5))[None]).to_bytes()) < 0.6 * len(Tables(one_sided[None]).to_bytes())


@given(data=st.binary(max_size=80), count=st.integers(1, 3))
def test_any_bytes_are_tables_that_add_up_or_are_refused(data, count):
    try:
        tables, end = Tables.from_bytes(data, count)
    except Damaged:
        return
    assert end <= len(data)
    assert (tables.frequencies.sum(axis=1) == TOTAL).all()
    assert tables.frequencies.min() >= 0
    assert tables.frequencies.max() < TOTAL
    assert len(tables.slots) == count * TOTAL


FORGED = {
    "more than all": [2 * 10, 1, *(0x80 | 0, 16), 5],
    "one symbol with all": [2 * 10, 0, *(0x80 | 0, 16)],
    "nothing but the last": [2 * 10, 0, 0],
    "symbols above 254": [*(0x80 | (2 * 254) & 127, 2 * 254 >> 7), 1, 1, 1],
    "a first symbol above 254": [*(0x80 | (2 * 255) & 127, 2 * 255 >> 7), 0, 1],
    "symmetric about another symbol": [2 * 10 + 1, 0, 5],
    "symmetric and more than all": [*(0x80 | 255 & 127, 255 >> 7), 1, 10, *(0x80 | 0, 8)],
    "a count that never ends": [2 * 10, 0, *[0x80] * 9],
    "a number with a superfluous byte": [2 * 10, 0, 0x85, 0],
    "a number above 2^35": [2 * 10, 0, *[0xFF] * 5, 1],
    "a huge number of symbols": [2 * 10, 0xFF, 0xFF, 0x7F, 1],
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED)
def test_what_is_no_table_is_refused(data):
    with pytest.raises(Damaged):
        Tables.from_bytes(bytes(data), 1)


def test_tables_that_are_cut_short_are_refused():
    data = a_set(2, 3, 9).to_bytes()
    for length in range(len(data)):
        with pytest.raises(Damaged):
            Tables.from_bytes(data[:length], 12)


@each_open_width
@pytest.mark.parametrize("span", [(0, OPEN_CLASSES), (5, 6), (0, 1), (39, 40), (7, 31)])
def test_a_set_comes_back_with_the_tables_of_its_classes(width, span):
    tables = a_set(width, *span)
    found = read_set(write_set(tables))
    assert found.used == tables.used
    used = slice(*tables.used)
    assert np.array_equal(found.frequencies[used], tables.frequencies[used])
    assert found.frequencies.shape == tables.frequencies.shape
    assert (found.frequencies.sum(axis=1) == TOTAL).all()


@each_open_width
def test_a_set_that_is_cut_short_or_too_long_is_refused(width):
    data = write_set(a_set(width, 10, 13))
    for length in range(len(data)):
        with pytest.raises(Damaged):
            read_set(data[:length])
    with pytest.raises(Damaged, match="mean nothing"):
        read_set(data + b"\0")


@pytest.mark.parametrize(
    "front", [(0, 0, 0), (3, 0, 0), (255, 0, 0), (2, 40, 0), (2, 39, 1), (1, 0, 40), (2, 255, 255)]
)
def test_a_set_of_classes_that_do_not_exist_is_refused(front):
    with pytest.raises(Damaged, match="classes"):
        read_set(bytes(front) + write_set(a_set(2, 0, OPEN_CLASSES))[3:])


@given(number=st.integers(0, 2**35 - 1))
@example(number=127)
@example(number=128)
@example(number=2**35 - 1)
def test_numbers_come_back(number):
    out = bytearray(b"before")
    write_number(out, number)
    assert read_number(bytes(out) + b"after", 6) == (number, len(out))
