"""The page about a front: the curve, its marks, and that nothing from a file can act in it."""

from __future__ import annotations

import re

from modelzip_cli.front import Front, Point
from modelzip_cli.html.front import front_page
from modelzip_cli.report import Side
from tests.html.test_page import HOSTILE, Elements

COMMAND = "modelzip compress model.safetensors"
POINTS = tuple(Point(float(bits), 1000 * bits + 500, 16 / bits, 6.0 * bits - 1) for bits in range(1, 9))


def front(path: str = "runs/model.safetensors", *, choice: int | None = 3, **more: object) -> Front:
    source = Side(path, "safetensors", 16_000, 4, 8000)
    lossless = Point(None, 11_000, 1.45, None)
    values = {"knee": 2, "reason": "the smallest of these", "command": f"{COMMAND} --bpw 4"}
    return Front(source, POINTS, lossless, choice=choice, **(values | more))  # type: ignore[arg-type]


def test_every_point_is_on_the_curve_with_its_figures():
    page = front_page([front()], command_line=COMMAND)
    assert len(re.findall(r"<circle ", page)) == len(POINTS)
    assert "<title>4.00 bits a weight, recommended\n4.50 kB, 4.00x smaller\n23.0 dB, error 7.1 %</title>" in page
    assert "<title>3.00 bits a weight, knee\n" in page


def test_the_curve_falls_from_left_to_right():
    page = front_page([front()], command_line=COMMAND)
    line = re.search(r'class="line" d="M([^"]+)"', page)
    assert line
    places = [tuple(map(float, place.split())) for place in line[1].split("L")]
    assert places == sorted(places)
    assert [y for _, y in places] == sorted(y for _, y in places)
    assert all(0 <= x <= 560 and 0 <= y <= 340 for x, y in places)


def test_elements_are_balanced_and_nothing_is_loaded():
    for fronts in ([front()], [front(), front("other.pth", choice=None)], [front(warnings=("careful",))]):
        page = front_page(fronts, command_line=COMMAND)
        elements = Elements(page).elements
        assert not [tag for tag, attributes in elements if {"src", "href"} & set(attributes)]
        assert "://" not in page


def test_a_front_without_points_has_no_curve():
    source, lossless = Side("a.safetensors", "safetensors", 100, 1, 10), Point(None, 90, 1.1, None)
    bare = Front(source, (), lossless, None, None, "lossless: nothing else is left", None)
    page = front_page([bare], command_line=COMMAND)
    Elements(page)
    assert "<circle" not in page
    assert "lossless" in page


def test_a_path_or_a_warning_cannot_act():
    found = front(f"{HOSTILE}.safetensors", warnings=(HOSTILE,), command=f"modelzip compress '{HOSTILE}'")
    page = front_page([found], command_line=f"modelzip compress {HOSTILE}")
    assert "<img" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    Elements(page)
