"""Every figure of an evaluation against numpy in float64, on scores that are looked up instead of computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from modelzip_cli.errors import BadData, ModelDoesNotRun
from modelzip_cli.running import evaluate as module
from modelzip_cli.running.evaluate import (
    Evaluation,
    batches,
    check_gates,
    chosen_rows,
    evaluate,
    largest_class,
    measure_latency,
    prepared,
)
from modelzip_cli.running.inputs import IGNORED, Batch, Examples, Wanted
from modelzip_cli.running.model import Model

NAN, INF = math.nan, math.inf


class Rows(Examples):
    """Example i has the input i, float32 [1], or int64 [time] filled with i where labels or a mask have positions."""

    def __init__(self, count: int, labels: np.ndarray | None = None, mask: np.ndarray | None = None, time: int = 0):
        self.label, self.labels, self.labelled = "rows", labels, labels is not None
        self.a_label_a_position = labels is not None and labels.ndim == 2
        self._count, self._mask, self._time = count, mask, time

    def __len__(self) -> int:
        return self._count

    def batch(self, rows: np.ndarray) -> Batch:
        at = torch.from_numpy(np.asarray(rows, np.int64))
        x = at[:, None].expand(-1, self._time).contiguous() if self._time else at[:, None].float()
        inputs = (x,) if self._mask is None else (x, torch.from_numpy(self._mask[rows]))
        return Batch(inputs, None if self.labels is None else torch.from_numpy(self.labels[rows].astype(np.int64)))


class Lookup(nn.Module):
    """Gives the scores of the examples that it is called with, and notes how many these are."""

    def __init__(self, scores: np.ndarray, only: int | None = None) -> None:
        super().__init__()
        self.scores, self.only, self.sizes = torch.from_numpy(np.asarray(scores)), only, []

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.sizes.append(len(x))
        assert self.only in (None, len(x))
        return self.scores[x.flatten(1)[:, 0].long()]


def model_of(scores: Sequence[object] | np.ndarray, label: str = "model", **wanted: object) -> Model:
    """A model that gives these scores."""
    lookup = Lookup(np.asarray(scores, np.float32), wanted.get("batch"))
    return Model(lookup.eval(), label, "lookup", Wanted(**wanted), 100)


def evaluated(scores, labels=None, reference=None, mask=None, **wanted) -> Evaluation:
    """Evaluate scores [n, classes], or [n, time, tokens], against labels, and reference scores of the same shape."""
    scores = np.asarray(scores, np.float32)
    time = scores.shape[1] if scores.ndim == 3 else 0
    examples = Rows(len(scores), None if labels is None else np.asarray(labels), mask, time)
    rows = np.arange(len(scores))
    standard = None if reference is None else model_of(reference, "reference", **wanted)
    return evaluate(model_of(scores, **wanted), examples, rows, reference=standard, latency=False)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    wide = np.asarray(scores, np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def rank(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The place of each label in its scores sorted from the highest; of equals the first comes first."""
    places = np.argsort(-scores, axis=-1, kind="stable")
    return (places == labels[:, None]).argmax(axis=1)


@st.composite
def cases(draw):
    n, classes = draw(st.integers(1, 12)), draw(st.integers(2, 9))
    numbers = st.floats(-30, 30, width=32) | st.sampled_from([0.0, 1.0])
    ours, theirs = (draw(hnp.arrays(np.float32, (n, classes), elements=numbers)) for _ in range(2))
    return ours, theirs, draw(hnp.arrays(np.int64, n, elements=st.integers(0, classes - 1)))


@given(cases())
@example((np.array([[1e-8, 2e-8]], np.float32), np.array([[0.0, 1.0]], np.float32), np.array([1])))  # equal logarithms
@example((np.zeros((4, 9), np.float32), np.zeros((4, 9), np.float32), np.array([0, 4, 5, 8])))  # all scores equal
def test_figures_are_those_of_numpy(case):
    scores, reference, labels = case
    found = evaluated(scores, labels, reference)

    log_p, log_q, rows = log_softmax(scores), log_softmax(reference), np.arange(len(labels))
    nats, reference_nats = -log_p[rows, labels].mean(), -log_q[rows, labels].mean()
    assert found.examples == found.labels == len(labels)
    assert found.accuracy == (rank(scores, labels) == 0).mean()
    assert found.top5 == ((rank(scores, labels) < 5).mean() if scores.shape[1] > 5 else None)
    assert found.agreement == (scores.argmax(1) == reference.argmax(1)).mean()
    assert found.nats == pytest.approx(nats, rel=1e-5, abs=1e-6)
    assert found.perplexity == pytest.approx(math.exp(nats), rel=1e-4)
    assert found.kl == pytest.approx((np.exp(log_q) * (log_q - log_p)).sum(axis=1).mean(), rel=1e-4, abs=1e-5)
    assert found.perplexity_ratio == pytest.approx(math.exp(reference_nats - nats), rel=1e-4)
    assert found.accuracy_error == pytest.approx(math.sqrt(found.accuracy * (1 - found.accuracy) / len(labels)))
    assert found.nonfinite == 0


@given(cases())
def test_a_model_agrees_with_itself_and_loses_nothing(case):
    scores, _, labels = case
    found = evaluated(scores, labels, scores)
    assert (found.agreement, found.kl, found.perplexity_ratio) == (1.0, 0.0, 1.0)


@given(cases(), st.integers(1, 7))
def test_a_fixed_batch_size_changes_nothing(case, size):
    scores, reference, labels = case
    assert evaluated(scores, labels, reference, batch=size) == evaluated(scores, labels, reference)


def test_without_labels_only_the_comparison_is_known():
    found = evaluated([[0.0, 1.0]] * 3, reference=[[0.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
    assert (found.labels, found.accuracy, found.top5, found.nats, found.perplexity) == (0, None, None, None, None)
    assert found.accuracy_error is None
    assert found.perplexity_ratio is None
    assert found.agreement == 2 / 3


def test_without_a_reference_nothing_is_compared():
    found = evaluated([[0.0, 1.0]] * 3, [1, 1, 0])
    assert (found.agreement, found.kl, found.perplexity_ratio) == (None, None, None)
    assert found.accuracy == 2 / 3


@given(st.data())
def test_ignored_positions_do_not_count(data):
    scores, reference = (
        data.draw(hnp.arrays(np.float32, (3, 4, 6), elements=st.floats(-9, 9, width=32))) for _ in range(2)
    )
    labels = data.draw(hnp.arrays(np.int64, (3, 4), elements=st.sampled_from([IGNORED, 0, 1, 2, 3, 4, 5])))
    found = evaluated(scores, labels, reference, kind="tokens")
    counted = labels != IGNORED
    assert (found.labels, found.sequences) == (counted.sum(), True)
    if not counted.any():
        assert (found.accuracy, found.nats, found.agreement, found.kl) == (None, None, None, None)
        return
    same = evaluated(scores[counted], labels[counted], reference[counted])
    assert found.nats == pytest.approx(same.nats, rel=1e-6, abs=1e-7)
    assert found.kl == pytest.approx(same.kl, rel=1e-6, abs=1e-7)
    assert (found.accuracy, found.top5, found.agreement) == (same.accuracy, same.top5, same.agreement)


def test_an_attention_mask_says_which_positions_are_compared():
    scores = np.zeros((2, 3, 4), np.float32)
    reference = scores.copy()
    reference[:, 1:, 2] = 1  # disagrees everywhere but at the first position
    mask = np.array([[1, 0, 0], [1, 1, 0]])
    found = evaluated(scores, reference=reference, mask=mask, kind="tokens", inputs=2)
    assert found.agreement == 2 / 3
    assert found.kl == pytest.approx(evaluated(scores[:1, 1], reference=reference[:1, 1]).kl / 3, rel=1e-6)


def test_labels_win_over_the_mask():
    scores, mask = np.zeros((1, 3, 4), np.float32), np.array([[1, 1, 1]])
    found = evaluated(scores, [[0, IGNORED, 1]], scores, mask, kind="tokens", inputs=2)
    assert (found.labels, found.accuracy) == (2, 0.5)


@pytest.mark.parametrize("broken", [[NAN, 0, 0], [0, 1, NAN], [INF, 0, 0], [-INF, -INF, -INF]], ids=str)
def test_scores_that_are_no_numbers_are_never_right(broken):
    found = evaluated([broken, [0, 0, 1]], [0, 2], [[1, 0, 0], [0, 0, 1]])
    assert (found.nonfinite, found.accuracy, found.agreement) == (1, 0.5, 0.5)
    assert math.isnan(found.nats)
    assert math.isnan(found.kl)
    assert found.to_json()["nats"] is found.to_json()["perplexity"] is found.to_json()["kl"] is None


def test_a_broken_reference_is_never_agreed_with():
    found = evaluated([[1.0, 0.0]], [0], [[NAN, 0.0]])
    assert (found.agreement, found.accuracy, found.nonfinite) == (0.0, 1.0, 0)
    assert math.isnan(found.kl)


def test_broken_scores_of_many_classes_are_not_among_the_five_highest():
    assert evaluated([[NAN] * 9] * 2, [0, 8]).top5 == 0.0


def test_a_score_that_the_model_masks_costs_nothing():
    reference = [[0.0, 1.0, -INF]]
    found = evaluated([[0.0, 1.0, -INF]], [1], reference)
    assert (found.kl, found.nonfinite) == (0.0, 0)
    assert evaluated([[0.0, 1.0, -1e4]], [1], reference).kl == pytest.approx(0, abs=1e-6)


def test_what_the_model_excludes_is_infinitely_surprising():
    found = evaluated([[0.0, -INF]], [1], [[0.0, 0.0]])
    assert (found.nats, found.perplexity, found.kl, found.perplexity_ratio) == (INF, INF, INF, 0.0)
    assert found.to_json()["perplexity"] is None


def test_a_perplexity_beyond_the_largest_float_is_infinite():
    found = evaluated([[0.0, 3e4]], [0], [[0.0, 6e4]])
    assert (found.nats, found.perplexity, found.perplexity_ratio) == (3e4, INF, INF)


def test_scores_of_another_number_of_classes_cannot_be_compared():
    with pytest.raises(BadData, match=r"reference: gives 3 scores where model gives 2: .* other classes"):
        evaluated([[0.0, 1.0]], [1], [[0.0, 1.0, 2.0]])


def test_a_label_that_no_output_stands_for_is_named_in_whatever_batch_it_comes(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    examples = Rows(5, np.array([0, 1, 0, 7, 1]))
    with pytest.raises(BadData, match=r"example 3 .*the label is 7, but the model has 2 outputs"):
        evaluate(model_of([[0, 1]] * 5), examples, np.arange(5), latency=False)
    with pytest.raises(BadData, match="example 3"):
        prepared(model_of([[0, 1]] * 5), examples, np.arange(5))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.ones(4, int), r"all 4 examples have the label 1; one class alone"),
        (np.zeros((4, 3), int), r"scores \[2, 2\], which labels \[2, 3\] do not go with"),
        (np.array([0]), r"one example only"),
    ],
    ids=["one class", "a label a position", "one example"],
)
def test_data_that_say_nothing_are_refused(labels, message):
    examples = Rows(len(labels), labels)
    with pytest.raises(BadData, match=message):
        prepared(model_of([[0, 1]] * 4), examples, np.arange(len(labels)))


def test_a_label_an_example_does_not_go_with_a_language_model():
    examples = Rows(2, np.array([0, 1]), time=3)
    with pytest.raises(BadData, match=r"scores \[2, 3, 4\], which labels \[2\] do not go with"):
        prepared(model_of(np.zeros((2, 3, 4)), kind="tokens"), examples, np.arange(2))


def test_a_model_that_fails_on_a_later_batch_says_on_which_input(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    examples = Rows(6, np.zeros((6, 3), int), time=3)
    with pytest.raises(ModelDoesNotRun, match=r"model: the model fails on int64 \[2, 3\] of 4 to 5: IndexError: .*"):
        evaluate(model_of(np.zeros((4, 3, 5)), kind="tokens"), examples, np.arange(6), latency=False)


class Texts(Rows):
    """Sequences whose lengths are given: a batch is as long as its longest."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__(len(lengths))
        self.lengths = np.array(lengths)

    def batch(self, rows: np.ndarray) -> Batch:
        return Batch((torch.zeros(len(rows), int(self.lengths[rows].max()), dtype=torch.int64),), None)


class Everywhere(nn.Module):
    """Scores for 10 tokens at every position."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(*x.shape, 10)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_batches_are_in_order_and_no_larger_than_memory_allows(lengths):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "VALUES", 1000)
        patch.setattr(module, "BATCH", 8)
        model = Model(Everywhere(), "model", "", Wanted(kind="tokens"), 0)
        found = [*batches(Texts(lengths), np.arange(len(lengths)), model)]
    assert np.concatenate([rows for rows, _ in found]).tolist() == [*range(len(lengths))]
    assert all(len(rows) == 1 or 10 * batch.inputs[0].numel() <= 1000 for rows, batch in found)
    assert all(len(rows) <= 8 for rows, _ in found)


def test_large_inputs_come_few_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "VALUES", 12)
    examples = Rows(10, time=6)  # a classifier: 10 * 6 values go in, few come out
    found = [len(rows) for rows, _ in batches(examples, np.arange(10), model_of([[0, 1]] * 10, kind="tokens"))]
    assert found == [2] * 5


def test_a_fixed_batch_size_is_kept_and_its_last_batch_filled_up():
    model = model_of([[0, 1]] * 10, batch=4)
    found = evaluate(model, Rows(10, np.array([1] * 9 + [0])), np.arange(10), latency=False)
    assert found.accuracy == 0.9
    assert model.module.sizes == [4, 4, 4]


def test_progress_is_told_how_many_examples_are_done(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 4)
    told: list[int] = []
    evaluate(model_of([[0, 1]] * 10), Rows(10), np.arange(10), latency=False, advance=told.append)
    assert told == [4, 4, 2]


def test_only_the_rows_asked_for_are_evaluated():
    labels = np.array([0, 1, 0, 1])
    found = evaluate(model_of([[1, 0]] * 4), Rows(4, labels), np.array([0, 2]), latency=False)
    assert (found.examples, found.accuracy) == (2, 1.0)


@pytest.mark.parametrize(("batch", "sizes"), [(None, [1, 32]), (3, [3])])
def test_latency_is_the_median_of_30_runs_after_a_first(batch, sizes):
    model = model_of([[0, 1]] * 5, batch=batch)
    found = measure_latency(model, Rows(5).batch(np.arange(5)))
    assert [*found] == sizes
    assert all(seconds > 0 for seconds in found.values())
    assert model.module.sizes == [size for size in sizes for _ in range(31)]


def test_latency_of_a_slow_model_is_measured_three_times(monkeypatch):
    monkeypatch.setattr(module, "LATENCY_SECONDS", 0)
    model = model_of([[0, 1]])
    measure_latency(model, Rows(1).batch(np.arange(1)))
    assert model.module.sizes == [1] * 4 + [32] * 4


def test_latency_is_not_measured_where_scores_would_fill_the_memory(monkeypatch):
    model = Model(Everywhere(), "model", "", Wanted(kind="tokens"), 0)
    batch = Texts([5]).batch(np.arange(1))
    assert [*measure_latency(model, batch)] == [1, 32]
    monkeypatch.setattr(module, "LATENCY_VALUES", 32 * 5 * 10 - 1)
    assert [*measure_latency(model, batch)] == [1]


@given(hnp.arrays(np.int64, st.integers(1, 20), elements=st.integers(0, 3)))
def test_the_largest_class_is_that_of_the_labels(labels):
    expected = np.bincount(labels).max() / len(labels)
    examples = Rows(len(labels), labels)
    assert largest_class(examples, np.arange(len(labels))) == expected
    examples.batch = Rows(len(labels), labels).batch
    examples.labels = None  # as of a data set of the user's own, known once it is read
    assert largest_class(examples, np.arange(len(labels))) == expected


def test_there_is_no_largest_class_without_labels():
    assert largest_class(Rows(3), np.arange(3)) is None
    assert largest_class(Rows(1, np.array([[IGNORED, IGNORED]])), np.arange(1)) is None


def test_gates_are_passed_at_their_limit_and_never_by_what_is_not_known():
    known = Evaluation(10, 10, accuracy=0.9, top5=None, nats=NAN, agreement=0.8, perplexity_ratio=NAN)
    gates = check_gates((("accuracy", 0.9), ("accuracy", 0.91), ("agreement", 0.5), ("perplexity-ratio", 0)), known)
    assert [(gate.value, gate.passed) for gate in gates] == [(0.9, True), (0.9, False), (0.8, True), (None, False)]
    assert not check_gates((("agreement", 0),), Evaluation(1, 1, 1.0, None, 0.0))[0].passed


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 2**32))
def test_limited_rows_are_a_sorted_choice_that_the_seed_makes(count, limit, seed):
    rows = chosen_rows(Rows(count), limit, seed)
    assert len(rows) == min(limit, count)
    assert (np.diff(rows) > 0).all()
    assert set(rows) <= set(range(count))
    assert rows.tolist() == chosen_rows(Rows(count), limit, seed).tolist()


def test_another_seed_chooses_other_rows_and_no_limit_all():
    assert chosen_rows(Rows(1000), 10, 0).tolist() != chosen_rows(Rows(1000), 10, 1).tolist()
    assert chosen_rows(Rows(5), None, 0).tolist() == [0, 1, 2, 3, 4]
