"""Shorter floats against torch's conversions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given

from modelzip_cli.errors import DoesNotFit
from modelzip_cli.schemes import parse_scheme
from tests.strategies import WEIGHTS, any_weight, fit

TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LARGEST = {"fp16": 65519.996, "bf16": 3.3961773e38}  # the last float32 that rounds to a finite number
TOO_LARGE = {"fp16": 65520.0, "bf16": 3.3961775e38}


def bits_by_torch(name: str, weight: np.ndarray) -> bytes:
    rounded = torch.from_numpy(weight).to(TORCH[name])
    return rounded.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", TORCH)
@given(weight=any_weight(min_side=1))
@example(weight=WEIGHTS["subnormal"])
@example(weight=WEIGHTS["ends of float16"])
def test_codes_are_the_bits_that_torch_rounds_to(name, weight):
    assert parse_scheme(name).encode(weight, {}).tobytes() == bits_by_torch(name, weight)


@pytest.mark.parametrize("name", TORCH)
@given(weight=any_weight(min_side=1).map(lambda w: w.clip(-60000, 60000)))
def test_decoding_gives_what_torch_widens_to(name, weight):
    scheme = parse_scheme(name)
    expected = torch.from_numpy(weight).to(TORCH[name]).float().numpy()
    assert scheme.decode(scheme.encode(weight, {}), {}).tobytes() == expected.tobytes()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", LARGEST)
def test_a_weight_is_refused_from_where_it_would_round_to_infinity(name, sign):
    scheme = parse_scheme(name)
    last = np.array([[0, sign * LARGEST[name]]], np.float32)
    first = np.array([[0, sign * TOO_LARGE[name]]], np.float32)
    assert np.nextafter(last, sign * np.float32(np.inf))[0, 1] == first[0, 1]
    assert fit(scheme, last) == {}
    assert np.isfinite(scheme.decode(scheme.encode(last, {}), {})).all()
    with pytest.raises(DoesNotFit, match=f"does not fit {name}"):
        fit(scheme, first)


def test_float32_holds_every_weight():
    assert fit(parse_scheme("fp32"), WEIGHTS["ends of float32"]) == {}
