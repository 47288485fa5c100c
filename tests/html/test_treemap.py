"""Treemaps: area is bytes, nothing overlaps, and there are never more rectangles than a picture can hold."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip_cli.html.treemap import Box, at_same_scale, layout, modules, squarify
from modelzip_cli.report import TensorRow

PICTURE = Box(0.0, 0.0, 560.0, 340.0)
sizes = st.lists(st.integers(1, 10**12), min_size=1, max_size=60)


def row(name: str, before: int = 100, after: int = 50) -> TensorRow:
    return TensorRow(name, (10,), "f32", "compressed", None, before, after)


def area(box: Box) -> float:
    return box.width * box.height


@given(sizes)
def test_areas_are_as_the_sizes(values):
    scale = area(PICTURE) / sum(values)
    for value, box in zip(values, squarify(values, PICTURE), strict=True):
        assert area(box) == pytest.approx(value * scale, rel=1e-6, abs=1e-6)


@given(sizes)
def test_boxes_stay_inside_and_do_not_overlap(values):
    boxes = squarify(values, PICTURE)
    for box in boxes:
        assert -1e-6 <= box.x <= box.x + box.width <= PICTURE.width + 1e-6
        assert -1e-6 <= box.y <= box.y + box.height <= PICTURE.height + 1e-6
    for number, a in enumerate(boxes):
        for b in boxes[number + 1 :]:
            across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
            down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
            assert across < 1e-6 or down < 1e-6


def test_equal_sizes_become_about_square():
    assert all(0.5 < box.width / box.height < 2 for box in squarify([1.0] * 24, PICTURE))


def test_modules_are_as_deep_as_their_number_allows():
    rows = [row(f"layers.{layer}.{part}.weight") for layer in range(4) for part in ("q", "k")]
    assert [module.name for module in modules(rows)][:2] == ["layers.0.q", "layers.0.k"]
    assert [module.name for module in modules(rows, most=7)] == [f"layers.{layer}" for layer in range(4)]
    assert [module.tensors for module in modules(rows, most=3)] == [8]


def test_more_first_components_than_allowed_end_in_one_module():
    found = modules([row(f"t{n}", 100 + n) for n in range(50)], most=10)
    assert len(found) == 10
    assert found[-1].name == "(others)"
    assert sum(module.before for module in found) == sum(range(100, 150))


def test_a_module_lies_beside_its_siblings():
    rows = [row(f"a.{n}.x.w") for n in range(4)] + [row(f"b.{n}.x.w") for n in range(4)]
    leaves, frames = layout(modules(rows), lambda module: module.before, PICTURE)
    assert [module.name[0] for module, _ in leaves] == ["a"] * 4 + ["b"] * 4
    assert [area(frame) for frame in frames] == pytest.approx([area(PICTURE) / 2] * 2)


def test_a_tied_tensor_and_a_dropped_one_have_no_area_after():
    rows = [row("a.w"), row("tied.w", 0, 0), TensorRow("gone.w", (10,), "f32", "dropped", "why", 100, 0)]
    leaves, _ = layout(modules(rows), lambda module: module.after, PICTURE)
    assert [module.name for module, _ in leaves] == ["a"]


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_before_and_after_have_one_scale(before, after):
    first, second = at_same_scale(before, after, 560.0, 340.0)
    assert area(first) * after == pytest.approx(area(second) * before, rel=1e-6)
    assert max(first.width, second.width) == pytest.approx(560.0 if before or after else 0.0)


def test_names_that_are_equal_in_their_first_components_only_differ_below():
    names = [".".join("abcdefgh"[:n]) + ".w" for n in range(1, 9)]
    leaves, _ = layout(modules([row(name) for name in names]), lambda module: module.before, PICTURE)
    assert len(leaves) == 8
    assert len({box for _, box in leaves}) == 8
    assert all(a != b for a, b in pairwise(leaves))
