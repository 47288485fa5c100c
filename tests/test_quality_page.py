"""docs/quality.md says what was measured: its tables parse, agree with themselves, and with a run of today.

The whole page is measured by benchmarks/quality.py, in minutes; here one cheap model is run again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from modelzip_cli.schemes import SCHEMES, parse_scheme

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "quality.md").read_text()
PICTURES = ROOT / "docs" / "quality"
CHECKPOINTS = sorted([*(ROOT / "sample_models").glob("*.pth"), *(ROOT / "sample_models").glob("*.safetensors")])
MATCHED = [path for path in CHECKPOINTS if path.name != "docs_lm_trainer.pth"]  # the weights of docs_lm once more
COLUMNS = ["scheme", "bytes", "smaller", "bits a weight", "SQNR dB", "change", "±"]
SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Row:
    """A row of the table of a checkpoint."""

    scheme: str
    bytes: int
    smaller: float
    value: float
    change: float
    error: float

    @property
    def parsed(self):
        return parse_scheme(self.scheme.partition(" ")[0])  # without "everywhere"


@dataclass(frozen=True)
class Match:
    """A row of the comparison at equal size: a scheme, and what `ecq` has in its bytes, None where it cannot have."""

    bytes: int
    decibels: float
    value: float
    ecq_decibels: float | None


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def generated(name: str) -> str:
    found = re.findall(
        rf"<!-- {re.escape(name)}: written by [^\n]* -->\n\n(.*?)\n\n<!-- end of {re.escape(name)} -->",
        PAGE,
        re.DOTALL,
    )
    assert len(found) == 1, name
    return found[0]


def table(checkpoint: str) -> dict[str, Row]:
    """The rows of a checkpoint by scheme, `original` first."""
    heads, rule, *lines = generated(checkpoint).splitlines()
    metric = cells(heads)[5]
    assert metric in ("accuracy %", "nats")
    assert cells(heads) == [*COLUMNS[:5], metric, *COLUMNS[5:]]
    assert set(rule) <= set("|-: ")
    rows = {}
    for line in lines:
        scheme, size, smaller, bits, decibels, value, change, error = cells(line)
        name = re.sub(r"[*`]", "", scheme)
        assert all(figure == "-" or float(figure) > 0 for figure in (bits, decibels))
        rows[name] = Row(
            name, int(size.replace(",", "")), float(smaller), float(value), float(change or 0), float(error or 0)
        )
    assert len(rows) == len(lines)
    return rows


def matched(checkpoint: str) -> dict[str, Match]:
    """The comparison of a checkpoint at equal size, by scheme."""
    _, _, *lines = generated(f"{checkpoint} at equal size").splitlines()
    rows = {}
    for line in lines:
        scheme, size, decibels, value, ecq_decibels, *_ = cells(line.replace("`", ""))
        found = None if ecq_decibels == "-" else float(ecq_decibels)
        rows[scheme] = Match(int(size.replace(",", "")), float(decibels), float(value), found)
    return rows


def lost(checkpoint: str, scheme: str) -> float:
    """Points of accuracy or nats that a scheme costs."""
    row = table(checkpoint)[scheme]
    return row.change if "lm" in checkpoint else -row.change


def test_every_scheme_is_measured_on_every_sample_model():
    families = set(SCHEMES) - {"fp32"}  # for float64 checkpoints
    assert len(CHECKPOINTS) == 5
    for checkpoint in CHECKPOINTS:
        rows = [row for row in table(checkpoint.name).values() if row.scheme != "original"]
        assert {row.parsed.id for row in rows} == families


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda path: path.name)
def test_the_figures_of_a_table_agree_with_each_other(checkpoint):
    rows = table(checkpoint.name)
    original = next(iter(rows.values()))
    assert (original.scheme, original.bytes) == ("original", checkpoint.stat().st_size)
    for row in rows.values():
        assert row.smaller == pytest.approx(original.bytes / row.bytes, abs=0.006)
        assert row.change == pytest.approx(row.value - original.value, abs=0.011 if original.value > 10 else 0.00011)


def test_the_first_table_shows_what_the_others_do():
    heads, _, *lines = generated("overview").splitlines()
    names = [re.findall(r"`(.*)`", head)[0] for head in cells(heads)[1:]]
    assert sorted(names) == [checkpoint.name for checkpoint in CHECKPOINTS]
    for line in lines:
        scheme, *values = cells(line.replace("`", ""))
        for name, value in zip(names, values, strict=True):
            rows = table(name)
            assert value == "-" if scheme not in rows else float(value) == rows[scheme].value


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda path: path.name)
def test_int8_costs_no_model_anything_to_speak_of(checkpoint):
    assert lost(checkpoint.name, "int8") <= (0.01 if "lm" in checkpoint.name else 0.5)


@pytest.mark.parametrize("checkpoint", MATCHED, ids=lambda path: path.name)
def test_ecq_is_compared_with_the_files_of_the_table(checkpoint):
    rows = table(checkpoint.name)
    matches = matched(checkpoint.name)
    assert {"int8", "int5", "int4-g128", "int3", "int2"} < set(matches)
    for scheme, match in matches.items():
        assert (match.bytes, match.value) == (rows[scheme].bytes, rows[scheme].value)


def test_ecq_beats_every_scheme_below_8_bits_on_the_language_model():
    _, _, *lines = generated("docs_lm.safetensors at equal size").splitlines()
    found = {cells(line)[0].strip("`"): cells(line)[-1].split(" ± ") for line in lines}
    rounded = 0.0001  # the last digit of the table
    assert all(float(less) < rounded - 2 * float(error) for scheme, (less, error) in found.items() if scheme != "int8")


def test_ecq_has_more_decibels_than_integers_at_equal_size_where_weights_fill_the_file():
    for checkpoint in MATCHED:
        if checkpoint.name not in ("digits_mlp.pth", "docstring_classifier.safetensors"):  # small; nearly all at int8
            rows, matches = table(checkpoint.name), matched(checkpoint.name)
            assert all(matches[name].ecq_decibels > matches[name].decibels for name in ("int5", "int4-g128", "int3"))
            assert rows["original"].bytes > 500_000


def test_lossless_changes_no_answer():
    for checkpoint in CHECKPOINTS:
        row = table(checkpoint.name)["lossless"]
        assert (row.change, row.error) == (0, 0)
        assert row.bytes < table(checkpoint.name)["original"].bytes


def test_int2_breaks_the_image_model():
    row = table("digits_cnn.pth")["int2"]
    assert lost("digits_cnn.pth", "int2") > max(5, 5 * row.error)
    assert lost("digits_cnn.pth", "int2 everywhere") >= 20  # by default the small first and last layers are spared


@pytest.mark.parametrize(("name", "scheme"), [("digits_mlp.pth", "int8"), ("digits_cnn.pth", "int2")])
def test_a_run_of_today_scores_what_the_page_says(name, scheme, modelzip, sample, tmp_path):
    from evaluate import evaluate_state_dict

    from modelzip_cli import load_file

    run = modelzip("quantize", sample(name), "--scheme", scheme, "-o", "small.safetensors")
    assert run.exit_code == 0
    row = table(name)[scheme]
    found = evaluate_state_dict(load_file(tmp_path / "small.safetensors"))
    assert found.value == pytest.approx(row.value, abs=0.11)  # two pictures: other processors add up differently
    assert (tmp_path / "small.safetensors").stat().st_size == pytest.approx(row.bytes, rel=0.02)  # the header may grow


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda path: path.name)
def test_a_picture_names_every_row_of_its_table(checkpoint):
    assert f"](quality/{checkpoint.stem}.svg)" in PAGE
    picture = ElementTree.parse(PICTURES / f"{checkpoint.stem}.svg")
    shown = [span.text for span in picture.iter(f"{SVG}tspan")]
    assert sorted(shown) == sorted(table(checkpoint.name))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda path: path.name)
def test_no_label_of_a_picture_covers_another(checkpoint):
    picture = ElementTree.parse(PICTURES / f"{checkpoint.stem}.svg")
    boxes = []
    for label in picture.iter(f"{SVG}text"):
        if label.get("class") == "label":
            written = "".join(label.itertext())
            x, y, width = float(label.get("x")), float(label.get("y")), 6.6 * len(written)
            left = x - width if label.get("text-anchor") == "end" else x
            boxes.append((written, left, left + width, y - 10, y + 2))
    assert boxes
    for (one, a0, a1, b0, b1), (other, c0, c1, d0, d1) in combinations(boxes, 2):
        assert a1 <= c0 or c1 <= a0 or b1 <= d0 or d1 <= b0, f"{one} and {other}"


def figures(name: str) -> dict[str, list[list[float]]]:
    """The rows of a table of what matters: by their first cell, the numbers of every other cell."""
    rows = [cells(line) for line in generated(name).splitlines()[2:]]
    return {
        first: [[float(one) for one in re.findall(r"(?<!± )\d+\.\d+", cell)] for cell in rest] for first, *rest in rows
    }


def test_fisher_beats_magnitude_on_the_language_model_and_nothing_is_worse_than_random():
    image, text = figures("pruned image"), figures("pruned text")
    ninety = 2
    assert text["magnitude"][ninety][-1] - text["fisher"][ninety][-1] >= 0.3
    assert all(text["random"][ninety][-1] > found[ninety][-1] for name, found in text.items() if name != "random")
    assert all(image["random"][ninety][-1] < found[ninety][-1] for name, found in image.items() if name != "random")
    assert image["magnitude"][ninety][-1] >= 83
    assert image["magnitude"][-1][0] >= 91


@pytest.mark.parametrize(("name", "better"), [("few bits image", 1), ("few bits text", -1)])
def test_error_feedback_makes_up_for_some_of_what_few_bits_lose(name, better):
    rows = figures(name)
    for scheme in ("`int3`", "`int2`", "`codebook3`"):
        nearest, fed = rows[scheme][1][0], rows[scheme][2][0]
        assert better * (fed - nearest) > 0, scheme


def test_the_picture_of_what_matters_has_every_criterion_and_stage():
    assert "](importance.svg)" in PAGE
    picture = ElementTree.parse(ROOT / "docs" / "importance.svg")
    shown = {label.text for label in picture.iter(f"{SVG}text")}
    stages = {
        f"{criterion}, {stage}" for criterion in ("magnitude", "fisher") for stage in ("as is", "repaired", "recovered")
    }
    assert stages <= shown
    lines = [path for path in picture.iter(f"{SVG}path") if path.get("class", "").startswith("line")]
    assert len(lines) == 3 * len(stages)  # in both panels, and in the legend
