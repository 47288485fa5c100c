"""How fine `ecq` has to be: what a step gives, predicted from a sample of each tensor, and the step that meets a goal.

A step is tried on a sample alone (sampling.py): priced by Gaussian tables, then by those learnt from the first try.
Tensors that are unlike the others get tables of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.coders.tables import RATES, TOTAL, Tables, from_counts, symmetric_from_counts, write_set
from modelzip_cli.sampling import Sampled, Trial, try_step
from modelzip_cli.schemes.base import Params
from modelzip_cli.schemes.ecq import CLASSES, LEAST_STEP, MOST_STEP, Ecq, low_bits, priors
from modelzip_cli.statistics import SENSITIVITY
from modelzip_cli.tensors import Statistics

ENOUGH = 500  # symbols; with fewer a table says more about chance than about the weights
ESCAPED = 8 << 8  # 1/256 bit that an escape takes beyond its symbol, in a slab without outliers
DIGITS = 5  # of a step: at most 0.01 % apart, 0.0002 bit
TRIES = 12
ROUNDS = 4  # of finding tensors that are better apart
CLOSE = 0.0008  # how near to a goal a prediction has to come
LEAST_SQNR = 10 ** (3 / 10)  # signal over noise of any tensor: below 3 dB zeros would do nearly as well

FED = 10 ** (-2 / 10)
LEAST_SENSITIVITY = 1e-6  # of the largest
FARTHEST = math.log(8.0)  # of a step from the common one
OVER = 3  # steps that a point may lie above its weight
LARGEST = {"f16": 65504.0, "bf16": 255 * 2.0**120, "f32": (2 - 2.0**-23) * 2.0**127}


@dataclass(frozen=True)
class Allocation:
    """What a step gives: for each tensor its scheme, params, set of tables, predicted bytes and noise over signal."""

    step: float
    tables: tuple[Tables, ...]
    prices: tuple[Any, ...]
    set_of: dict[str, int]
    scheme: dict[str, Ecq]
    params: dict[str, Params]
    bytes: dict[str, int]
    loss: dict[str, float]
    signal: dict[str, float]
    fits: dict[str, bool]
    weights: int = 0
    bias: tuple[float, float] = (1.0, 1.0)  # what bytes and noise come to, over what is predicted
    sampled: Mapping[str, Sampled] = field(default_factory=dict)

    def row_params(self, name: str) -> Params:
        """What `fit_rows` would find in a tensor, from the energies of the sample: `row_class` int32 [rows, 1]."""
        found = self.scheme[name].row_classes(self.sampled[name].mean_squares, self.params[name])
        return {"row_class": found.reshape(-1, 1)}

    @cached_property
    def stored(self) -> int:
        """Predicted bytes of all treated tensors, tables included."""
        return math.ceil(sum(self.bytes.values()) * self.bias[0]) + table_bytes(self.tables)

    @property
    def worst(self) -> float:
        """The largest noise over signal of a tensor; of one with feedback as if it had lost 2 dB less."""
        return max((each * (FED if self.is_fed(name) else 1.0) for name, each in self.loss.items()), default=0.0)

    def is_fed(self, name: str) -> bool:
        """Whether a tensor is rounded with feedback."""
        return name in self.sampled and self.sampled[name].fed

    @property
    def total_loss(self) -> float:
        """Noise over signal of all treated weights."""
        signal = math.fsum(self.signal.values())
        noise = math.fsum(self.loss[name] * self.signal[name] for name in self.loss)
        return noise / signal * self.bias[1] if signal > 0 else 0.0

    @property
    def sqnr_db(self) -> float | None:
        """Predicted, over all treated weights."""
        return -10 * math.log10(self.total_loss) if self.total_loss > 0 else None


def rounded(step: float) -> float:
    """The step as it is written down."""
    return float(f"{step:.{DIGITS}g}")


def table_bytes(tables: Sequence[Tables]) -> int:
    """Bytes of sets of tables as the manifest holds them."""
    return sum(-(-len(write_set(each)) // 3) * 4 + 3 for each in tables)


def weighted(sampled: Sequence[Sampled], statistics: Statistics, is_held: Callable[[str], bool]) -> list[Sampled]:
    """The tensors with steps for the outputs: d ~ 1 / sqrt(sensitivity), so that a bit does as much in each of them.

    Those without a step of their own whose sensitivity is known share the common step so that its geometric mean over
    their weights stays. Those that `is_held` are at that mean: rows of an embedding that no data touched look free.
    """
    known = {
        place: float(statistics.read(each.spec, SENSITIVITY)[0, 0])
        for place, each in enumerate(sampled)
        if each.scheme.step is None
        and each.rms > 0
        and not is_held(each.spec.name)
        and statistics.has(each.spec, SENSITIVITY)
    }
    least = max(known.values(), default=0.0) * LEAST_SENSITIVITY
    if not least > 0:
        return list(sampled)
    wanted = {place: -math.log(sampled[place].rms) - math.log(max(s, least)) / 2 for place, s in known.items()}
    weights = math.fsum(sampled[place].spec.size for place in wanted)
    mean = math.fsum(wanted[place] * sampled[place].spec.size for place in wanted) / weights
    return [
        replace(each, factor=math.exp(min(max(wanted[place] - mean, -FARTHEST), FARTHEST))) if place in wanted else each
        for place, each in enumerate(sampled)
    ]


@dataclass
class Allocator:
    """The sample of a checkpoint, and what steps make of it."""

    sampled: Sequence[Sampled]
    executor: Executor
    known: dict[float, Allocation] = field(default_factory=dict)
    bias: tuple[float, float] | None = None

    def at(self, step: float) -> Allocation:
        """The allocation at `step` times the root mean square for all tensors that have no step of their own."""
        if step not in self.known:
            self.known[step] = self._try(step)
        return self.known[step]

    @property
    def weights(self) -> int:
        """Of all tensors together."""
        return sum(each.spec.size for each in self.sampled)

    def first(self, most: float) -> float:
        """The step at which Gaussian weights take `most` bytes."""
        return rounded(min(max(2.0 ** (1.1 - 8 * most / max(self.weights, 1)), LEAST_STEP), 1.0))

    def finest(self) -> Allocation:
        """The smallest step on offer."""
        return self.at(LEAST_STEP)

    def coarsest(self) -> Allocation:
        """The largest step at which every tensor keeps 3 dB."""
        low, high = LEAST_STEP, MOST_STEP
        if self.at(high).worst <= 1 / LEAST_SQNR:
            return self.at(high)
        while high > 1.01 * low:
            middle = rounded(math.sqrt(low * high))
            low, high = (middle, high) if self.at(middle).worst <= 1 / LEAST_SQNR else (low, middle)
        return self.at(low)

    def of_size(self, most: float) -> Allocation | None:
        """The finest step that is predicted to store at most `most` bytes; None where no step on offer does."""
        bits = 8 * most / max(self.weights, 1)
        best, fine, coarse = None, LEAST_STEP, MOST_STEP
        step = rounded(min(max(self._towards(most, bits), LEAST_STEP), 1.0))
        for _ in range(TRIES):
            found = self.at(step)
            if found.stored <= most:
                coarse, best = min(coarse, step), found
                if found.stored >= most * (1 - CLOSE):
                    break
            else:
                fine = max(fine, step)
            if coarse <= fine * 1.0001:
                break
            step = rounded(min(max(self._towards(most * (1 - CLOSE / 2), bits), fine), coarse))
            if step in self.known:
                step = rounded(math.sqrt(fine * coarse))
        if best is None:
            best = self.coarsest()
        return best if best.stored <= most and best.worst <= 1 / LEAST_SQNR else None

    def _towards(self, most: float, bits: float) -> float:
        """The step that should store `most` bytes, `bits` a weight, by the two nearest that were tried."""
        tried = sorted(self.known.values(), key=lambda each: abs(each.stored - most))[:2]
        if not tried:
            return self.first(most)
        slope = 1.0  # bits that a doubling of the step saves: fewer than one at low rates
        if len(tried) == 2 and tried[0].step != tried[1].step:
            slope = bits * (tried[0].stored - tried[1].stored) / most / math.log2(tried[1].step / tried[0].step)
            slope = min(max(slope, 0.2), 1.5)
        return tried[0].step * float(2.0 ** ((tried[0].stored / most - 1) * bits / slope))

    def of_loss(self, most: float) -> Allocation | None:
        """The coarsest step that is predicted to lose at most `most` noise over signal of all weights together."""
        best, step, fine, coarse = None, 0.15, LEAST_STEP, MOST_STEP
        for _ in range(TRIES):
            found = self.at(step)
            loss = found.total_loss
            if loss <= most:
                fine, best = max(fine, step), found
                if loss >= most * (1 - 4 * CLOSE):
                    break
            else:
                coarse = min(coarse, step)
            if coarse <= fine * 1.0001:
                break
            towards = step * math.sqrt(most * (1 - 2 * CLOSE) / loss) if loss > 0 else coarse
            step = rounded(min(max(towards, fine), coarse))
            if step in self.known:
                step = rounded(math.sqrt(fine * coarse))
        if best is None:
            best = self.finest()
        return best if best.total_loss <= most else None

    def _try(self, step: float) -> Allocation:
        machines = sorted({each.scheme.trellis for each in self.sampled})
        tables = {trellis: Tables(_from_priors(trellis)) for trellis in machines}
        trials: list[Trial] = []
        for _ in range(2):
            prices = {trellis: Ecq(states=8 if trellis else 1).prices(tables[trellis].rates) for trellis in machines}
            tasks = [partial(try_step, each, step, tables, prices) for each in self.sampled]
            trials.clear()  # counts take 160 kB a tensor
            trials = list(self.executor.map(lambda task: task(), tasks))
            for trellis in machines:
                counts = sum(trial.counts for trial in trials if trial.scheme.trellis == trellis)
                tables[trellis] = Tables(_learnt(np.asarray(counts), _from_priors(trellis)))
        found = self._chosen(step, machines, tables, trials)
        if self.bias is None:
            self.bias = self._bias(step, found, tables)
        return replace(found, bias=self.bias)

    def _bias(self, step: float, found: Allocation, tables: dict[bool, Tables]) -> tuple[float, float]:
        """What another pass, priced by the tables that were learnt last, makes of bytes and of noise: a little less of
        the one and more of the other. It is nearly the same at all steps, so it is looked at once."""
        again = []
        for each in self.sampled:
            number = found.set_of[each.spec.name]
            priced = dict.fromkeys(tables, found.prices[number])
            again.append(partial(try_step, each, step, dict.fromkeys(tables, found.tables[number]), priced))
        trials = list(self.executor.map(lambda task: task(), again))
        rates = [found.tables[found.set_of[each.spec.name]].rates for each in self.sampled]
        stored = sum(_cost(trial.counts, rate) / 8 + trial.beside for trial, rate in zip(trials, rates, strict=True))
        signal = math.fsum(found.signal.values())
        noise = math.fsum(
            trial.noise / trial.signal * each.total
            for trial, each in zip(trials, self.sampled, strict=True)
            if trial.signal > 0
        )
        before = found.total_loss * signal
        return stored / max(sum(found.bytes.values()), 1), noise / before if before > 0 else 1.0

    def _chosen(
        self, step: float, machines: Sequence[bool], shared: dict[bool, Tables], trials: Sequence[Trial]
    ) -> Allocation:
        """Give each tensor the shared tables, or its own where they save more than they take."""
        shared, own = self._apart(shared, trials)
        sets = [shared[trellis] for trellis in machines]
        found = Allocation(step, (), (), {}, {}, {}, {}, {}, {}, {})
        for place, (each, trial) in enumerate(zip(self.sampled, trials, strict=True)):
            name, number = each.spec.name, list(machines).index(trial.scheme.trellis)
            if place in own:
                number = len(sets)
                sets.append(own[place])
            bits = _cost(trial.counts, sets[number].rates)
            found.set_of[name], found.scheme[name], found.params[name] = number, trial.scheme, trial.params
            found.bytes[name] = math.ceil(bits / 8 + trial.beside)
            found.loss[name] = trial.noise / trial.signal if trial.signal > 0 else 0.0
            found.signal[name] = each.total
            most = LARGEST.get(each.spec.dtype.id, LARGEST["f32"])
            found.fits[name] = each.largest + OVER * float(trial.params["step"][0, 0]) <= most
        used = sorted(set(found.set_of.values()))
        trimmed = [self._trimmed(sets[number], found, trials, number) for number in used]
        prices = [
            next(t.scheme for t, n in zip(trials, found.set_of.values(), strict=True) if n == number) for number in used
        ]
        return replace(
            found,
            tables=tuple(trimmed),
            prices=tuple(scheme.prices(each.rates) for scheme, each in zip(prices, trimmed, strict=True)),
            set_of={name: used.index(number) for name, number in found.set_of.items()},
            weights=self.weights,
            sampled={each.spec.name: each for each in self.sampled},
        )

    def _apart(
        self, shared: dict[bool, Tables], trials: Sequence[Trial]
    ) -> tuple[dict[bool, Tables], dict[int, Tables]]:
        """Which trials have tables of their own, and the shared ones learnt from the others alone. Those that gain most
        go first: what is left may be alike without them."""
        own: dict[int, Tables] = {}
        for _ in range(ROUNDS):
            gains: dict[int, tuple[float, Tables]] = {}
            for place, trial in enumerate(trials):
                common = shared[trial.scheme.trellis]
                bits = _cost(trial.counts, common.rates)
                if place not in own and bits - trial.chance - _least_cost(trial.counts) > 8 * 100:
                    tables = Tables(_learnt(trial.counts, common.frequencies), _span(trial.population, common))
                    gain = bits - trial.chance - _cost(trial.counts, tables.rates) - 8 * table_bytes([tables])
                    if gain > 0:
                        gains[place] = gain, tables
            if not gains:
                break
            most = max(gain for gain, _ in gains.values())
            own |= {place: tables for place, (gain, tables) in gains.items() if gain >= most / 2}
            for trellis in shared:
                left = [trial.counts for place, trial in enumerate(trials) if place not in own]
                left = [counts for counts in left if len(counts) == len(shared[trellis].frequencies)]
                if left:
                    shared = shared | {trellis: Tables(_learnt(np.sum(left, axis=0), _from_priors(trellis)))}
        return shared, own

    def _trimmed(self, tables: Tables, found: Allocation, trials: Sequence[Trial], number: int) -> Tables:
        """The tables of the classes that weights have."""
        classes = np.zeros(CLASSES, np.int64)
        for trial, chosen in zip(trials, found.set_of.values(), strict=True):
            if chosen == number:
                classes += trial.population
        return Tables(tables.frequencies, _span(classes, tables))


def _span(classes: NDArray[np.int64], tables: Tables) -> tuple[int, int]:
    """The tables of the classes that have weights."""
    (used,) = np.nonzero(classes)
    width = len(tables.frequencies) // CLASSES
    return int(used[0]) * width, (int(used[-1]) + 1) * width


@lru_cache(maxsize=2)
def _from_priors(trellis: bool) -> NDArray[np.int64]:
    raw, width = low_bits(trellis), 2 if trellis else 1
    return np.array([_table(counts, raw[number // width]) for number, counts in enumerate(priors(trellis))])


def _learnt(counts: NDArray[np.int64], otherwise: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tables from counts; `otherwise` where there are too few."""
    found, width = otherwise.copy(), len(counts) // CLASSES
    raw = low_bits(width == 2)
    for number in np.flatnonzero(counts.sum(axis=1) >= ENOUGH):
        found[number] = _table(counts[number], raw[number // width])
    return found


def _table(counts: NDArray[np.int64], raw: int) -> NDArray[np.int64]:
    """One table; those of symbols that are whole k are symmetric, which halves their bytes and the chance in them."""
    return from_counts(counts, escape=255) if raw else symmetric_from_counts(counts)


def _cost(counts: NDArray[np.int64], rates: NDArray[np.int64]) -> float:
    """Bits that symbols take; those without a frequency escape."""
    escaped = rates[:, 255:] + ESCAPED
    return int((counts * np.minimum(rates, escaped)).sum()) / 256


def _least_cost(counts: NDArray[np.int64]) -> float:
    """Bits that they would take with tables of their own, nearly."""
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    frequencies = np.clip(np.rint(counts * (TOTAL / totals)), 1, TOTAL).astype(np.int64)
    return int((counts * RATES[frequencies]).sum()) / 256
