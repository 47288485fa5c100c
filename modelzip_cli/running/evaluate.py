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

from modelzip_cli.errors import BadData, inert
from modelzip_cli.report import Gate, finite, significant
from modelzip_cli.running.inputs import IGNORED, Batch, Examples, Rows, order
from modelzip_cli.running.labels import check_range
from modelzip_cli.running.model import Model

METRICS = ("accuracy", "agreement", "perplexity-ratio")  # what --fail-under knows: the higher the better
BATCH = 256  # examples at a time
POSITIONS = 16_384  # and at most this many positions: a language model gives scores for every token at each
LATENCY_RUNS, LATENCY_BATCHES = 30, (1, 32)
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

    @property
    def perplexity(self) -> float | None:
        """exp(nats)."""
        return None if self.nats is None else math.exp(min(self.nats, 700.0))

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
            "kl": finite(self.kl, 6),
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

    def add(self, scores: Tensor, labels: Tensor | None, reference: Tensor | None, counted: Tensor | None) -> None:
        """Take in the scores of a batch, [..., classes]; labels [...]; `counted` [...] says which positions count."""
        log_p = scores.flatten(0, -2).log_softmax(dim=-1)
        kept = torch.ones(len(log_p), dtype=torch.bool) if counted is None else counted.flatten()
        if labels is not None:
            wanted = labels.flatten()
            places = (wanted != IGNORED).nonzero().squeeze(1)
            wanted, at = wanted[places], log_p[places]
            own = at.gather(1, wanted[:, None])
            self.labels += len(wanted)
            self.right += int((at.argmax(1) == wanted).sum())
            self.in_five += int(((at > own).sum(1) < 5).sum())
            self.nats -= float(own.double().sum())
            if reference is not None:
                theirs = reference.flatten(0, -2)[places].log_softmax(dim=-1).gather(1, wanted[:, None])
                self.reference_nats -= float(theirs.double().sum())
        if reference is not None:
            log_q = reference.flatten(0, -2).log_softmax(dim=-1)
            self.positions += int(kept.sum())
            self.agreed += int(((log_p.argmax(1) == log_q.argmax(1)) & kept).sum())
            kl = (log_q.exp() * (log_q - log_p)).nan_to_num(0.0).sum(dim=1)  # 0 * -inf: a masked score
            self.kl += float(kl[kept].double().sum())


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

    Raises BadData where labels or tokens do not fit the model.
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
            if theirs is not None and theirs.shape != scores.shape:
                raise BadData(
                    f"{inert(reference.label) if reference else ''}: gives {theirs.shape[-1]} scores where "
                    f"{model.label} gives {classes}: the two have other classes, or tokens of another tokenizer"
                )
            sums.add(scores, batch.labels, theirs, counted_positions(batch, scores))
            advance(len(scores))
    assert first is not None
    labelled = sums.labels > 0
    nats = sums.nats / sums.labels if labelled else None
    return Evaluation(
        examples=len(rows),
        labels=sums.labels,
        accuracy=sums.right / sums.labels if labelled else None,
        top5=sums.in_five / sums.labels if labelled and classes > 5 else None,
        nats=nats,
        agreement=sums.agreed / sums.positions if reference else None,
        kl=max(0.0, sums.kl / sums.positions) if reference else None,
        perplexity_ratio=math.exp(sums.reference_nats / sums.labels - nats) if reference and nats is not None else None,
        parameters=model.parameters,
        bytes=model.bytes,
        latency=measure_latency(model, first) if latency else {},
        sequences=examples.a_label_a_position,
    )


def batches(examples: Examples, rows: Rows, model: Model) -> Iterator[tuple[Rows, Batch]]:
    """The examples at `rows` in their order, as many at a time as fit, and which these are; the last batch is short."""
    size = model.wanted.batch or BATCH
    if model.wanted.batch is None:
        probe = examples.batch(rows[:1])
        if not probe.inputs[0].is_floating_point():
            size = max(1, min(BATCH, POSITIONS // max(1, probe.inputs[0].numel())))
    for start in range(0, len(rows), size):
        taken = rows[start : start + size]
        yield taken, examples.batch(taken)


def counted_positions(batch: Batch, scores: Tensor) -> Tensor | None:
    """Which positions of scores [batch, time, tokens] count: those with a label, else those of the attention mask."""
    if scores.ndim == 2:
        return None
    if batch.labels is not None and batch.labels.ndim == 2:
        return batch.labels != IGNORED
    return batch.inputs[1].bool() if len(batch.inputs) > 1 else None


def measure_latency(model: Model, batch: Batch) -> dict[int, float]:
    """Median seconds of a forward pass at batch sizes 1 and 32, on examples of `batch` repeated as needed.

    30 runs after a first one; a model so slow that they take more than 20 s is run less often, but three times.
    """
    found = {}
    sizes = (model.wanted.batch,) if model.wanted.batch else LATENCY_BATCHES
    with torch.inference_mode():
        for size in sizes:
            rows = torch.arange(size) % len(batch.inputs[0])
            inputs = tuple(x[rows] for x in batch.inputs)
            model.run(inputs)
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
    values = [(metric, limit, found.metric(metric)) for metric, limit in gates]
    return tuple(Gate(metric, limit, value, value is not None and value >= limit) for metric, limit, value in values)


def use_threads(threads: int) -> None:
    """Let torch compute on so many threads."""
    torch.set_num_threads(threads)


def chosen_rows(examples: Examples, limit: int | None, *key: int | str) -> Rows:
    """The rows that `limit` leaves, chosen by `key`, in ascending order; all without one."""
    if limit is None:
        return np.arange(len(examples), dtype=np.int64)
    return np.sort(order(len(examples), *key, "limit")[:limit])
