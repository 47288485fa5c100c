"""Fixed point against exact arithmetic in Python integers and fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelzip_cli.errors import BadOption
from modelzip_cli.schemes import parse_scheme
from modelzip_cli.schemes.fixed import Fixed
from tests.strategies import WEIGHTS, any_weight, fit, restored, sqnr_db, squared_error


def exact(weight: float, n: int, top: int) -> Fraction:
    """`round(w * 2^n)`, ties to even, clipped to +-top, times 2^-n."""
    power = Fraction(2) ** n
    return Fraction(min(max(round(Fraction(weight) * power), -top), top)) / power


def check_exact(scheme: Fixed, weight: np.ndarray) -> None:
    params = fit(scheme, weight)
    n = np.broadcast_to(params["fraction_bits"], (len(weight), 1))[:, 0]
    found = scheme.decode(scheme.encode(weight, params), params)
    for row, exponent, restored_row in zip(weight.tolist(), n.tolist(), found.tolist(), strict=True):
        assert [Fraction(w) for w in restored_row] == [exact(w, exponent, 2 ** (scheme.bits - 1) - 1) for w in row]


@given(weight=any_weight(max_side=8), bits=st.integers(4, 16), channel=st.booleans())
@example(weight=np.array([[np.finfo(np.float32).min]]), bits=8, channel=False)
@example(weight=np.array([[0.5, 1.5, 2.5, -0.5]], np.float32), bits=4, channel=False)
def test_weights_are_rounded_to_the_nearest_multiple_of_the_step(weight, bits, channel):
    check_exact(Fixed(bits, channel), weight)


@given(weight=any_weight(max_side=8), bits=st.integers(4, 16), n=st.integers(-125, 126))
def test_a_given_n_is_used_as_it_is(weight, bits, n):
    assert fit(Fixed(bits, n=n), weight)["fraction_bits"].tolist() == [[n]]
    check_exact(Fixed(bits, n=n), weight)


@given(weight=any_weight(min_side=1, max_side=8), bits=st.integers(4, 16))
def test_n_is_the_largest_whose_range_reaches_the_largest_magnitude(weight, bits):
    (n,) = fit(Fixed(bits), weight)["fraction_bits"][0].tolist()
    largest = Fraction(float(np.abs(weight).max()))
    if not largest:
        assert n == 0
    else:
        assert largest < Fraction(2) ** (bits - 1 - n)
        assert n == 126 or largest >= Fraction(2) ** (bits - 2 - n)


@pytest.mark.parametrize("options", ["", "-channel"])
@pytest.mark.parametrize("bits", [4, 6, 8, 12, 16])
def test_the_search_for_n_never_makes_a_tensor_worse(bits, options):
    for name, weight in WEIGHTS.items():
        if weight.size:
            plain = squared_error(parse_scheme(f"fixed{bits}{options}"), weight)
            assert squared_error(parse_scheme(f"fixed{bits}{options}-mse"), weight) <= plain, name


@given(weight=any_weight(min_side=1), bits=st.integers(4, 16), channel=st.booleans())
def test_the_search_for_n_never_makes_any_tensor_worse(weight, bits, channel):
    assert squared_error(Fixed(bits, channel, mse=True), weight) <= squared_error(Fixed(bits, channel), weight)


def test_powers_of_two_and_their_sums_are_exact():
    weight = np.array([[0.5, -0.25, 0.75, 0.0078125, 0]], np.float32)
    assert (restored(parse_scheme("fixed8"), weight) == weight).all()


@pytest.mark.parametrize(
    "name", ["fixed8-n127", "fixed8-n-126", "fixed8-n7-mse", "fixed8-n7-channel", "fixed3", "fixed17"]
)
def test_options_out_of_range_or_against_each_other_are_refused(name):
    with pytest.raises(BadOption):
        parse_scheme(name)


def test_n_may_be_negative_in_a_name():
    assert parse_scheme("fixed8-n-3") == Fixed(8, n=-3)
    assert str(Fixed(8, n=-3)) == "fixed8-n-3"


@pytest.mark.parametrize("n", [-126, 127, 32767, -32768])
def test_params_of_a_file_are_refused_outside_the_range_of_n(n):
    assert Fixed(8).check({"fraction_bits": np.array([[n]], np.int16)})


def gaussian(sigma: float) -> np.ndarray:
    return np.random.default_rng(7).normal(0, sigma, (256, 1024)).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.02, 0.03, 1.0, 1.4])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_other_n_would_be_better_for_gaussian_weights(bits, sigma):
    weight = gaussian(sigma)[:64]
    (n,) = fit(Fixed(bits, mse=True), weight)["fraction_bits"][0].tolist()
    assert n == min(range(-8, 20), key=lambda other: squared_error(Fixed(bits, n=other), weight))


# A step is a power of two: what 4 bits keep depends on where sigma lies between two of them.
@pytest.mark.parametrize(
    ("name", "sigma", "least"),
    [("fixed8-mse", 0.02, 35), ("fixed8-mse", 1.0, 35), ("fixed4-mse", 0.02, 18), ("fixed4-mse", 1.0, 16.5)],
)
def test_gaussian_weights_keep_the_quality_on_record(name, sigma, least):
    assert sqnr_db(parse_scheme(name), gaussian(sigma)) >= least
