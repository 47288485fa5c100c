"""bf16 and f16 bits against numpy's and torch's conversions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modelzip_cli.kernels.widen import narrow, narrow_bf16, narrow_f16, widen, widen_bf16, widen_f16
from modelzip_cli.tensors import BF16, DTYPES, F16, F32, F64

ALL16 = np.arange(2**16, dtype=np.uint16).reshape(256, 256)


def edges() -> np.ndarray:
    """Float32 values around every value that f16 or bf16 can hold: it, its neighbours, and the ties between two."""
    halves = torch.from_numpy(ALL16.view(np.int16)).view(torch.float16).float().numpy()
    brains = torch.from_numpy(ALL16.view(np.int16)).view(torch.bfloat16).float().numpy()
    bits = np.concatenate([halves.view(np.uint32), brains.view(np.uint32)]).reshape(-1)
    bits = bits[(bits & 0x7FFFFFFF) <= 0x7F800000]
    shifted = [bits, bits + 1, bits - 1, bits + 0x1000, bits + 0xFFF, bits + 0x1001, bits + 0x8000, bits + 0x8001]
    found = np.concatenate(shifted).astype(np.uint32)
    return found[(found & 0x7FFFFFFF) <= 0x7F800000][None, :]


@pytest.mark.parametrize("body", ["compiled", "twin"])
def test_all_65536_halves_widen_as_in_numpy(body):
    expected = ALL16.view(np.float16).astype(np.float32)
    found = getattr(widen_f16, body)(ALL16).view(np.float32)
    numbers = ~np.isnan(expected)
    assert (np.isnan(found) == ~numbers).all()
    assert found[numbers].tobytes() == expected[numbers].tobytes()


@pytest.mark.parametrize("body", ["compiled", "twin"])
def test_all_65536_bfloats_widen_as_in_torch(body):
    expected = torch.from_numpy(ALL16.view(np.int16)).view(torch.bfloat16).float().numpy()
    found = getattr(widen_bf16, body)(ALL16).view(np.float32)
    numbers = ~np.isnan(expected)
    assert (np.isnan(found) == ~numbers).all()
    assert found[numbers].tobytes() == expected[numbers].tobytes()


@pytest.mark.parametrize("body", ["compiled", "twin"])
def test_narrowing_to_half_rounds_as_torch_does_around_every_half(body):
    bits = edges()
    expected = torch.from_numpy(bits.view(np.float32)).half().view(torch.int16).numpy().view(np.uint16)
    assert getattr(narrow_f16, body)(bits).tobytes() == expected.tobytes()


@pytest.mark.parametrize("body", ["compiled", "twin"])
def test_narrowing_to_bfloat_rounds_as_torch_does_around_every_bfloat(body):
    bits = edges()
    expected = torch.from_numpy(bits.view(np.float32)).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert getattr(narrow_bf16, body)(bits).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [F64, F32, F16, BF16], ids=str)
def test_widening_undoes_narrowing_of_values_that_the_dtype_holds(dtype):
    values = np.array([[0.0, -0.0, 1.0, -1.5, 2.0**-14, 2.0**-20, 96.0, np.inf, -np.inf]], np.float32)
    assert widen(narrow(values, dtype), dtype).tobytes() == values.tobytes()


def test_a_float64_is_rounded_once_to_the_nearest_float32():
    values = np.array([[1 + 2.0**-24, 1 + 3 * 2.0**-24, 1e300, -1e300, 1e-46, 0.1]])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float32)
    assert widen(values.view(np.uint64), F64).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d.kind != "float"], ids=str)
def test_only_floats_of_16_bits_and_more_hold_weights(dtype):
    for convert in (widen, narrow):
        with pytest.raises(ValueError, match="holds no weights"):
            convert(np.zeros((1, 8), np.float32), dtype)
