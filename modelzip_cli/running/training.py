"""The loop in which a student learns: AdamW on a teacher's outputs, stopped where held-out agreement stops growing.

Everything that is drawn depends on the seed and the step alone, so that a run that goes on from a resume point gives
the same weights as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from modelzip_cli.errors import BadData, ModelDoesNotRun
from modelzip_cli.running.architecture import describe
from modelzip_cli.running.features import Features
from modelzip_cli.running.graph import evaluating, set_training
from modelzip_cli.running.inputs import Batch, Examples, Rows, order
from modelzip_cli.running.lesson import Lesson
from modelzip_cli.running.losses import (
    FEATURES_WEIGHT,
    JACOBIAN_WEIGHT,
    jacobian_loss,
    label_loss,
    soft_loss,
    unit_vectors,
)
from modelzip_cli.running.model import Model, counted_positions

CACHE_BYTES = 256 << 20  # teacher outputs that are kept; a larger set is run through the teacher at each step
EVALUATIONS = 10  # in the course of a run
PATIENCE = 5  # evaluations without gain, after which a run ends
WARM_UP = 0.05  # of the steps
CLIP = 1.0
CHUNK = 64
TEMPERATURES = (1.0, 4.0)  # that are tried
SAVE_SECONDS = 300.0  # between resume points where evaluations are farther apart


@dataclass
class State:
    """Where a run is.

    `best`: the weights at `best_step`. They are the last whose held-out agreement is not below the `peak` by more than
    its standard error: with little data held out, a lead of a few examples is luck, and later weights have learnt at a
    lower rate (the one-standard-error rule: Breiman et al., Classification and Regression Trees, 1984, section 3.4.3).
    `without_gain`: evaluations since there were such weights, or since the held-out KL was last at its lowest.
    `ended`: why, where it was not the last step; `stopped`: because it was asked to, so that it can go on.
    """

    step: int = 0
    best_step: int = 0
    peak: float = -1.0
    without_gain: int = 0
    elapsed: float = 0.0
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    ended: str = ""
    stopped: bool = False


class Outputs:
    """The teacher's scores for the examples at `rows`: computed once and kept, or for each batch anew."""

    def __init__(self, teacher: Model, examples: Examples, rows: Rows, *, keep: bool) -> None:
        self._teacher, self._rows = teacher, rows
        self._kept: Tensor | None = None
        if not keep:
            return
        with torch.inference_mode():
            for start in range(0, len(rows), CHUNK):  # in this order always: sums depend on what else is in a batch
                scores = teacher.scores(examples.batch(rows[start : start + CHUNK]))
                _check_numbers(scores, examples, rows[start : start + CHUNK], teacher)
                if self._kept is None:
                    if scores[0].numel() * scores.element_size() * len(rows) > CACHE_BYTES:
                        return
                    self._kept = torch.empty(len(rows), *scores.shape[1:])
                if scores.shape[1:] != self._kept.shape[1:]:  # texts of different lengths
                    self._kept = None
                    return
                self._kept[start : start + len(scores)] = scores
        self._kept = None if self._kept is None else self._kept.clone()  # no inference tensor: it is trained on

    def of(self, rows: Rows, batch: Batch) -> Tensor:
        """Scores for the examples at `rows`, which are in `batch`."""
        if self._kept is not None:
            return self._kept[torch.from_numpy(np.searchsorted(self._rows, rows))]
        with torch.no_grad():
            return self._teacher.scores(batch)


def _check_numbers(scores: Tensor, examples: Examples, rows: Rows, teacher: Model) -> None:
    wrong = scores.isnan().flatten(1).any(1)
    if wrong.any():
        raise BadData(f"{examples.place(int(rows[int(wrong.int().argmax())]))}: {teacher.label} gives NaN for it")


class Trainer:
    """Trains `student` in place on the examples at `train`, and holds it against the teacher on those at `held`."""

    def __init__(
        self,
        teacher: Model,
        student: Model,
        examples: Examples,
        train: Rows,
        held: Rows,
        lesson: Lesson,
        features: Features | None,
    ) -> None:
        self.student, self.lesson, self.state = student, lesson, State()
        self._teacher, self._examples, self._train, self._held = teacher, examples, np.sort(train), np.sort(held)
        self._features = features
        self._epoch, self._shuffled = -1, self._train
        often = lesson.steps * lesson.batch >= len(train) and lesson.loss == "soft" and lesson.labels < 1
        self._outputs = Outputs(teacher, examples, self._train, keep=often)
        self._held_outputs = Outputs(teacher, examples, self._held, keep=True)
        self.maps = [*features.parameters()] if features else []
        self.parameters = [*student.module.parameters(), *self.maps]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lesson.learning_rate)

    def run(
        self, save: Callable[[State], None], stopped: Callable[[], bool], advance: Callable[[State], None]
    ) -> State:
        """Train to the end, and leave the best weights in the student. `save` is told where to go on from.

        Raises ModelDoesNotRun for a network that cannot be trained.
        """
        state, lesson = self.state, self.lesson
        started = time.monotonic() - state.elapsed
        every, saved = max(1, lesson.steps // EVALUATIONS), state.elapsed
        if not state.best:
            torch.manual_seed(lesson.seed)  # of dropout
            self._evaluate(math.nan)
        set_training(self.student.module, True)
        while state.step < lesson.steps and not state.ended:
            loss = self.step(state.step)
            state.elapsed = time.monotonic() - started
            if not math.isfinite(loss):
                state.ended = f"the loss is not a number at step {state.step + 1}"
                break
            state.step += 1
            late = lesson.seconds is not None and state.elapsed >= lesson.seconds
            due = state.step % every == 0 or state.step == lesson.steps or late
            if due:
                self._evaluate(loss)
                advance(state)
            if state.step < lesson.steps:
                state.ended = self._why_to_end(late)
                state.stopped = not state.ended and stopped()
            if not state.ended and (due or state.stopped or state.elapsed - saved > SAVE_SECONDS):
                save(state)
                saved = state.elapsed
            if state.stopped:
                state.ended = f"stopped at step {state.step}"
        set_training(self.student.module, False)
        self.student.module.load_state_dict(state.best)
        return state

    def _why_to_end(self, late: bool) -> str:
        """Why this was the last step, or nothing."""
        if self.state.without_gain >= PATIENCE:
            return f"no gain on held-out data since step {self.state.best_step}"
        return f"the time was over at step {self.state.step}" if late else ""

    def step(self, step: int) -> float:
        """One step on the batch that it has by seed and number; returns the loss, or NaN where nothing was learnt."""
        lesson = self.lesson
        rows = self._rows_of(step)
        batch = self._examples.batch(rows)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            loss = self._loss(batch, rows, step)
            torch.autograd.backward(loss)
        except RuntimeError as error:
            hint = "; --loss jacobian wants second derivatives" if lesson.loss == "jacobian" else ""
            raise ModelDoesNotRun(
                f"{self.student.label}: the student cannot be trained, at step {step + 1}: {describe(error)}{hint}"
            ) from error
        norm = nn.utils.clip_grad_norm_(self.parameters, CLIP)
        value = float(loss.detach())
        if math.isfinite(value) and math.isfinite(float(norm)):
            self.optimizer.step()
            return value
        return math.nan

    def _rows_of(self, step: int) -> Rows:
        """The examples of a step: those of an epoch in an order of its own; what is left at its end is left out."""
        epoch, place = divmod(step, max(1, len(self._train) // self.lesson.batch))
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, self._train[order(len(self._train), self.lesson.seed, epoch)]
        return self._shuffled[place * self.lesson.batch : (place + 1) * self.lesson.batch]

    def _learning_rate(self, step: int) -> float:
        """It rises in the first steps, then falls along a cosine to 0 at the last, or when the time is over."""
        lesson = self.lesson
        progress = step / lesson.steps
        if lesson.seconds is not None:
            progress = max(progress, min(1.0, self.state.elapsed / lesson.seconds))
        rising, falling = (step + 1) / max(1, WARM_UP * lesson.steps), (1 + math.cos(math.pi * progress)) / 2
        return lesson.learning_rate * min(rising, falling)

    def _loss(self, batch: Batch, rows: Rows, step: int) -> Tensor:
        lesson, student = self.lesson, self.student
        if lesson.loss == "jacobian":
            return self._jacobian(batch, step)
        if self._features is not None:
            scores, wanted, distance = self._features.run(batch.inputs)
            return self._outputs_and_labels(scores, wanted, batch) + FEATURES_WEIGHT * distance
        scores = student.run(batch.inputs)
        return self._outputs_and_labels(scores, self._outputs.of(rows, batch) if lesson.labels < 1 else None, batch)

    def _outputs_and_labels(self, scores: Tensor, wanted: Tensor | None, batch: Batch) -> Tensor:
        """The two terms that every lesson has."""
        weight = self.lesson.labels
        terms = []
        if weight < 1 and wanted is not None:
            counted = counted_positions(batch, scores)
            terms.append((1 - weight) * soft_loss(scores, wanted, self.lesson.temperature, counted))
        if weight > 0 and batch.labels is not None:
            terms.append(weight * label_loss(scores, batch.labels))
        return torch.stack(terms).sum()

    def _jacobian(self, batch: Batch, step: int) -> Tensor:
        first = batch.inputs[0].detach().clone().requires_grad_(True)
        inputs = (first, *batch.inputs[1:])
        scores, wanted = self.student.run(inputs), self._teacher.run(inputs)
        directions = unit_vectors(scores.shape, self.lesson.seed, step)
        return self._outputs_and_labels(scores, wanted.detach(), batch) + JACOBIAN_WEIGHT * jacobian_loss(
            scores, wanted, first, directions
        )

    def _evaluate(self, loss: float) -> None:
        """Take the held-out figures, and the weights where they are the best yet."""
        agreed = divergence = count = 0.0
        with evaluating(self.student.module), torch.inference_mode():
            for start in range(0, len(self._held), CHUNK):
                rows = self._held[start : start + CHUNK]
                batch = self._examples.batch(rows)
                ours, theirs = self.student.scores(batch), self._held_outputs.of(rows, batch)
                counted = counted_positions(batch, ours)
                kept = torch.ones(ours.shape[:-1], dtype=torch.bool) if counted is None else counted
                agreed += float((ours.argmax(-1) == theirs.argmax(-1))[kept].sum())
                divergence += float(soft_loss(ours, theirs, 1.0, counted)) * int(kept.sum())
                count += int(kept.sum())
        agreement, kl = agreed / count, divergence / count
        state = self.state
        falls = all(kl < point["kl"] for point in state.history)
        state.history.append({"step": state.step, "loss": loss, "agreement": agreement, "kl": kl})
        if math.isfinite(kl):
            state.peak = max(state.peak, agreement)
        good = math.isfinite(kl) and agreement >= state.peak - standard_error(state.peak, len(self._held))
        if good or not state.best:
            state.best_step, state.without_gain = state.step, 0
            state.best = {name: tensor.detach().clone() for name, tensor in self.student.module.state_dict().items()}
        else:
            state.without_gain = 0 if falls else state.without_gain + 1


def standard_error(share: float, count: int) -> float:
    """Of a share among `count` examples, with two right and two wrong added, lest it be 0 where all are right.

    Source: Agresti and Coull, Approximate is better than exact, The American Statistician 52(2), 1998.
    """
    added = (share * count + 2) / (count + 4)
    return math.sqrt(added * (1 - added) / (count + 4))


def better_temperature(make: Callable[[Lesson], Trainer], lesson: Lesson, stopped: Callable[[], bool]) -> float:
    """The one of TEMPERATURES with which a tenth of the steps comes nearer to the teacher on held-out data."""
    scores = {}
    for temperature in TEMPERATURES:
        trial = make(replace(lesson, temperature=temperature, steps=max(1, lesson.steps // 10)))
        last = trial.run(lambda _: None, stopped, lambda _: None).history[-1]
        scores[temperature] = last["agreement"], -last["kl"]
    return max(scores, key=lambda temperature: scores[temperature])
