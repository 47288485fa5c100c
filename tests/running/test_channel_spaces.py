"""Unification of axes, held against what it stands for: which position of one axis is which of another."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from modelzip_cli.running.channel_spaces import Axis, Segment, Spaces, repeated


def labels(spaces: Spaces, axis: Axis) -> list[tuple[int, int]]:
    """The channel of each position."""
    return [
        (segment.space, channel)
        for segment in spaces.resolve(axis)
        for channel in range(spaces.channels(segment.space))
        for _ in range(segment.repeat)
    ]


@st.composite
def axes(draw):
    """Spaces, and axes of 12 positions made of them, some of which have spaces in common."""
    spaces = Spaces()
    found: list[Axis] = []
    for _ in range(draw(st.integers(2, 5))):
        lengths = draw(st.sampled_from([[12], [6, 6], [4, 8], [8, 4], [3, 3, 6], [2, 4, 6], [5, 7]]))
        axis: Axis = ()
        for length in lengths:
            known = [segment for other in found for segment in other if spaces.positions((segment,)) == length]
            if known and draw(st.booleans()):
                axis += (draw(st.sampled_from(known)),)
            else:
                repeat = draw(st.sampled_from([times for times in (1, 2, 3, 6) if length % times == 0]))
                axis += repeated(spaces.new(length // repeat), repeat)
        found.append(axis)
    return spaces, found


@given(axes())
def test_unified_axes_have_the_same_channel_at_each_position_or_none_that_can_go(drawn):
    spaces, found = drawn
    for left, right in pairwise(found):
        spaces.unify(left, right, "they do not fit")

    for left, right in pairwise(found):
        assert spaces.positions(left) == spaces.positions(right) == 12
        for one, other in zip(labels(spaces, left), labels(spaces, right), strict=True):
            held = spaces.why_frozen((Segment(one[0]),)), spaces.why_frozen((Segment(other[0]),))
            assert one == other or all(held)


@given(axes(), st.integers(0, 12))
def test_an_axis_that_is_split_has_the_same_channels_in_two_pieces(drawn, position):
    spaces, (axis, *_) = drawn
    first, second = spaces.split(axis, position, "it does not fit")

    assert (spaces.positions(first), spaces.positions(second)) == (position, 12 - position)
    if spaces.why_frozen(axis) is None:
        assert labels(spaces, first + second) == labels(spaces, axis)


def test_a_space_becomes_the_list_of_spaces_that_it_meets():
    spaces = Spaces()
    weight, joined = spaces.new(12), spaces.new(4) + spaces.new(8)
    spaces.unify(weight, joined, "")
    assert spaces.resolve(weight) == joined


def test_a_space_that_meets_channels_of_several_positions_takes_their_order():
    spaces = Spaces()
    columns, channels = spaces.new(12), spaces.new(4)
    spaces.unify(columns, repeated(channels, 3), "")
    assert spaces.resolve(columns) == repeated(channels, 3)


def test_lists_cut_at_different_places_are_cut_at_all_of_them():
    spaces = Spaces()
    left, right = spaces.new(4) + spaces.new(8), spaces.new(6) + spaces.new(6)
    spaces.unify(left, right, "")
    assert [spaces.channels(segment.space) for segment in spaces.resolve(left)] == [4, 2, 6]


def test_channels_whose_positions_do_not_nest_are_frozen():
    spaces = Spaces()
    left, right = repeated(spaces.new(6), 2), repeated(spaces.new(4), 3)
    spaces.unify(left, right, "they do not fit")
    assert spaces.why_frozen(left) == spaces.why_frozen(right) == "they do not fit"


def test_what_meets_frozen_channels_is_frozen_for_the_same_reason():
    spaces = Spaces()
    output, channels, later = spaces.new(4, "the output"), spaces.new(4), spaces.new(4)
    spaces.unify(channels, output, "")
    spaces.unify(later, channels, "")
    assert spaces.why_frozen(later) == "the output"


def test_freezing_a_part_leaves_the_rest_free():
    spaces = Spaces()
    whole = spaces.new(8)
    first, second = spaces.split(whole, 3, "")
    spaces.freeze(first, "kept")
    assert (spaces.why_frozen(first), spaces.why_frozen(second), spaces.is_free(whole)) == ("kept", None, True)
    assert not spaces.is_free(())
