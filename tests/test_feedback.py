"""Error feedback gives what GPTQ says, computed here in the plainest way; what it may not depend on, it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip_cli import feedback
from modelzip_cli.feedback import Feedback
from modelzip_cli.schemes import parse_scheme
from modelzip_cli.schemes.base import Params, Scheme
from tests.entropy import first_tables
from tests.measured import damped, hessian_of, inputs_of, output_error
from tests.strategies import all_schemes, fit, part_of

NAMES = [
    *("int4-g8", "int3-channel", "int8-tensor", "int4-g7-asym", "nf4-g16", "codebook3", "ternary", "fixed6", "fp8"),
    *("ecq-s0.3-t1", "ecq-s0.3"),
]
FED = [scheme for scheme in all_schemes() if scheme.feeds_back and scheme.levels is not None]
RANDOM = np.random.default_rng(0)
each_name = pytest.mark.parametrize("name", NAMES)


def drawn(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def prices_of(scheme: Scheme) -> Any:
    return scheme.prices(first_tables(scheme).rates) if scheme.levels is None else None


def plain_gptq(scheme: Scheme, weight: np.ndarray, params: Params, hessian: np.ndarray) -> np.ndarray:
    """Codes by algorithm 1 of arXiv:2210.17323 in its first form: after every column what is left of the inverse of
    the Hessian is computed anew, in double precision (section 3.1, equation 3)."""
    inverse, left = np.linalg.inv(damped(hessian)), weight.astype(np.float64)
    places, codes = [*np.argsort(-hessian.diagonal(), kind="stable")], np.zeros(weight.shape, np.int64)
    for at in list(places):
        column, local = left[:, [at]].astype(np.float32), scheme.at(params, at)
        codes[:, [at]] = found = scheme.encode(column, local, prices_of(scheme))
        error = (left[:, at] - scheme.decode(found, local)[:, 0]) / inverse[at, at]
        left -= error[:, None] * inverse[at]
        inverse = inverse - np.outer(inverse[:, at], inverse[at]) / inverse[at, at]
    return codes


def test_the_factor_is_that_of_the_inverse_of_the_damped_hessian():
    hessian = hessian_of(inputs_of(30))
    found = Feedback.of(hessian)
    assert (np.diff(hessian.diagonal()[found.order]) <= 0).all()
    assert sorted(found.order) == list(range(30))
    assert (np.tril(found.factor, -1) == 0).all()
    assert (found.factor.diagonal() > 0).all()
    inverse = np.linalg.inv(damped(hessian)[np.ix_(found.order, found.order)])
    np.testing.assert_allclose(found.factor.T @ found.factor, inverse, atol=1e-5 * inverse.max())


def test_without_sorting_the_order_is_that_of_the_file_and_equal_inputs_keep_theirs():
    assert Feedback.of(hessian_of(inputs_of(9)), sort=False).order.tolist() == list(range(9))
    assert Feedback.of(np.diag(np.float32([1, 2, 1, 2]))).order.tolist() == [1, 3, 0, 2]


def test_inputs_that_were_always_0_come_last_and_pass_nothing_on():
    inputs = inputs_of(12)
    inputs[:, [0, 7]] = 0
    found = Feedback.of(hessian_of(inputs))
    assert found.order[-2:].tolist() == [0, 7]
    assert np.isfinite(found.factor).all()
    assert (found.factor[:-2, -2:] == 0).all()
    assert found.factor[-2, -1] == 0
    nothing = Feedback.of(np.zeros((3, 3), np.float32))
    assert (nothing.factor == 10 * np.eye(3, dtype=np.float32)).all()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_inputs_does_not_matter(scale):
    """With an input that was always 0, which once counted as 1 beside the others."""
    inputs, scheme, weight = inputs_of(20), parse_scheme("int3-channel"), drawn(6, 20)
    inputs[:, 3] = 0
    params, hessian = fit(scheme, weight), hessian_of(inputs)
    expected = Feedback.of(hessian).codes(scheme, weight, params)
    assert (Feedback.of(hessian * np.float32(scale)).codes(scheme, weight, params) != expected).mean() < 0.02


@each_name
def test_codes_are_those_of_gptq(name):
    scheme, weight, hessian = parse_scheme(name), drawn(24, 22), hessian_of(inputs_of(22, 3))
    params = fit(scheme, weight)
    codes = Feedback.of(hessian).codes(scheme, weight, params, prices_of(scheme))
    expected = plain_gptq(scheme, weight, params, hessian)
    assert (codes.shape, codes.dtype) == (weight.shape, scheme.encode(weight, params, prices_of(scheme)).dtype)
    assert (codes != expected).mean() < 0.02  # a rounding error may tip a weight, and those after it
    plain = scheme.encode(weight, params, prices_of(scheme))
    assert (codes != plain).mean() > 0.05


@pytest.mark.parametrize(("name", "columns"), [*((name, 20) for name in NAMES[:-1]), ("int3-channel", 150)])
def test_codes_do_not_depend_on_how_rows_are_cut(name, columns):
    scheme, weight = parse_scheme(name), drawn(17, columns)
    params, fed = fit(scheme, weight), Feedback.of(hessian_of(inputs_of(columns)))
    local = {"row_class"} if scheme.levels is None else set()

    def part(first: int, last: int) -> Params:
        found = {key: value for key, value in params.items() if key not in {*local, "least_class"}}
        return part_of(scheme, found, columns, first, last) | {key: params[key][first:last] for key in local}

    whole = fed.codes(scheme, weight, params, prices_of(scheme))
    parts = [fed.codes(scheme, weight[a:b], part(a, b), prices_of(scheme)) for a, b in ((0, 1), (1, 8), (8, 17))]
    different = (np.concatenate(parts) != whole).mean()
    assert different == 0 if columns <= feedback.PANEL else different < 0.02  # a product of matrices rounds as it likes


@each_name
def test_panels_change_nothing_but_the_order_of_sums(monkeypatch, name):
    scheme, weight, fed = parse_scheme(name), drawn(30, 25, 1), Feedback.of(hessian_of(inputs_of(25)))
    params = fit(scheme, weight)
    whole = fed.codes(scheme, weight, params, prices_of(scheme))
    monkeypatch.setattr(feedback, "PANEL", 7)
    assert (fed.codes(scheme, weight, params, prices_of(scheme)) != whole).mean() < 0.02


@each_name
def test_a_weight_of_0_stays_0_where_the_scheme_has_a_zero(name):
    scheme, weight = parse_scheme(name), drawn(30, 25)
    weight[RANDOM.random(weight.shape) < 0.4] = 0
    params = fit(scheme, weight)
    codes = Feedback.of(hessian_of(inputs_of(25))).codes(scheme, weight, params, prices_of(scheme))
    decoded = scheme.decode(codes, params)
    assert not scheme.has_zero or (decoded[weight == 0] == 0).all()
    assert (decoded != 0).any()


@pytest.mark.parametrize("shape", [(9, 40), (40, 30), (1, 1), (0, 5)])
def test_inputs_that_have_nothing_to_do_with_each_other_change_nothing(shape):
    weight, alone = drawn(*shape), Feedback.of(np.eye(shape[1], dtype=np.float32))
    for scheme in FED:
        params = fit(scheme, weight)
        found = alone.codes(scheme, weight, params)
        assert found.dtype == scheme.encode(weight, params).dtype, scheme
        assert found.tobytes() == scheme.encode(weight, params).tobytes(), scheme


@pytest.mark.parametrize("name", ["ecq-s0.1", "ecq-s1", "ecq-s0.1-t1", "ecq-s1-t1"])
def test_the_same_holds_for_open_ranges(name):
    scheme, weight = parse_scheme(name), drawn(40, 30)
    params, prices = fit(scheme, weight), prices_of(scheme)
    weight[3, 4] = 1e6  # int32 among columns of int16
    found = Feedback.of(np.eye(30, dtype=np.float32)).codes(scheme, weight, params, prices)
    expected = scheme.encode(weight, params, prices)
    assert found.dtype == expected.dtype == np.int32
    assert (found == expected).all()


@given(
    name=st.sampled_from(["int3-channel", "int4-g8", "codebook3", "nf4-g16", "ternary", "fp8", "ecq-s0.5-t1"]),
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_outputs_change_less_than_by_rounding_alone(name, rows, columns, seed):
    scheme, weight, inputs = parse_scheme(name), drawn(rows, columns, seed), inputs_of(columns, seed)
    params, prices = fit(scheme, weight), prices_of(scheme)
    fed = scheme.decode(Feedback.of(hessian_of(inputs)).codes(scheme, weight, params, prices), params)
    rounded = scheme.decode(scheme.encode(weight, params, prices), params)
    errors = [output_error(inputs, weight, each) for each in (fed, rounded)]
    few = rows * columns < 400  # where a single weight that tips the other way shows
    assert errors[0] <= errors[1] * (1.5 if few else 0.95)
