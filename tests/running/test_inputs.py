from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelzip_cli.running.inputs import fingerprint, order, split

keys = st.lists(st.integers(-(2**70), 2**70), max_size=3)


@given(st.integers(0, 300), keys)
def test_an_order_is_a_permutation_that_depends_on_its_key_alone(count, key):
    np.random.seed(count)  # a generator of others, which must not matter
    found = order(count, *key)
    assert found.dtype == np.int64
    assert sorted(found) == list(range(count))
    assert np.array_equal(found, order(count, *key))


@given(st.integers(20, 300), keys, keys)
def test_other_keys_give_other_orders(count, key, other):
    assert np.array_equal(order(count, *key), order(count, *other)) == (key == other)


def test_an_order_stays_as_it_is_in_later_versions():
    assert order(8, 0, 1).tolist() == [0, 1, 4, 5, 3, 2, 7, 6]


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=200), st.floats(0, 1), keys)
def test_a_split_is_disjoint_complete_and_sorted(places, share, key):
    rows = np.array(sorted(places, reverse=True), np.int64)
    rest, held = split(rows, share, *key)
    assert sorted([*rest, *held]) == sorted(places)
    assert sorted(rest) == list(rest)
    assert sorted(held) == list(held)
    assert len(held) == max(1, round(share * len(rows)))


def test_a_fingerprint_tells_apart_what_differs_in_a_cut():
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint(None, 1, (0.5, "\udc80")) == fingerprint(None, 1, (0.5, "\udc80"))
