"""What a model does on data: how often it is right, how surprised it is, and how near it stays to a reference."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelzip_cli.errors import BadData
from modelzip_cli.report import Gate, finite, significant
from modelzip_cli.running.inputs import IGNORED, Batch, Examples, Rows, order
from modelzip_cli.running.labels import check_labels, check_range
from modelzip_cli.running.model import Model, counted_positions
from modelzip_cli.running.perceptron import settled

NEEDED = {"accuracy": "labels", "agreement": "--reference", "perplexity-ratio": "labels and --reference"}
METRICS = tuple(NEEDED)  # what --fail-under knows, and what it takes to know it: the higher the better
BATCH = 256  # examples at a time
VALUES = 1 << 24  # and at most so many numbers going in or coming out: a language model scores every token everywhere
LATENCY_RUNS, LATENCY_BATCHES = 30, (1, 32)
LATENCY_VALUES = 1 << 28
LARGEST_EXPONENT = 709.0
LATENCY_SECONDS = 20.0  # after which a slow model is not run again

Advance = Callable[[int], None]  # told how many examples more are done


@dataclass(frozen=True)
class Evaluation:
    """What a model does on a set of examples. Shares are between 0 and 1; None: there was nothing to tell it from.

    `accuracy`, `top5`: how often the label has the highest score, or one of the five highest. `nats`: mean
    cross-entropy, natural logarithm, a label; `perplexity` = exp(nats). `agreement`: how often the highest score is the
    reference's; `kl`: mean KL(reference || model), in nats; `perplexity_ratio`: the reference's perplexity over that of
    the model, 1 where nothing is lost. `latency`: median seconds of a batch, by its size.
    """

    examples: int
    labels: int
    accuracy: float | None
    top5: float | None
    nats: float | None
    agreement: float | None = None
    kl: float | None = None
    perplexity_ratio: float | None = None
    parameters: int = 0
    bytes: int = 0
    latency: dict[int, float] = field(default_factory=dict)
    sequences: bool = False  # whether every position has a label
    nonfinite: int = 0  # scores, of examples or positions, with NaN or infinity: they are never right and never agree

    @property
    def perplexity(self) -> float | None:
        """exp(nats)."""
        return None if self.nats is None else exp(self.nats)

    @property
    def accuracy_error(self) -> float | None:
        """The standard error of the accuracy, of independent labels."""
        if self.accuracy is None or not self.labels:
            return None
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.labels)

    def metric(self, name: str) -> float | None:
        """A gate's metric by its name."""
        return {
            "accuracy": self.accuracy,
            "agreement": self.agreement,
            "perplexity-ratio": self.perplexity_ratio,
        }[name]

    def to_json(self) -> dict[str, Any]:
        """As the report holds it."""
        return {
            "examples": self.examples,
            "labels": self.labels,
            "accuracy": finite(self.accuracy, 6),
            "accuracy_error": finite(self.accuracy_error, 6),
            "top5": finite(self.top5, 6),
            "nats": finite(self.nats, 6),
            "perplexity": None if self.perplexity is None else significant(self.perplexity),
            "agreement": finite(self.agreement, 6),
            "kl": None if self.kl is None else significant(self.kl),
            "perplexity-ratio": finite(self.perplexity_ratio, 6),
            "parameters": self.parameters,
            "bytes": self.bytes,
            "latency": {str(size): significant(seconds) for size, seconds in self.latency.items()},
        }


@dataclass
class Sums:
    """What is added up over batches."""

    labels: int = 0
    positions: int = 0
    right: int = 0
    in_five: int = 0
    nats: float = 0.0
    reference_nats: float = 0.0
    agreed: int = 0
    kl: float = 0.0
    nonfinite: int = 0

    def add(self, scores: Tensor, labels: Tensor | None, reference: Tensor | None, counted: Tensor | None) -> None:
        """Take in the scores of a batch, [..., classes]; labels [...]; `counted` [...] says which positions count."""
        flat = scores.flatten(0, -2)
        log_p = flat.log_softmax(dim=-1)
        kept = torch.ones(len(flat), dtype=torch.bool) if counted is None else counted.flatten()
        finite = ~log_p[:, 0].isnan()  # one NaN, or one infinity above, makes NaN of the whole row
        self.nonfinite += int((kept & ~finite).sum())
        theirs = None if reference is None else reference.flatten(0, -2)
        log_q = None if theirs is None else theirs.log_softmax(dim=-1)
        if labels is not None:
            places = (labels.flatten() != IGNORED).nonzero().squeeze(1)
            wanted = labels.flatten()[places]
            self._add_labelled(flat[places], log_p[places], wanted, finite[places])
            if log_q is not None:
                self.reference_nats -= _sum_at(log_q[places], wanted)
        if theirs is not None and log_q is not None:
            self.positions += int(kept.sum())
            same = (flat.argmax(1) == theirs.argmax(1)) & finite & ~log_q[:, 0].isnan()
            self.agreed += int((same & kept).sum())
            q = log_q.exp()
            kl = torch.where(q == 0, 0.0, q * (log_q - log_p)).sum(dim=1)  # 0 * log 0 is 0: a masked score
            self.kl += float(kl[kept].double().sum())

    def _add_labelled(self, scores: Tensor, log_p: Tensor, labels: Tensor, finite: Tensor) -> None:
        """`scores` [n, classes] decide, as rounding makes some logarithms equal; of equals the first is higher."""
        own = scores.gather(1, labels[:, None])
        first = torch.arange(scores.shape[1]) < labels[:, None]
        rank = torch.where(first, scores >= own, scores > own).sum(dim=1)
        self.labels += len(labels)
        self.right += int(((rank == 0) & finite).sum())
        self.in_five += int(((rank < 5) & finite).sum())
        self.nats -= _sum_at(log_p, labels)


def _sum_at(log_p: Tensor, labels: Tensor) -> float:
    return float(log_p.gather(1, labels[:, None]).double().sum())


def exp(nats: float) -> float:
    """exp, infinite where it passes the largest float."""
    return math.exp(nats) if not nats > LARGEST_EXPONENT else math.inf


def prepared(model: Model, examples: Examples, rows: Rows) -> Model:
    """`model` after a first look at the data: a perceptron has its activation; a first batch ran, and labels fit.

    Raises NoModel, ModelDoesNotRun and BadData where that is not so.
    """
    model = settled(model, examples, rows)
    check_labels(examples, model.check(examples.batch(rows[:2])).shape[-1])
    return model


def evaluate(
    model: Model,
    examples: Examples,
    rows: Rows,
    *,
    reference: Model | None = None,
    advance: Advance = lambda _: None,
    latency: bool = True,
) -> Evaluation:
    """Run `model` over the examples at `rows`, and `reference` beside it. Nothing of the data is kept in memory.

    Raises BadData where labels do not fit the model, ModelDoesNotRun where a batch makes it fail.
    """
    sums, classes = Sums(), 0
    first: Batch | None = None
    with torch.inference_mode():
        for at, batch in batches(examples, rows, model):
            scores = model.scores(batch)
            if first is None:
                first, classes = batch, scores.shape[-1]
            if batch.labels is not None:
                check_range(batch.labels.numpy(), classes, examples, at.tolist())
            theirs = None if reference is None else scores if reference is model else reference.scores(batch)
            if reference is not None and theirs is not None and theirs.shape != scores.shape:
                raise BadData(
                    f"{reference.label}: gives {theirs.shape[-1]} scores where {model.label} gives {classes}: the two "
                    "have other classes, or tokens of another tokenizer"
                )
            sums.add(scores, batch.labels, theirs, counted_positions(batch, scores))
            advance(len(scores))
    assert first is not None
    return Evaluation(
        examples=len(rows),
        labels=sums.labels,
        **_figures(sums, classes, compared=reference is not None),
        parameters=model.parameters,
        bytes=model.bytes,
        latency=measure_latency(model, first) if latency else {},
        sequences=examples.a_label_a_position,
        nonfinite=sums.nonfinite,
    )


def _figures(sums: Sums, classes: int, *, compared: bool) -> dict[str, float | None]:
    """Sums as means; None where nothing was summed."""
    nats = sums.nats / sums.labels if sums.labels else None
    return {
        "accuracy": sums.right / sums.labels if sums.labels else None,
        "top5": sums.in_five / sums.labels if sums.labels and classes > 5 else None,
        "nats": nats,
        "agreement": sums.agreed / sums.positions if sums.positions else None,
        "kl": max(sums.kl / sums.positions, 0.0) if sums.positions else None,  # in this order NaN stays
        "perplexity_ratio": exp(sums.reference_nats / sums.labels - nats) if compared and nats is not None else None,
    }


def batches(examples: Examples, rows: Rows, model: Model) -> Iterator[tuple[Rows, Batch]]:
    """The examples at `rows` in their order, as many at a time as fit, and which these are; the last batch is short.

    A model with a fixed batch size gets batches of it. Texts differ in length, and a batch is as long as its longest.
    """
    size = model.wanted.batch or BATCH
    outputs = 1
    if model.wanted.batch is None:
        scores = model.scores(examples.batch(rows[:1]))
        outputs = scores.shape[-1] if scores.ndim == 3 else 1
    start = 0
    while start < len(rows):
        taken = rows[start : start + size]
        batch = examples.batch(taken)
        most = max(1, VALUES // max(1, batch.inputs[0][0].numel() * outputs))
        if model.wanted.batch is None and len(taken) > most:
            size = most
            continue
        yield taken, batch
        start += len(taken)


def measure_latency(model: Model, batch: Batch) -> dict[int, float]:
    """Median seconds of a forward pass at batch sizes 1 and 32, on examples of `batch` repeated as needed.

    30 runs after a first one; a model so slow that they take more than 20 s is run less often, but three times. Batches
    whose scores would take more than 1 GB are left out.
    """
    found: dict[int, float] = {}
    sizes = (model.wanted.batch,) if model.wanted.batch else LATENCY_BATCHES
    values = 0  # that come out for one example
    with torch.inference_mode():
        for size in sizes:
            if size * values > LATENCY_VALUES:
                break
            rows = torch.arange(size) % len(batch.inputs[0])
            inputs = tuple(x[rows] for x in batch.inputs)
            values = model.run(inputs).numel() // size
            times: list[float] = []
            while len(times) < LATENCY_RUNS and (len(times) < 3 or sum(times) < LATENCY_SECONDS / len(sizes)):
                started = time.perf_counter()
                model.run(inputs)
                times.append(time.perf_counter() - started)
            found[size] = statistics.median(times)
    return found


def largest_class(examples: Examples, rows: Rows) -> float | None:
    """The share of the most frequent label: what a model that has learnt nothing else is right in. None unlabelled."""
    if not examples.labelled:
        return None
    if examples.labels is not None:
        flat = examples.labels[rows].ravel()
    else:
        found = [examples.batch(rows[start : start + BATCH]).labels for start in range(0, len(rows), BATCH)]
        flat = np.concatenate([labels.flatten().numpy() for labels in found if labels is not None])
    counts = np.unique(flat[flat != IGNORED], return_counts=True)[1]
    return float(counts.max() / counts.sum()) if len(counts) else None


def check_gates(gates: tuple[tuple[str, float], ...], found: Evaluation) -> tuple[Gate, ...]:
    """Hold a result against its gates; a metric that is not known does not pass."""
    values = [(metric, limit, _known(found.metric(metric))) for metric, limit in gates]
    return tuple(Gate(metric, limit, value, value is not None and value >= limit) for metric, limit, value in values)


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def use_threads(threads: int) -> None:
    """Let torch compute on so many threads."""
    torch.set_num_threads(threads)


def chosen_rows(examples: Examples, limit: int | None, *key: int | str) -> Rows:
    """The rows that `limit` leaves, chosen by `key`, in ascending order; all without one."""
    if limit is None:
        return np.arange(len(examples), dtype=np.int64)
    return np.sort(order(len(examples), *key, "limit")[:limit])
