"""Which weights a run prunes: masks for the tensors of a checkpoint, decided before anything is written.

Every tensor is gone through once, its scores counted by their upper bits; tensors of more bits than bf16 once more.
What is kept of a tensor meanwhile are its counts, never its weights.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.amounts import Pruning
from modelzip_cli.blocks import refuse_nonfinite
from modelzip_cli.criteria import AUTO
from modelzip_cli.criteria.base import Criterion, Place
from modelzip_cli.criteria.masks import Below, LargestOf, Mask
from modelzip_cli.criteria.patterns import Pattern, inputs_of
from modelzip_cli.criteria.threshold import NONFINITE, Profile, shares
from modelzip_cli.errors import Unreachable, UsageError, inert
from modelzip_cli.kernels import jit
from modelzip_cli.kernels.pruning import HIGH, count_high, count_low
from modelzip_cli.solving import Solver
from modelzip_cli.source import Checkpoint
from modelzip_cli.statistics import HESSIAN
from modelzip_cli.tensors import BF16, Source, Statistics, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits

WINDOW = 16  # slabs in flight
SAMPLED = 64  # one row in so many is looked at before all are


@dataclass(frozen=True)
class Pruned:
    """What a run prunes of one tensor: the `mask`, and how many zeros it then has, None where only the data tells.

    `floored`: it would have lost more, but `--min-keep` left it the rest.
    """

    mask: Mask
    zeros: int | None
    floored: bool = False


Counts = tuple[NDArray[np.int64], ...]
Masks = Mapping[str, Pruned]
Chosen = Sequence[tuple[TensorSpec, float | None]]  # tensors to prune, each with a share of zeros of its own or None


class Masked:
    """A source as it is once pruned: what plans look at."""

    def __init__(self, source: Source, masks: Masks) -> None:
        self._source, self._masks = source, masks

    def read(self, name: str, start: int, stop: int) -> Bits:
        """The units [start, stop) of a tensor, those that are pruned 0."""
        if name not in self._masks:
            return self._source.read(name, start, stop)
        return pruned_bits(self._source, self._source.specs[name], self._masks[name].mask, start, stop)[1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def pruned_bits(source: Source, spec: TensorSpec, mask: Mask, start: int, stop: int) -> tuple[Bits, Bits]:
    """The units [start, stop) of a tensor as they are, and as they are once pruned."""
    columns = spec.matrix[1]
    first, last = start // columns, -(-stop // columns)
    bits = source.read(spec.name, first * columns, last * columns).reshape(last - first, columns)
    kept = mask.apply(bits, Place(spec, first)).reshape(-1)
    inside = slice(start - first * columns, stop - first * columns)
    return bits.reshape(-1)[inside], kept[inside]


def find_masks(
    source: Checkpoint,
    chosen: Chosen,
    asked: Pruning,
    executor: Executor,
    *,
    allow_nonfinite: bool,
    statistics: Statistics | None = None,
) -> Masks:
    """Decide what is pruned of the tensors `chosen`; some criteria need `statistics`.

    Raises UsageError where they are missing and for a pattern that does not fit a tensor, Unreachable for an amount
    that would empty one, NonFinite for a tensor with NaN or infinity, which with `allow_nonfinite` is left out.
    """
    jit.expect(2 * sum(spec.size for spec, _ in chosen))
    by = _informed(asked, statistics, [spec for spec, _ in chosen])
    finder = _Finder(source, chosen, asked, by, executor)
    finder.count(allow_nonfinite=allow_nonfinite)
    found = finder.by_threshold() if asked.mask is None else finder.by_pattern(asked.mask)
    finder.refuse_emptied(found)
    if by.changes_weights and statistics is not None:
        solver = Solver(source, statistics, asked.mask)
        shares = {spec.name: asked.sparsity if share is None else share for spec, share in chosen}
        known = [finder.specs[name] for name in found if statistics.has(finder.specs[name], HESSIAN)]
        return {**found, **{spec.name: Pruned(solver.mask(spec, shares[spec.name]), None) for spec in known}}
    return found


def _informed(asked: Pruning, statistics: Statistics | None, specs: Sequence[TensorSpec]) -> Criterion:
    """The criterion with the statistics that it needs. Raises UsageError without."""
    by = replace(asked.by, statistics=statistics)
    if asked.criterion == AUTO:
        raise UsageError(
            "--criterion auto compares what the model does: --data, and --arch where the file has no network"
        )
    if by.needs is None:
        return by
    if statistics is None:
        raise UsageError(
            f"--criterion {by.id} needs to know what the model does: --data, and the network where the file has none, "
            "or --statistics"
        )
    if by.changes_weights:
        specs = [spec for spec in specs if statistics.has(spec, by.needs)][:1] or specs  # the others go by magnitude
    statistics.require(specs, [by.needs])
    return by


class _Finder:
    def __init__(self, source: Checkpoint, chosen: Chosen, asked: Pruning, by: Criterion, executor: Executor) -> None:
        self.source, self.label, self.asked, self.executor = source, source.file.label, asked, executor
        self.specs = {spec.name: spec for spec, _ in chosen}
        self.own = {spec.name: share for spec, share in chosen if share is not None}
        self.by = by
        self.profiles: dict[str, Profile] = {}
        self.looked: set[tuple[str, int]] = set()  # tensors and the bins of theirs that were cut into single scores

    def by_pattern(self, pattern: Pattern) -> dict[str, Pruned]:
        """The masks of N:M, but of tensors with a share of their own."""
        rest = [spec for spec in self.specs.values() if spec.name not in self.own]
        unfit = [spec for spec in rest if not pattern.fits(spec)]
        if unfit:
            more = f" and {len(unfit) - 1} more" if len(unfit) > 1 else ""
            name = inert(unfit[0].name, longest=200)
            raise UsageError(
                f"{self.label}: {pattern.group} does not divide the {inputs_of(unfit[0])[0]} inputs of {name}{more}; "
                f"leave such tensors as they are: --set '{name}=keep'"
            )
        return {spec.name: Pruned(LargestOf(self.by, pattern), None) for spec in rest} | self.masks(self.own_zeros())

    def by_threshold(self) -> dict[str, Pruned]:
        """The masks of a share or a threshold."""
        zeros = self.own_zeros()
        rest = [name for name in self.specs if name not in zeros]
        if self.asked.threshold is not None:
            largest = float(np.finfo(np.float32).max)
            key = int(np.float32(min(self.asked.threshold, largest)).view(np.uint32))
            self.refine(dict.fromkeys(rest, key))
            found = {name: Pruned(Below(self.by, key), self.profiles[name].below(key)) for name in rest}
            return found | self.masks(zeros)
        if self.asked.is_global:
            shared, floored = self.shared(rest)
            return self.masks(zeros | shared, floored)
        assert self.asked.sparsity is not None
        return self.masks(zeros | {name: round(self.asked.sparsity * self.specs[name].size) for name in rest})

    def own_zeros(self) -> dict[str, int]:
        """How many zeros tensors with a share of their own get."""
        return {name: round(share * self.specs[name].size) for name, share in self.own.items() if name in self.specs}

    def count(self, *, allow_nonfinite: bool) -> None:
        """One pass over all: scores by their upper 15 bits, and of the bin that may be asked for by the others too."""
        bins = self.guessed()

        def look(spec: TensorSpec, keys: Bits) -> Counts:
            again = (count_low(keys, bins[spec.name]),) if keys.dtype.itemsize == 4 and spec.name in bins else ()
            return (count_high(keys), *again)

        for spec in self.specs.values():
            self.profiles[spec.name] = Profile.of(np.zeros(HIGH, np.int64), exact=True)  # of tensors without rows
        for name, exact, counts in self.passed(self.specs.values(), look):
            self.profiles[name] = Profile.of(counts[0], exact=exact)
            if len(counts) > 1:
                self.looked_into(name, bins[name], counts[1])
        for name, profile in self.profiles.items():
            if profile.largest >= NONFINITE:
                if not allow_nonfinite:
                    raise refuse_nonfinite(self.source, self.specs[name])
                del self.specs[name]

    def refine(self, at: Mapping[str, int]) -> None:
        """One more pass over the tensors whose bin at a key holds different scores: by their lower 16 bits."""
        unclear = {
            name: key >> 16
            for name, key in at.items()
            if not self.profiles[name].exact
            and key >> 16 << 16 in self.profiles[name].keys
            and (name, key >> 16) not in self.looked
        }
        specs = [self.specs[name] for name in unclear]
        for name, _, (counts,) in self.passed(specs, lambda spec, keys: (count_low(keys, unclear[spec.name]),)):
            self.looked_into(name, unclear[name], counts)

    def looked_into(self, name: str, high: int, counts: NDArray[np.int64]) -> None:
        """Take in the counts of a bin by the lower 16 bits."""
        self.profiles[name] = self.profiles[name].refined(high << 16, counts)
        self.looked.add((name, high))

    def guessed(self) -> dict[str, int]:
        """By a sample, the bin of each tensor that a second pass would have to look into; one of zeros is left out."""
        if self.asked.threshold is not None or (self.asked.mask is not None and not self.own):
            return {}
        asked = {name: self.own.get(name, self.asked.sparsity) for name in self.specs}
        shares = {name: share for name, share in asked.items() if share is not None}
        specs = [self.specs[name] for name in shares]
        found = zip((spec.name for spec in specs), self.executor.map(self.sampled, specs), strict=True)
        samples = {name: profile for name, profile in found if len(profile.keys)}
        together = [name for name in samples if self.asked.is_global and name not in self.own]
        if together:
            total = np.zeros(HIGH)
            for name in together:
                total[samples[name].keys >> 16] += samples[name].counts * (
                    self.specs[name].size / samples[name].weights
                )
            samples |= dict.fromkeys(together, Profile.of(total.astype(np.int64), exact=False))
        bins = {
            name: profile.place(round(shares[name] * profile.weights))[0] >> 16 for name, profile in samples.items()
        }
        return {name: high for name, high in bins.items() if 0 < high < HIGH}

    def sampled(self, spec: TensorSpec) -> Profile:
        """Scores of a part of each slab by their upper 15 bits; none where they have no more."""
        parts = [
            self.keys(spec, first, first + max(1, (last - first) // SAMPLED)).reshape(-1)
            for first, last in spec.row_slabs()
            if spec.dtype != BF16 or not self.by.by_bits
        ]
        return Profile.of(count_high(np.concatenate(parts)) if parts else np.zeros(HIGH, np.int64), exact=False)

    def passed(self, specs: Any, look: Callable[[TensorSpec, Bits], Counts]) -> Iterator[tuple[str, bool, Counts]]:
        """What `look` counts in the rows of tensors: (name, whether scores have 16 bits, counts), tensors in order."""

        def added(a: tuple[str, bool, Counts], b: tuple[str, bool, Counts]) -> tuple[str, bool, Counts]:
            for total, counts in zip(a[2], b[2], strict=True):
                total += counts
            return a

        for _, slabs in groupby(self.of_slabs(specs, look), key=itemgetter(0)):
            yield reduce(added, slabs)

    def of_slabs(self, specs: Any, look: Callable[[TensorSpec, Bits], Counts]) -> Iterator[tuple[str, bool, Counts]]:
        """The same for every slab."""

        def task(spec: TensorSpec, first: int, last: int) -> tuple[str, bool, Counts]:
            keys = self.keys(spec, first, last)
            return spec.name, keys.dtype.itemsize == 2, look(spec, keys)

        waiting: deque[Future[tuple[str, bool, Counts]]] = deque()
        for spec in specs:
            for first, last in spec.row_slabs():
                waiting.append(self.executor.submit(task, spec, first, last))
                if len(waiting) >= WINDOW:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def keys(self, spec: TensorSpec, first: int, last: int) -> Bits:
        """Scores of rows [first, last)."""
        columns = spec.matrix[1]
        bits = self.source.read(spec.name, first * columns, last * columns).reshape(last - first, columns)
        return self.by.keys(bits, Place(spec, first))

    def shared(self, names: Sequence[str]) -> tuple[dict[str, int], set[str]]:
        """How one threshold shares the zeros among tensors, and which of them were left more than it says."""
        assert self.asked.sparsity is not None
        sizes = [self.specs[name].size for name in names]
        zeros = round(self.asked.sparsity * sum(sizes))
        least = [max(0, size - math.ceil(self.asked.floor * size)) for size in sizes]
        most = [max(each, self.profiles[name].zeros) for name, each in zip(names, least, strict=True)]
        if zeros > sum(most):
            raise Unreachable(
                f"{self.label}: --sparsity {self.asked.sparsity:g} leaves less than --min-keep {self.asked.floor:g} of "
                f"every tensor; the most is {sum(most) / max(sum(sizes), 1):.4g}, or lower --min-keep"
            )
        profiles = [self.profiles[name] for name in names]
        key, found = shares(profiles, most, zeros)
        bins = {name: profile.place(each)[0] for name, profile, each in zip(names, profiles, found, strict=True)}
        capped = {name for name, top in zip(names, most, strict=True) if self.profiles[name].below(key) > top}
        self.refine({name: bins[name] if name in capped else key for name in names})
        key, found = shares([self.profiles[name] for name in names], most, zeros)
        floored = {name for name, top in zip(names, most, strict=True) if self.profiles[name].below(key) > top}
        return dict(zip(names, found, strict=True)), floored

    def masks(self, zeros: Mapping[str, int], floored: Collection[str] = ()) -> dict[str, Pruned]:
        """The masks with exactly so many zeros in each tensor."""
        ends = {name: self.profiles[name].place(each) for name, each in zeros.items()}
        self.refine({name: key for name, (key, below, _) in ends.items() if below < zeros[name]})
        until = dict(zip(zeros, self.executor.map(self.place_of_tie, zeros, zeros.values()), strict=True))
        return {
            name: Pruned(
                Below(self.by, self.profiles[name].place(each)[0], until[name]),
                max(each, self.profiles[name].zeros),
                name in floored,
            )
            for name, each in zeros.items()
        }

    def place_of_tie(self, name: str, zeros: int) -> int:
        """The place in a tensor up to which scores that equal the last pruned one are pruned; 0: all or none of them.

        One task for all slabs of a tensor: it mostly ends early.
        """
        key, below, tied = self.profiles[name].place(zeros)
        ties = zeros - below
        if not 0 < ties < tied:
            return 0
        spec = self.specs[name]
        columns = spec.matrix[1]
        for first, last in spec.row_slabs():
            keys = self.keys(spec, first, last).reshape(-1)
            wanted = keys.dtype.type(key >> (32 - 8 * keys.dtype.itemsize))
            magnitude = keys.dtype.type(np.iinfo(keys.dtype).max >> 1)
            (places,) = np.nonzero((keys & magnitude) == wanted)
            if len(places) >= ties:
                return first * columns + int(places[ties - 1]) + 1
            ties -= len(places)
        raise AssertionError(f"{spec.name} has fewer scores of {key}")

    def refuse_emptied(self, found: Mapping[str, Pruned]) -> None:
        """Raise Unreachable for a tensor with weights that would have none."""
        for name, pruned in found.items():
            size, profile = self.specs[name].size, self.profiles[name]
            if pruned.zeros == size > profile.zeros:
                shown = inert(name, longest=200)
                if self.asked.threshold is not None and name not in self.own:
                    largest = float(np.uint32(profile.largest).view(np.float32))
                    raise Unreachable(
                        f"{self.label}: --threshold {self.asked.threshold:g} would empty tensor {shown}, whose largest "
                        f"weight is {largest:.4g}; take less, or --set '{shown}=keep'"
                    )
                raise Unreachable(
                    f"{self.label}: tensor {shown} of {size:,} weights would be emptied; the most for it is "
                    f"{(size - 1) / size:.6g}, or --set '{shown}=keep'"
                )
