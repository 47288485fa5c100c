"""The front of size against error: what it predicts is what a run gives, and what it recommends can be explained."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from modelzip_cli import front as module
from modelzip_cli.errors import UsageError
from modelzip_cli.front import ANY_GOAL, STEPS, Front, Point, choose, command_for, front_of, knee_of
from modelzip_cli.recipe import Goal, Recipe, Rule
from modelzip_cli.single import Settings, compress_file
from tests.checkpoints import trainer_pth, weights
from tests.conftest import SAMPLES

ASKED = Recipe(scheme="ecq", goal=ANY_GOAL)
BULKY = Point(None, 10**9, 1.0, None)


def front(path: Path, recipe: Recipe = ASKED) -> Front:
    with ThreadPoolExecutor(2) as executor:
        return front_of(path, recipe, executor, requantize=False)


def points(*pairs: tuple[int, float]) -> list[Point]:
    """Points of so many bytes and so many dB."""
    return [Point(size / 100, size, 1.0, decibel) for size, decibel in pairs]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Front]:
    """A model with rows of several scales, and its front."""
    path = tmp_path_factory.mktemp("front") / "model.safetensors"
    scales = torch.exp(torch.linspace(-1, 1, 256))[:, None]
    tensors = {f"layers.{n}.weight": weights(256, 64, seed=n) * scales for n in range(2)}
    save_file({**tensors, "norm.weight": torch.ones(128), "bias": weights(4000)}, path)
    return path, front(path)


def test_points_go_from_small_to_large_and_each_keeps_more(model):
    found = model[1].points
    assert len(found) == len(STEPS)
    assert [point.bytes for point in found] == sorted({point.bytes for point in found})
    assert [point.sqnr_db for point in found] == sorted({point.sqnr_db for point in found})
    assert found[0].bits_per_weight < 1.5
    assert found[-1].bits_per_weight > 7


@pytest.mark.parametrize("place", [1, 5, 9])
def test_a_point_is_what_a_run_with_its_bits_gives(model, tmp_path, place):
    path, found = model
    point = found.points[place]
    goal = Goal("bpw", point.bits_per_weight * 1.001)
    report = compress_file(
        path, tmp_path / "out.safetensors", replace(ASKED, goal=goal), Settings(jobs=2), command="compress"
    )
    assert point.bytes == pytest.approx(report.output.bytes, rel=0.005)
    assert point.sqnr_db == pytest.approx(report.totals["sqnr_db"], abs=0.3)
    assert point.ratio == pytest.approx(report.totals["ratio"], rel=0.005)


@pytest.mark.parametrize("name", ["digits_mlp.pth", "digits_cnn.pth"])
def test_the_lossless_point_is_what_lossless_gives(tmp_path, name):
    found = front(SAMPLES / name).lossless
    asked = Recipe(scheme="lossless", keep_extras=True)
    report = compress_file(SAMPLES / name, tmp_path / "out.safetensors", asked, Settings(jobs=2), command="compress")
    assert found.bytes == pytest.approx(report.output.bytes, rel=0.01)
    assert found.bits_per_weight is None
    assert found.sqnr_db is None


def test_no_point_is_offered_at_which_a_tensor_falls_below_3_db(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STEPS", (4.0, 2.5, 0.3, 0.1))
    save_file({"w": weights(128, 64)}, tmp_path / "w.safetensors")
    found = front(tmp_path / "w.safetensors").points
    assert len(found) == 2
    assert found[0].sqnr_db > 3


def test_the_knee_is_the_corner_of_two_lines():
    assert knee_of(points((100, 2), (200, 40), (300, 43), (400, 50))) == 1


@pytest.mark.parametrize("few", [[], [(100, 5)], [(100, 5), (200, 20)], [(100, 1), (900, 1.2), (1000, 40)]])
def test_two_points_or_a_curve_above_its_chord_have_no_knee(few):
    assert knee_of(points(*few)) is None


@given(
    errors=st.lists(st.floats(0.001, 0.9), min_size=3, max_size=12, unique=True),
    sizes=st.lists(st.integers(1, 10**12), min_size=12, max_size=12, unique=True),
)
def test_the_knee_is_a_point_between_the_ends_and_no_other_lies_lower(errors, sizes):
    errors, sizes = sorted(errors, reverse=True), sorted(sizes)[: len(errors)]
    found = [Point(1.0, size, 1.0, -20 * math.log10(error)) for size, error in zip(sizes, errors, strict=True)]
    knee = knee_of(found)
    assert knee is None or 0 <= knee < len(found)

    def below(place: int) -> float:
        x = (sizes[place] - sizes[0]) / (sizes[-1] - sizes[0])
        return 1 - x - (errors[place] - errors[-1]) / (errors[0] - errors[-1])

    assert max(map(below, range(len(found)))) <= (1e-9 if knee is None else below(knee) + 1e-9)


def test_the_knee_is_recommended_where_it_keeps_20_db():
    choice, reason = choose(points((100, 5), (200, 20), (900, 40)), 1, BULKY)
    assert choice == 1
    assert reason.startswith("the knee")


def test_the_smallest_with_20_db_is_recommended_where_the_knee_keeps_less():
    choice, reason = choose(points((100, 5), (200, 19), (300, 20.5), (900, 40)), 1, BULKY)
    assert choice == 2
    assert "the knee, at 2.00 bits, keeps 19.0 dB only" in reason


def test_the_finest_is_recommended_where_none_keeps_20_db():
    choice, reason = choose(points((100, 5), (200, 12), (300, 13)), 1, BULKY)
    assert choice == 2
    assert reason.startswith("the finest")


def test_lossless_is_recommended_where_it_takes_no_more():
    choice, reason = choose(points((100, 5), (200, 21), (900, 40)), 1, Point(None, 200, 1.0, None))
    assert choice is None
    assert reason.startswith("lossless")
    assert choose([], None, BULKY)[0] is None


def test_weights_of_two_values_are_best_kept_losslessly(tmp_path):
    save_file({"w": weights(256, 256).sign().bfloat16()}, tmp_path / "w.safetensors")
    found = front(tmp_path / "w.safetensors")
    assert found.choice is None
    assert found.command.endswith("w.safetensors --lossless")


def test_the_command_repeats_what_was_asked_for():
    asked = replace(
        ASKED, skip=("head*",), rules=(Rule("it's", "keep"),), key="ema model", keep_extras=True, allow_nonfinite=True
    )
    assert command_for(Path("a b.pth"), asked, Point(3.4412, 1, 1.0, 20.0)) == (
        "modelzip compress 'a b.pth' --bpw 3.45 --skip 'head*' --set 'it'\"'\"'s=keep' --keep-extras "
        "--allow-nonfinite --key 'ema model'"
    )
    assert command_for(Path("-x.pth"), ASKED, None) == "modelzip compress ./-x.pth --lossless"


def test_what_is_beside_the_weights_counts_where_it_is_kept(tmp_path):
    path = trainer_pth(tmp_path / "trainer.pth")
    plain, with_extras = front(path), front(path, replace(ASKED, keep_extras=True))
    assert with_extras.points[0].bytes > plain.points[0].bytes + 96 * 64 * 4
    assert plain.lossless == with_extras.lossless


def test_rules_change_what_is_predicted(tmp_path):
    path = trainer_pth(tmp_path / "trainer.pth")
    ruled = front(path, replace(ASKED, rules=(Rule("embed.*", "keep"),)))
    assert ruled.points[0].bytes > front(path).points[0].bytes + 128 * 64
    assert "--set 'embed.*=keep'" in ruled.command


def test_a_compressed_source_is_refused(tmp_path, model):
    out = tmp_path / "out.safetensors"
    compress_file(model[0], out, Recipe(scheme="int4"), Settings(jobs=2), command="quantize")
    with pytest.raises(UsageError, match="compressed already"):
        front(out)
    with ThreadPoolExecutor(2) as executor:
        found = front_of(out, ASKED, executor, requantize=True)
    assert found.command.endswith("--requantize")


def test_a_file_that_cannot_get_smaller_gets_no_command(tmp_path):
    save_file({"bias": weights(16)}, tmp_path / "tiny.safetensors")
    found = front(tmp_path / "tiny.safetensors")
    assert (found.points, found.knee, found.choice, found.command) == ((), None, None, None)
    assert found.reason.startswith("nothing")
