"""Tables to begin with for tests of the entropy coder, and what they make of weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from modelzip_cli.allocate import Allocator
from modelzip_cli.coders.rans import Rans, count_points, pack_vector
from modelzip_cli.coders.tables import Tables, from_counts, symmetric_from_counts
from modelzip_cli.sampling import sample_all
from modelzip_cli.schemes.base import Scheme
from modelzip_cli.schemes.ecq import Ecq, low_bits, priors
from modelzip_cli.tensors import F32, TensorSpec
from tests.strategies import fit

ENOUGH = 500  # symbols of a table that is learnt


@lru_cache(maxsize=2)
def _first(trellis: bool) -> Tables:
    width = 2 if trellis else 1
    raw = np.repeat(low_bits(trellis), width)
    return Tables(np.array([table(counts, low) for counts, low in zip(priors(trellis), raw, strict=True)]))


def table(counts: np.ndarray, low: int) -> np.ndarray:
    """One table from counts; `low`: the raw bits of its class."""
    return from_counts(counts, escape=255) if low else symmetric_from_counts(counts)


def first_tables(scheme: Scheme) -> Tables:
    """Those of Gaussian weights."""
    return _first(scheme.trellis)


def learnt(scheme: Scheme, weight: np.ndarray, passes: int = 3) -> tuple[Tables, np.ndarray]:
    """Tables after so many passes over the weights, and the last points."""
    tables, params = first_tables(scheme), fit(scheme, weight)
    raw = np.repeat(low_bits(scheme.trellis), 2 if scheme.trellis else 1)
    for place in range(passes):
        points = scheme.encode(weight, params, scheme.prices(tables.rates))
        if place < passes - 1:
            counts, _ = count_points(points, scheme.contexts(params, *weight.shape), tables)
            found = tables.frequencies.copy()
            for number in np.flatnonzero(counts.sum(axis=1) >= ENOUGH):
                found[number] = table(counts[number], raw[number])
            tables = Tables(found)
    return tables, points


def rate_and_sqnr(scheme: Scheme, weight: np.ndarray, passes: int = 3) -> tuple[float, float]:
    """Bits a weight of one slab, without its tables and classes, and the SQNR in dB."""
    tables, points = learnt(scheme, weight, passes)
    params = fit(scheme, weight)
    stream = Rans().pack_points(points, scheme.contexts(params, *weight.shape), tables)
    size = len(stream) - len(pack_vector(params["row_class"].reshape(-1).astype(np.uint8)))
    error = np.square(weight - scheme.decode(points, params).astype(np.float64)).sum()
    return 8 * size / weight.size, float(10 * np.log10(np.square(weight.astype(np.float64)).sum() / error))


def allocator(weights: dict[str, tuple[Ecq, np.ndarray]]) -> Allocator:
    """An allocator that has seen these weights."""
    treated = [(TensorSpec(name, F32, weight.shape), scheme, None) for name, (scheme, weight) in weights.items()]
    executor = ThreadPoolExecutor(1)
    return Allocator(sample_all(treated, lambda s, a, b: weights[s.name][1][a:b], executor), executor)


def through_tables(scheme: Scheme, weight: np.ndarray) -> np.ndarray:
    """The weights of one slab after a way there and back, as a run treats the only tensor that it has."""
    found = allocator({"w": (scheme, weight)}).at(1.0)
    params = found.params["w"] | scheme.fit_rows(weight, found.params["w"])
    return scheme.decode(scheme.encode(weight, params, found.prices[0]), params)
