"""What every scheme with an open range of codes must keep: coded under contexts, by tables they share.

A new scheme whose `levels` are None is tested here without a line of test code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelzip_cli.coders.rans import Rans
from modelzip_cli.coders.tables import Tables, from_counts
from modelzip_cli.schemes.base import Contexts, Params, Scheme
from tests.entropy import first_tables
from tests.strategies import WEIGHTS, any_weight, fit, open_schemes

STEPS = (0.02, 0.15, 1.0)
OPEN = [replace(scheme, step=step) for scheme in open_schemes() if scheme.step is None for step in STEPS]
RANDOM = np.random.default_rng(1)
TALL = RANDOM.standard_normal((300, 40)).astype(np.float32)
WIDE = RANDOM.standard_normal((40, 300)).astype(np.float32)
KEPT = RANDOM.random((300, 40)) < 0.3


def with_outliers(weight: np.ndarray, *sizes: float) -> np.ndarray:
    """The same with a few weights that are `sizes` times the standard deviation."""
    changed = weight.copy()
    changed.reshape(-1)[7 :: weight.size // len(sizes)][: len(sizes)] = sizes
    return changed


MORE = {
    "paths down the rows": TALL,
    "paths along the rows": WIDE,
    "outliers": with_outliers(TALL, 175, -60, 1e6),
    "outliers along the rows": with_outliers(WIDE, -175, 60, -1e6),
    "pruned": TALL * KEPT,
    "pruned along the rows": WIDE * KEPT.T,
    "rows of all scales": TALL * 2.0 ** np.linspace(-30, 5, 300)[:, None],
    "columns of all scales": TALL * 2.0 ** np.linspace(-30, 5, 40),
    "small": TALL * 1e-36,
    "nearly subnormal": TALL * 1e-38,
    "subnormals": TALL * 1e-44,
    "large": TALL * 1e36,
}
CASES = WEIGHTS | {name: weight.astype(np.float32) for name, weight in MORE.items()}
each_scheme = pytest.mark.parametrize("scheme", OPEN, ids=str)


@dataclass(frozen=True)
class Slab:
    """A slab with all that belongs to it."""

    scheme: Scheme
    weight: np.ndarray
    tables: Tables

    @cached_property
    def params(self) -> Params:
        with np.errstate(over="ignore"):
            return fit(self.scheme, self.weight)

    @cached_property
    def contexts(self) -> Contexts:
        return self.scheme.contexts(self.params, *self.weight.shape)

    @cached_property
    def codes(self) -> np.ndarray:
        return self.scheme.encode(self.weight, self.params, self.scheme.prices(self.tables.rates))

    @cached_property
    def decoded(self) -> np.ndarray:
        return self.scheme.decode(self.codes, self.params)

    @cached_property
    def stream(self) -> np.ndarray:
        return Rans().pack_points(self.codes, self.contexts, self.tables)

    def unpacked(self) -> np.ndarray:
        """What a reader makes of the stream: the classes of the rows are in it."""
        contexts = replace(self.contexts, row_class=np.zeros(len(self.weight), np.int32))
        return Rans().unpack_points(self.stream, contexts, self.tables, self.params["step"][0, 0])


def slab(scheme: Scheme, weight: np.ndarray, tables: Tables | None = None) -> Slab:
    return Slab(scheme, weight, tables or first_tables(scheme))


def is_in_reach(scheme: Scheme, weight: np.ndarray) -> bool:
    """Whether there are weights, and none so near to the end of float32 that a point beyond it may be the nearest."""
    if not weight.size:
        return False
    rms = np.sqrt(np.square(weight.astype(np.float64)).mean())
    return np.abs(weight).max() + 3 * scheme.step * rms <= np.finfo(np.float32).max


def check_round_trip(one: Slab) -> None:
    weight, decoded, step = one.weight, one.decoded, float(one.params["step"][0, 0])
    assert one.codes.shape == decoded.shape == weight.shape
    assert (one.codes.dtype.kind, decoded.dtype) == ("i", np.float32)
    assert one.unpacked().tobytes() == (decoded + np.float32(0)).tobytes()  # a reader knows no -0
    assert (decoded[weight == 0] == 0).all()
    assert (decoded * np.sign(weight) >= 0).all()
    assert np.isfinite(decoded).all()
    error = np.abs(decoded.astype(np.float64) - weight)
    assert error.max() <= (5 if one.scheme.trellis else 2) * step + np.abs(weight).max() * 2.0**-23


@each_scheme
@pytest.mark.parametrize("name", CASES)
def test_a_reader_gets_what_the_scheme_decodes_and_nothing_is_clipped(scheme, name):
    if is_in_reach(scheme, CASES[name]):
        check_round_trip(slab(scheme, CASES[name]))


@given(scheme=st.sampled_from(OPEN), weight=any_weight(min_side=1, max_side=30))
@example(scheme=OPEN[0], weight=np.full((1, 1), 1e-45, np.float32))
@example(scheme=OPEN[0], weight=np.array([[1e-30, 0, 1e30]], np.float32))
def test_any_weight_comes_to_a_reader_as_the_scheme_decodes_it(scheme, weight):
    if is_in_reach(scheme, weight):
        check_round_trip(slab(scheme, weight))


@each_scheme
@pytest.mark.parametrize("name", ["pruned", "outliers along the rows", "heavy tails", "columns of all scales"])
def test_tables_that_know_few_symbols_make_the_others_escape(scheme, name):
    first = first_tables(scheme)
    few = np.zeros_like(first.frequencies)
    few[:, 126:129], few[:, 255] = 500, 100
    tables = Tables(np.array([from_counts(counts, escape=255) for counts in few]))
    check_round_trip(slab(scheme, CASES[name], tables))


@each_scheme
def test_params_do_not_depend_on_how_rows_are_cut_into_blocks(scheme):
    for name, weight in CASES.items():
        if weight.size:
            rows = len(weight)
            with np.errstate(over="ignore"):
                whole, cut = fit(scheme, weight), fit(scheme, weight, sorted({min(1, rows), rows // 3, rows // 2}))
            assert {k: v.tobytes() for k, v in whole.items()} == {k: v.tobytes() for k, v in cut.items()}, name


@pytest.mark.parametrize("scheme", [scheme for scheme in OPEN if scheme.step == STEPS[1]], ids=str)
def test_a_slab_has_the_bytes_that_it_has_alone(scheme):
    """What surrounds it in memory does not matter."""
    cut = 260
    weight = RANDOM.standard_normal((290, 50)).astype(np.float32)
    tensor = scheme.fit_tensor([weight])
    prices, tables = scheme.prices(first_tables(scheme).rates), first_tables(scheme)
    for rows in (slice(0, cut), slice(cut, None)):
        streams = set()
        for block in (np.asfortranarray(weight)[rows], weight[rows].copy()):
            params = tensor | scheme.fit_rows(block, tensor)
            codes = scheme.encode(block, params, prices)
            contexts = scheme.contexts(params, *block.shape)
            streams.add(Rans().pack_points(codes, contexts, tables).tobytes())
        assert len(streams) == 1


@each_scheme
@pytest.mark.parametrize("name", ["paths down the rows", "outliers", "columns of all scales", "paths along the rows"])
def test_a_column_alone_has_the_codes_and_weights_that_it_has_among_the_others(scheme, name):
    """What error feedback needs: `at` gives the params of a column. A path along the rows has no columns."""
    weight = CASES[name]
    one = slab(scheme, weight)
    if scheme.feeds_back and not (scheme.trellis and one.contexts.along_rows):
        prices = scheme.prices(one.tables.rates)
        for at in range(weight.shape[1]):
            column, local = slice(at, at + 1), scheme.at(one.params, at)
            alone = scheme.encode(np.ascontiguousarray(weight[:, column]), local, prices)
            assert (alone == one.codes[:, column]).all()
            assert scheme.decode(alone, local).tobytes() == one.decoded[:, column].tobytes()


@each_scheme
def test_params_are_what_the_scheme_announces_and_positive(scheme):
    for name, weight in CASES.items():
        if not weight.size:
            continue
        one = slab(scheme, weight)
        stored = {local: one.params[local] for local in scheme.param_specs(weight.shape[1])}
        for local, spec in scheme.param_specs(weight.shape[1]).items():
            assert stored[local].shape == (1, spec.columns), name
            assert stored[local].dtype == (np.float32 if spec.dtype.kind == "float" else np.uint8), name
        assert scheme.check(stored) is None, name
        assert all(0 < values.max() < np.inf for local, values in stored.items() if local == "step"), name
        assert one.contexts.tables == len(one.tables.frequencies), name
        classes = one.contexts.row_class[:, None] + one.contexts.column_class
        assert 0 <= classes.min() <= classes.max() < len(one.contexts.low_bits), name


@each_scheme
def test_encoding_and_decoding_change_no_input(scheme):
    one = slab(scheme, with_outliers(TALL, 1e6).copy())
    before = one.weight.tobytes(), {name: values.tobytes() for name, values in one.params.items()}
    codes = one.codes.tobytes()
    one.unpacked()
    assert (one.weight.tobytes(), {name: values.tobytes() for name, values in one.params.items()}) == before
    assert one.codes.tobytes() == codes


@each_scheme
def test_without_prices_there_is_nothing_to_encode_with(scheme):
    with pytest.raises(ValueError, match="prices"):
        scheme.encode(TALL, fit(scheme, TALL))


@each_scheme
def test_params_that_no_scheme_made_are_refused(scheme):
    params = fit(scheme, TALL)
    for step in (0, -1):
        assert scheme.check(params | {"step": np.full((1, 1), step, np.float32)})
    assert scheme.check(params | {"column_class": np.full((1, 40), 40, np.uint8)})
