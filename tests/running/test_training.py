from __future__ import annotations

import copy
import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modelzip_cli.errors import BadData, ModelDoesNotRun
from modelzip_cli.running import training as module
from modelzip_cli.running.inputs import order
from modelzip_cli.running.losses import jacobian_loss, unit_vectors
from modelzip_cli.running.training import Outputs, better_temperature, standard_error
from tests.teaching import Points, learn, lesson, make_teacher, model_of, points, same_weights, small, trainer

TRAIN = np.arange(160)


def rate(step: int, steps: int = 10, highest: float = 1e-2) -> float:
    """The learning rate of a step: up over 5 % of the steps, down along half a cosine."""
    return highest * min((step + 1) / max(1, 0.05 * steps), (1 + math.cos(math.pi * step / steps)) / 2)


def test_a_run_is_a_loop_written_by_hand():
    """Two epochs with dropout: the same weights, bit for bit."""
    learner = trainer(steps=10)
    learn(learner)

    student, data = small().train(), points()
    teacher, x, y = make_teacher()[0], torch.from_numpy(data.x), torch.from_numpy(data.labels)
    with torch.no_grad():
        wanted = torch.cat([teacher(x[start : min(start + 64, 160)]) for start in range(0, 160, 64)])
    optimizer = torch.optim.AdamW(student.parameters())
    torch.manual_seed(5)
    for step in range(10):
        epoch, place = divmod(step, 5)
        rows = torch.from_numpy(order(160, 5, epoch)[32 * place : 32 * place + 32])
        scores = student(x[rows])
        ours, theirs = (scores / 2).log_softmax(-1), (wanted[rows] / 2).log_softmax(-1)
        soft = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1).mean() * 4
        loss = torch.stack([(1 - 0.3) * soft, 0.3 * F.cross_entropy(scores, y[rows])]).sum()
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    assert learner.state.best_step == 10
    assert same_weights(learner.student.module, student)


def test_the_learning_rate_rises_then_falls_to_nothing():
    learner = trainer(steps=100, labels=1.0)
    found = []
    for step in range(100):
        learner.step(step)
        found.append(learner.optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([rate(step, 100) for step in range(100)])
    assert found[:5] == sorted(found[:5])
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[-1] < 1e-5


def test_with_a_limit_of_time_the_learning_rate_falls_with_the_time_that_is_left():
    learner = trainer(steps=1000, seconds=100.0)
    learner.state.elapsed = 75.0
    learner.step(100)
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * (1 + math.cos(0.75 * math.pi)) / 2)


def test_gradients_are_clipped_to_a_norm_of_one():
    student = small()
    with torch.no_grad():
        student.last.weight *= 100
    learner = trainer(student, labels=0.0)
    learner.step(0)
    norm = torch.stack([parameter.grad.norm() for parameter in learner.parameters]).norm()
    assert float(norm) == pytest.approx(1.0, abs=1e-4)


def test_labels_alone_leave_the_teacher_out():
    teacher = model_of(make_teacher()[0])
    learner, calls = trainer(teacher=teacher, labels=1.0), []
    teacher.module.register_forward_hook(lambda *_: calls.append(1))
    learn(learner)
    assert not calls  # what it gives for the held-out data was known before


def test_data_without_labels_are_learnt_from_the_teacher():
    learner = trainer(examples=points(labelled=False), labels=0.0)
    before = small()
    state = learn(learner)
    assert state.step == 10
    assert not same_weights(learner.student.module, before)
    assert state.history[-1]["kl"] < state.history[0]["kl"]


def test_gradients_of_the_teacher_are_learnt():
    learner = trainer(loss="jacobian", labels=0.0, temperature=1.0)
    data, teacher, student = points(), make_teacher()[0], small().train()
    x = torch.from_numpy(data.x[order(160, 5, 0)[:32]]).requires_grad_(True)
    torch.manual_seed(5)
    learner.student.module.train()
    found = learner.step(0)
    torch.manual_seed(5)
    scores, wanted = student(x), teacher(x)
    soft = F.kl_div(scores.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)
    jacobian = jacobian_loss(scores, wanted, x, unit_vectors(torch.Size([32, 3]), 5, 0))
    assert found == pytest.approx(float((soft + 0.1 * jacobian).detach()), rel=1e-5)
    assert all(parameter.grad is None for parameter in teacher.parameters())


# --- order and teacher outputs ----------------------------------------------------------------------------------------


def rows_of(**changes):
    """The rows of each step of a run."""
    examples = points()
    learner = trainer(examples=examples, **changes)
    examples.read.clear()
    for step in range(10):
        learner.step(step)
    return examples.read


def test_the_order_depends_on_seed_and_epoch_alone():
    found = rows_of()
    assert found == rows_of(temperature=4.0, learning_rate=1e-3, labels=0.9, steps=20)
    assert found != rows_of(seed=6)
    one, two = found[:5], found[5:]
    assert one != two
    for epoch in (one, two):  # each example once
        assert sorted(row for rows in epoch for row in rows) == [*range(160)]


def test_what_does_not_fill_a_batch_waits_for_another_epoch():
    found = rows_of(batch=48)
    assert {len(rows) for rows in found} == {48}
    assert len({row for rows in found[:3] for row in rows}) == 144


def test_steps_can_be_asked_for_in_any_order():
    examples = points()
    learner = trainer(examples=examples)
    examples.read.clear()
    for step in (7, 2, 7):
        learner.step(step)
    assert examples.read[0] == examples.read[2] != examples.read[1]


def test_teacher_outputs_that_are_kept_are_those_that_are_not(monkeypatch):
    kept = trainer()
    learn(kept)
    monkeypatch.setattr(module, "CACHE_BYTES", 0)
    calls, teacher = [], model_of(make_teacher()[0])
    anew = trainer(teacher=teacher)
    teacher.module.register_forward_hook(lambda *_: calls.append(1))
    learn(anew)
    assert len(calls) >= 10
    for name, tensor in kept.student.module.state_dict().items():  # sums depend on what else is in a batch
        torch.testing.assert_close(anew.student.module.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


def test_texts_of_different_lengths_are_given_to_the_teacher_at_each_step():
    class Ragged(Points):
        def batch(self, rows):
            found = super().batch(rows)
            return type(found)((found.inputs[0][:, : 3 if rows[0] < 64 else 4],), None)

    teacher = model_of(nn.Identity())
    data = Ragged(np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32), None)
    outputs = Outputs(teacher, data, np.arange(100), keep=True)
    rows = np.array([5, 9])
    assert outputs.of(rows, data.batch(rows)).shape == (2, 3)


def test_an_example_for_which_the_teacher_has_no_answer_is_named():
    data = points()
    data.x[17] = np.nan
    with pytest.raises(BadData, match=r"points: example 17 .*teacher.pt2 gives NaN for it"):
        trainer(examples=data)


class Fixed(nn.Module):
    """A network that takes batches of eight alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) != 8:
            raise RuntimeError("a batch of 8")
        return self.inner(x)


@pytest.mark.parametrize("loss", ["soft", "jacobian"])
def test_models_of_a_fixed_batch_are_trained_and_held_against_it(loss):
    teacher = model_of(Fixed(make_teacher()[0]), wanted={"batch": 8})
    learner = trainer(Fixed(small()), teacher, batch=8, held=np.arange(160, 171), loss=loss)
    assert learn(learner).step == 10


def test_a_network_whose_gradients_fail_is_an_error_with_its_step():
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.count = small(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += self.training
            scores = self.inner(x)
            if self.count == 3:
                scores.register_hook(self.fail)
            return scores

        def fail(self, gradient: torch.Tensor) -> None:
            raise RuntimeError("not today\nnor tomorrow")

    with pytest.raises(ModelDoesNotRun, match=r"student: the student cannot be trained, at step 3: .*not today$"):
        learn(trainer(Fails()))


# --- the end ----------------------------------------------------------------------------------------------------------


class Scripted(nn.Module):
    """In training, one weight moves. In evaluation it is right about the first `right` of the held-out examples, and
    says so for the wrong ones with scores of `doubt`; one pair an evaluation. `seen`: the weight at each."""

    def __init__(self, script) -> None:
        super().__init__()
        self.weight, self.script, self.seen = nn.Parameter(torch.zeros(())), script, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = x[:, 0].long()  # in the held-out data
        if self.training:
            return torch.stack([self.weight * places, -self.weight * places], dim=1)
        right, doubt = self.script[len(self.seen)]
        if places[-1] == HELD - 1:
            self.seen.append(float(self.weight))
        is_right = (places < right)[:, None]
        return torch.where(is_right, torch.tensor([5.0, -5.0]), torch.tensor([-doubt, doubt]))


HELD = 100


def scripted(script, **changes):
    """A run that is evaluated as `script` says, after its last step; and the student."""
    student = Scripted(script)
    x = np.zeros((HELD + 40, 6), np.float32)
    x[:, 0] = np.arange(HELD + 40)

    class Certain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[5.0, -5.0]]).expand(len(x), 2)

    learner = trainer(
        student,
        model_of(Certain()),
        examples=Points(x, None),
        train=np.arange(HELD, HELD + 40),
        held=np.arange(HELD),
        **({"batch": 4, "labels": 0.0, "steps": 10} | changes),
    )
    return learn(learner), student


@given(script=st.lists(st.integers(0, HELD), min_size=11, max_size=11))
def test_the_last_weights_within_a_standard_error_of_the_peak_are_the_best(script):
    state, student = scripted([(right, 5.0) for right in script])
    best = peak = 0
    for step, right in enumerate(script[: len(student.seen)]):
        peak = max(peak, right)
        share = (peak + 2) / (HELD + 4)
        if right / HELD >= peak / HELD - math.sqrt(share * (1 - share) / (HELD + 4)):
            best = step
    assert state.best_step == best
    assert float(student.weight) == student.seen[best]
    assert [point["agreement"] for point in state.history] == [right / HELD for right in script[: len(student.seen)]]


def test_a_run_ends_after_five_evaluations_without_gain():
    state, student = scripted([(50, 5.0), (90, 5.0), *[(60, 5.0)] * 9])
    assert (state.step, state.best_step) == (6, 1)
    assert state.ended == "no gain on held-out data since step 1"
    assert not state.stopped
    assert float(student.weight) == student.seen[1]


def test_a_run_goes_on_while_it_comes_nearer_to_the_scores_of_the_teacher():
    state, _ = scripted([(50, 5.0), (90, 5.0), *((60, 1.0 - place / 10) for place in range(9))])
    assert (state.step, state.best_step, state.ended) == (10, 1, "")


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_no_share_is_certain(share):
    assert 0 < standard_error(share, 30) < 0.1
    assert standard_error(share, 3000) < standard_error(share, 30)


def test_evaluations_are_ten_in_the_course_of_a_run():
    state, _ = scripted([(50, 5.0)] * 11, steps=40)
    assert [point["step"] for point in state.history] == [*range(0, 41, 4)]
    state, _ = scripted([(50, 5.0)] * 11, steps=3)
    assert [point["step"] for point in state.history] == [0, 1, 2, 3]


def test_a_loss_that_is_no_number_ends_the_run_and_the_best_is_kept():
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.count = small(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += self.training
            scores = self.inner(x)
            return scores * math.nan if self.count == 4 else scores

    learner, weights = trainer(Breaks()), {}
    state = learner.run(
        lambda state: weights.update({state.step: copy.deepcopy(learner.student.module.state_dict())}),
        lambda: False,
        lambda _: None,
    )
    assert state.ended == "the loss is not a number at step 4"
    assert (state.step, state.stopped) == (3, False)
    best = weights[state.best_step]
    assert all(torch.equal(tensor, best[name]) for name, tensor in learner.student.module.state_dict().items())


def test_weights_that_overflow_are_never_the_best():
    state = learn(trainer(learning_rate=1e30, steps=10))
    assert state.best_step == 0
    assert not math.isfinite(state.history[-1]["kl"])


def test_a_run_ends_when_the_time_is_over():
    state = learn(trainer(seconds=1e-9, steps=1000))
    assert (state.step, state.best_step) == (1, 1)
    assert state.ended == "the time was over at step 1"


def test_the_time_of_a_run_counts_from_where_it_went_on(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    learner = trainer(seconds=50.0, steps=1000)
    learner.state.elapsed = 49.0
    assert learn(learner, stop_at=2).elapsed == 49.0


def test_a_run_that_is_stopped_says_so_and_is_saved():
    learner, saved = trainer(), []
    state = learner.run(lambda state: saved.append(state.step), lambda: learner.state.step == 7, lambda _: None)
    assert (state.step, state.stopped, state.ended) == (7, True, "stopped at step 7")
    assert saved[-1] == 7
    assert not learner.student.module.training


def test_a_signal_at_the_last_step_comes_too_late():
    learner = trainer()
    state = learner.run(lambda _: None, lambda: learner.state.step == 10, lambda _: None)
    assert (state.step, state.stopped, state.ended) == (10, False, "")


def test_a_run_that_is_over_is_not_saved_again():
    learner, saved = trainer(seconds=1e-9, steps=1000), []
    learner.run(lambda state: saved.append(state.step), lambda: True, lambda _: None)
    assert saved == []


def test_a_resume_point_is_due_after_some_minutes_without_an_evaluation(monkeypatch):
    clock = iter(range(0, 100_000, 200))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    learner, saved = trainer(steps=100), []
    learner.run(lambda state: saved.append(state.step), lambda: learner.state.step == 9, lambda _: None)
    assert saved == [2, 4, 6, 8, 9]


# --- temperature ------------------------------------------------------------------------------------------------------


def test_the_temperature_that_comes_nearer_in_a_tenth_of_the_steps_is_taken():
    tried = []

    def make(lesson):
        tried.append((lesson.temperature, lesson.steps))
        return trainer(temperature=lesson.temperature, steps=lesson.steps, labels=0.0)

    found = better_temperature(make, lesson(steps=200), lambda: False)
    assert tried == [(1.0, 20), (4.0, 20)]
    histories = {}
    for temperature in (1.0, 4.0):
        last = learn(trainer(temperature=temperature, steps=20, labels=0.0)).history[-1]
        histories[last["agreement"], -last["kl"]] = temperature
    assert found == histories[max(histories)]
