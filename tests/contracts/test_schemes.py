"""What every scheme of the table must keep. A new scheme is tested here without a line of test code.

What its codes must keep is tested here where their range is closed, else in test_open_ranges.py.
"""

from __future__ import annotations

import pkgutil
import re
from dataclasses import FrozenInstanceError, fields, is_dataclass
from importlib import import_module
from inspect import getdoc, isabstract
from itertools import permutations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelzip_cli import schemes
from modelzip_cli.errors import BadOption, DoesNotFit, UnknownScheme
from modelzip_cli.layouts.native import BITPACK, encode_parts, native_parts
from modelzip_cli.schemes import NAME, OPTION, SCHEMES, parse_scheme, scheme_class
from modelzip_cli.schemes.base import Scheme
from modelzip_cli.tensors import DTYPES, TensorSpec
from tests.strategies import WEIGHTS, all_schemes, any_weight, closed_schemes, fit, part_of

ALL, CLOSED = all_schemes(), closed_schemes()


def holds(scheme: Scheme, weight: np.ndarray) -> bool:
    """Whether the number format of the scheme reaches as far as the weights."""
    try:
        scheme.fit_tensor([weight] if weight.size else [])
    except DoesNotFit:
        return False
    return True


CASES = {f"{scheme}: {name}": (scheme, w) for scheme in CLOSED for name, w in WEIGHTS.items() if holds(scheme, w)}
each_weight = pytest.mark.parametrize("name", WEIGHTS)
each_scheme = pytest.mark.parametrize("scheme", ALL, ids=str)
each_closed = pytest.mark.parametrize("scheme", CLOSED, ids=str)
each_id = pytest.mark.parametrize("scheme_id", SCHEMES)


def held(name: str) -> list[tuple[Scheme, np.ndarray]]:
    """The named weights with every scheme that holds them."""
    return [(scheme, weight) for scheme, weight in CASES.values() if weight is WEIGHTS[name]]


def spread_over_groups(scheme: Scheme, values: np.ndarray, columns: int) -> np.ndarray:
    """One value a group, [rows, groups], as one a weight."""
    if values.shape[1] == 1:
        return values
    return np.repeat(values, scheme.granularity.span, axis=1)[:, :columns]


def check_round_trip(scheme: Scheme, weight: np.ndarray) -> None:
    params = fit(scheme, weight)
    codes = scheme.encode(weight, params)
    decoded = scheme.decode(codes, params)

    assert codes.shape == weight.shape
    assert codes.dtype.kind == "u"
    assert int(codes.max(initial=0)) < scheme.levels <= 1 << scheme.bits
    assert (decoded.shape, decoded.dtype) == (weight.shape, np.float32)
    assert np.isfinite(decoded).all()
    if (bound := scheme.bound(params)) is not None and weight.size:
        error = np.abs(decoded.astype(np.float64) - weight)
        assert (error <= spread_over_groups(scheme, np.asarray(bound, np.float64), weight.shape[1])).all()
    if scheme.has_zero:
        assert (decoded[weight == 0] == 0).all()


@each_weight
def test_round_trip_is_finite_and_within_the_bound_that_the_scheme_states(name):
    for scheme, weight in held(name):
        check_round_trip(scheme, weight)


@given(scheme=st.sampled_from(CLOSED), weight=any_weight())
@example(scheme=parse_scheme("fixed8"), weight=np.array([[np.finfo(np.float32).min]]))  # -2^(bits-1) would be -inf
def test_round_trip_is_finite_and_within_the_bound_for_any_weight(scheme, weight):
    if holds(scheme, weight):
        check_round_trip(scheme, weight)


def check_cut(scheme: Scheme, weight: np.ndarray, cuts: list[int]) -> None:
    whole = fit(scheme, weight)
    params = fit(scheme, weight, cuts)
    assert {name: values.tobytes() for name, values in params.items()} == {n: v.tobytes() for n, v in whole.items()}
    codes = scheme.encode(weight, whole)
    decoded = scheme.decode(codes, whole)
    for first, last in zip([0, *cuts], [*cuts, len(weight)], strict=True):
        rows = part_of(scheme, whole, weight.shape[1], first, last)
        assert scheme.encode(weight[first:last], rows).tobytes() == codes[first:last].tobytes()
        assert scheme.decode(codes[first:last], rows).tobytes() == decoded[first:last].tobytes()


@each_weight
def test_any_cut_into_blocks_of_rows_gives_the_same_bytes(name):
    for scheme, weight in held(name):
        rows = len(weight)
        check_cut(scheme, weight, sorted({min(1, rows), rows // 3, rows // 2}))


@given(scheme=st.sampled_from(CLOSED), weight=any_weight(), cuts=st.lists(st.integers(0, 40), max_size=4))
def test_any_cut_of_any_weight_gives_the_same_bytes(scheme, weight, cuts):
    if holds(scheme, weight):
        check_cut(scheme, weight, sorted(min(cut, len(weight)) for cut in cuts))


@each_weight
def test_params_have_the_shape_and_type_that_the_scheme_announces(name):
    for scheme, weight in held(name):
        rows, columns = weight.shape
        params = fit(scheme, weight)
        specs = scheme.param_specs(columns)
        assert set(params) == set(specs)
        for param, spec in specs.items():
            assert params[param].shape == (rows if spec.per_row else 1, spec.columns)
            if spec.dtype.kind != "float":  # floats are float32 in memory and rounded to the stored dtype already
                assert params[param].dtype == np.dtype(f"{spec.dtype.id[0]}{spec.dtype.bits // 8}")
        assert scheme.check(params) is None


@each_weight
def test_the_params_in_use_are_those_that_are_stored(name):
    for scheme, weight in held(name):
        params = fit(scheme, weight)
        for param, spec in scheme.param_specs(weight.shape[1]).items():
            if spec.dtype == DTYPES["bf16"]:
                assert not (params[param].view(np.uint32) & 0xFFFF).any(), f"{param} is not a bf16 value"


@each_weight
def test_stored_bytes_are_those_of_the_parts(name):
    for scheme, weight in held(name):
        rows, columns = weight.shape
        params = fit(scheme, weight)
        parts = encode_parts(scheme, scheme.encode(weight, params), params, BITPACK, None)
        assert sum(bits.nbytes for bits in parts.values()) == scheme.stored_bytes(rows, columns)
        spec = TensorSpec("w", DTYPES["f32"], weight.shape)
        planned = {part.local: part.spec.bytes for part in native_parts(spec, scheme, BITPACK)}
        assert {local: bits.nbytes for local, bits in parts.items()} == planned


ALONE = ("normal", "half zeros", "a row of zeros", "one column", "tiny beside huge", "subnormal", "ends of float32")


@pytest.mark.parametrize("scheme", [scheme for scheme in CLOSED if scheme.feeds_back], ids=str)
def test_a_column_alone_has_the_codes_and_weights_that_it_has_among_the_others(scheme):
    """What error feedback needs: `at` gives the params of a column."""
    for weight in (WEIGHTS[name][:, :70] for name in ALONE):
        params = fit(scheme, weight)
        codes = scheme.encode(weight, params)
        decoded = scheme.decode(codes, params)
        for at in range(weight.shape[1]):
            column, local = slice(at, at + 1), scheme.at(params, at)
            alone = scheme.encode(np.ascontiguousarray(weight[:, column]), local)
            assert alone.dtype == codes.dtype
            assert alone.tobytes() == codes[:, column].tobytes()
            assert scheme.decode(alone, local).tobytes() == decoded[:, column].tobytes()


@each_closed
def test_encoding_and_decoding_change_no_input(scheme):
    weight = WEIGHTS["several groups"].copy()
    params = fit(scheme, weight)
    before = weight.tobytes(), {name: values.tobytes() for name, values in params.items()}
    codes = scheme.encode(weight, params)
    packed = codes.tobytes()
    scheme.decode(codes, params)
    after = weight.tobytes(), {name: values.tobytes() for name, values in params.items()}
    assert (after, codes.tobytes()) == (before, packed)


@each_closed
def test_a_second_round_trip_of_codes_loses_nothing_more(scheme):
    weight = WEIGHTS["normal"]
    params = fit(scheme, weight)
    decoded = scheme.decode(scheme.encode(weight, params), params)
    assert scheme.decode(scheme.encode(decoded, params), params).tobytes() == decoded.tobytes()


@each_weight
def test_a_scheme_refuses_only_what_its_plain_dtype_cannot_hold(name):
    for scheme in CLOSED:
        if not holds(scheme, WEIGHTS[name]):
            assert scheme.plain is not None
            assert np.isinf(scheme.decode(scheme.encode(WEIGHTS[name], {}), {})).any()


@each_scheme
def test_the_name_of_a_scheme_parses_back_to_it(scheme):
    assert str(parse_scheme(str(scheme))) == str(scheme)
    assert parse_scheme(str(scheme)) == scheme
    assert hash(parse_scheme(str(scheme))) == hash(scheme)


@each_scheme
def test_options_may_come_in_any_order(scheme):
    name = NAME.fullmatch(str(scheme))
    for options in permutations(OPTION.findall(name["options"])):
        assert parse_scheme("-".join([name["id"] + (name["width"] or ""), *options])) == scheme


@each_scheme
def test_an_unknown_option_is_refused_by_its_name(scheme):
    with pytest.raises(BadOption, match="'zzz'"):
        parse_scheme(f"{scheme}-zzz")


@each_id
def test_a_width_outside_the_range_is_refused(scheme_id):
    with pytest.raises(BadOption, match=r"no width 999"):
        parse_scheme(f"{scheme_id}999")


@pytest.mark.parametrize("name", ["", "int4 ", "INT4", "int4_g64", "int4--g64", "int-4", "4", "nt8", "int4-g64\n", "é"])
def test_what_is_no_name_of_a_scheme_is_refused(name):
    with pytest.raises(UnknownScheme):
        parse_scheme(name)


@pytest.mark.parametrize(
    ("typo", "meant"), [("itn4", "int4"), ("fixd8", "fixed8"), ("binray", "binary"), ("fp61", "fp16")]
)
def test_a_typo_is_answered_with_the_closest_name(typo, meant):
    with pytest.raises(UnknownScheme, match=rf"did you mean '{meant}'\?"):
        parse_scheme(typo)


@each_id
def test_the_docstring_is_a_manual_that_names_every_option(scheme_id):
    scheme = scheme_class(scheme_id)
    manual = getdoc(scheme)
    assert scheme.__doc__, "the manual is written, not inherited"
    about = getdoc(import_module(scheme.__module__)) or ""
    assert scheme.raw or re.search(r"^Sources?:", about, re.MULTILINE), "the module names where the scheme comes from"
    with pytest.raises(BadOption) as refused:
        parse_scheme(f"{scheme_id}-zzz")
    _, _, known = str(refused.value).partition("it has ")
    for option in re.findall(r"-([a-z]+)(?=N?\b)", known):
        assert re.search(rf"`[^`]*-{option}(\d+|N)?`", manual), f"-{option} is not in the manual"


@each_id
def test_a_scheme_is_a_frozen_dataclass_with_the_id_of_its_line_in_the_table(scheme_id):
    scheme = scheme_class(scheme_id)
    assert scheme.id == scheme_id
    assert is_dataclass(scheme)
    assert NAME.fullmatch(scheme.example)["id"] == scheme_id
    found = parse_scheme(scheme.example)
    for field in fields(found):
        with pytest.raises(FrozenInstanceError):
            setattr(found, field.name, None)


def test_folder_and_table_hold_the_same_schemes():
    defined = set()
    for module in pkgutil.iter_modules(schemes.__path__, "modelzip_cli.schemes."):
        for found in vars(import_module(module.name)).values():
            if isinstance(found, type) and issubclass(found, Scheme) and found.__module__ == module.name:
                private = found is Scheme or found.__name__.startswith("_") or isabstract(found)
                defined |= set() if private else {found}
    assert defined == {scheme_class(scheme_id) for scheme_id in SCHEMES}
