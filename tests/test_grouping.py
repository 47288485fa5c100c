"""Names in groups: every name is in one group, and a group's label says which they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip_cli.grouping import braces, group, index_set, tree


def labels(names: list[str], keys: list[object] | None = None) -> list[str]:
    return [found.label for found in group(names, keys or [0] * len(names))]


@pytest.mark.parametrize(
    ("numbers", "written"),
    [
        ([7], "7"),
        (range(32), "{0..31}"),
        ([0, 5, 6, 7], "{0,5..7}"),
        ([3, 1], "{1,3}"),
        ([1, 2], "{1,2}"),
        ([4, 4], "4"),
    ],
)
def test_numbers_are_written_as_sets(numbers, written):
    assert index_set(numbers) == written


@given(st.sets(st.integers(0, 200), min_size=1))
def test_a_set_of_numbers_names_each_of_them_and_no_other(numbers):
    found = set()
    for piece in index_set(numbers).strip("{}").split(","):
        first, _, last = piece.partition("..")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == numbers


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["q_proj", "o_proj"], "{q,o}_proj"),
        (["up", "down"], "{up,down}"),
        (["fc1", "fc2"], "fc{1,2}"),
        (["aa", "aaa"], "aa{,a}"),
    ],
)
def test_words_are_written_by_what_they_share(words, written):
    assert braces(words) == written


def test_layers_of_the_same_kind_become_one_row():
    names = [f"layers.{n}.{part}.weight" for n in range(32) for part in ("q_proj", "o_proj")]
    assert labels(names) == ["layers.{0..31}.{q,o}_proj.weight"]


def test_a_layer_that_differs_is_a_row_of_its_own():
    names = [f"layers.{n}.w" for n in range(4)]
    assert labels(names, [0, 0, 1, 0]) == ["layers.{0,1,3}.w", "layers.2.w"]


def test_siblings_of_different_kinds_stay_apart():
    assert labels(["a.weight", "a.bias"], [2, 1]) == ["a.weight", "a.bias"]


PARTS = st.sampled_from(["a", "b", "q_proj", "k_proj", "0", "1", "12", "", "{", "é"])


@pytest.mark.parametrize("name", ["#", "a.#.w", "²", "x.²", "٣", "9" * 5000, "-1", "007", "", "."])
def test_a_name_that_is_nearly_a_number_is_a_name(name):
    assert [found.members for found in group([name, "b.0.w"], [0, 0])] == [(0,), (1,)]


@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map(".".join), unique=True), st.data())
def test_every_name_is_in_exactly_one_group_with_names_of_its_own_kind(names, data):
    keys = data.draw(st.lists(st.integers(0, 2), min_size=len(names), max_size=len(names)))
    groups = group(names, keys)
    assert sorted(place for found in groups for place in found.members) == list(range(len(names)))
    for found in groups:
        assert {keys[place] for place in found.members} == {found.key}
        assert {len(names[place].split(".")) for place in found.members} == {len(found.parts)}


@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map(".".join), unique=True, min_size=1))
def test_the_tree_adds_up_to_all_names_and_bytes(names):
    sizes = [place + 1 for place in range(len(names))]
    nodes = tree(group(names, [0] * len(names)), sizes)
    assert sum(node.count for node in nodes) == len(names)
    assert sum(node.size for node in nodes) == sum(sizes)


def test_the_tree_joins_single_ways_down_and_puts_the_largest_first():
    nodes = tree(group(["a.b.small", "a.b.large", "c"], [0, 1, 2]), [1, 5, 2])
    assert [(node.name, node.size) for node in nodes] == [("a.b", 6), ("c", 2)]
    assert [node.name for node in nodes[0].children] == ["large", "small"]
