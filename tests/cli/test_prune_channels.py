"""`modelzip prune --channels` through the program."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import SAMPLES
from tests.test_report_schema import assert_is

DIGITS = SAMPLES / "digits_test.npz"


def test_a_narrower_network_is_written_and_runs(modelzip, sample, tmp_path):
    source = sample("digits_cnn.pt2")
    before = source.read_bytes()
    run = modelzip("prune", source, "--channels", "0.5", "-j", "1", "--json")
    assert run.exit_code == 0, run.stderr
    assert_is("narrowing", run.json)
    assert run.json["parameters"] == {"before": 173_842, "after": 44_014}
    narrow = tmp_path / "digits_cnn.c50.pt2"
    assert run.json["output"]["bytes"] == narrow.stat().st_size < len(before) / 2
    assert source.read_bytes() == before
    module = torch.export.load(narrow).module()
    assert module(torch.rand(5, 1, 12, 12)).shape == (5, 10)
    assert modelzip("prune", source, "--channels", "0.5").exit_code == 2  # it is there already


def test_data_set_the_statistics_and_say_what_the_cut_cost(modelzip, sample, tmp_path):
    source = sample("digits_cnn.pt2")
    run = modelzip("prune", source, "--channels", "0.75", "--data", DIGITS, "-j", "1", "-n", "--json")
    assert_is("narrowing", run.json)
    after = run.json["evaluation"]["after"]
    assert 0.5 < after["accuracy"] < run.json["evaluation"]["before"]["accuracy"]
    assert run.json["output"] is None
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--channels", "1.5"), "between 0 and 1"),
        (("--channels", "0.5", "--sparsity", "0.5"), "--sparsity"),
        (("--channels", "0.5", "-o", "narrow.pth"), ".pt2"),
        (("--sparsity", "0.5", "--mean", "0.5"), "--data"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(modelzip, sample, arguments, words):
    run = modelzip("prune", sample("digits_cnn.pt2"), *arguments)
    assert (run.exit_code, run.stderr.count("\n")) == (2, 1), run.stderr
    assert words in run.stderr


def test_weights_alone_say_what_is_missing(modelzip, sample):
    run = modelzip("prune", sample("digits_cnn.pth"), "--channels", "0.5")
    assert run.exit_code == 2
    assert "--arch" in run.stderr
    run = modelzip("prune", "digits_cnn.pth", "--channels", "0.5", "--arch", f"{SAMPLES / 'train.py'}:DigitsCNN")
    assert run.exit_code == 2
    assert "--data" in run.stderr
