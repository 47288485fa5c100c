"""The lossless coder: every bit comes back, little is stored, and no stream does harm."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelzip_cli.coders.lossless import flat_width, matrix_width, pack, unpack
from modelzip_cli.coders.tables import Damaged
from modelzip_cli.tensors import BF16, DTYPES, F16, F32, F64, DType, TensorSpec

pytestmark = pytest.mark.usefixtures("compiled")  # what numpy gives is the same: tests/kernels/test_planes.py
RNG = np.random.default_rng(5)
HEAD = 16  # bytes that a slab may grow by


def bits_of(values: np.ndarray, dtype: DType) -> np.ndarray:
    """The raw units of values in a dtype that numpy has, or in bf16."""
    if dtype == BF16:
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).reshape(-1)
    kind = {"f16": np.float16, "f32": np.float32, "f64": np.float64}[dtype.id]
    return values.astype(kind).view(dtype.unit).reshape(-1)


def returns(bits: np.ndarray, dtype: DType, columns: int) -> int:
    """Pack, unpack, compare; the packed size."""
    before = bits.copy()
    packed = pack(bits, dtype, columns)
    assert packed.dtype == np.uint8
    assert np.array_equal(bits, before)
    restored = unpack(packed.tobytes(), dtype, len(bits), columns)
    assert restored.dtype == np.dtype(dtype.unit)
    assert np.array_equal(restored, bits)
    assert len(packed) <= bits.nbytes + HEAD
    return len(packed)


def bits_a_weight(weights: np.ndarray, dtype: DType) -> float:
    """Packed bits a weight of a matrix, slab by slab as the engine cuts it."""
    spec, bits = TensorSpec("w", dtype, weights.shape), bits_of(weights, dtype)
    return sum(returns(bits[first:last], dtype, weights.shape[1]) for first, last in spec.unit_slabs()) * 8 / len(bits)


@st.composite
def slabs(draw: st.DrawFn) -> tuple[np.ndarray, DType, int]:
    """Any units of any dtype: all different, or drawn from few, with zeros and runs among them."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    columns, rows = draw(st.integers(1, 300)), draw(st.integers(0, 40))
    top = 2 ** (8 * dtype.unit_bytes) - 1
    element = st.integers(0, top)
    few = draw(st.lists(element, min_size=1, max_size=4))
    pool = st.sampled_from([0, *few]) if draw(st.booleans()) else element
    return draw(hnp.arrays(dtype.unit, rows * columns, elements=pool, fill=pool)), dtype, columns


@given(slabs())
def test_any_units_of_any_dtype_come_back(slab):
    returns(*slab)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.02, 0.9, 1.0])
def test_large_slabs_of_every_dtype_come_back(dtype, zeros):
    bits = np.frombuffer(RNG.bytes(20_000 * dtype.unit_bytes), dtype.unit).copy()
    bits >>= np.array(RNG.integers(0, bits.itemsize * 8, 100)[np.arange(20_000) // 200], bits.dtype)
    bits[RNG.random(20_000) < zeros] = 0
    for columns in (200, 7, 20_000, 1):
        returns(bits, dtype, columns)


PATTERNS = {
    "empty": np.empty(0, np.uint64),
    "one element": np.array([0x3FF0_0000_0000_0000], np.uint64),
    "one zero": np.zeros(1, np.uint64),
    "zeros": np.zeros(9000, np.uint64),
    "all ones": np.full(9000, 2**64 - 1, np.uint64),
    "ones, one zero": np.where(np.arange(9000) == 4321, 0, 2**64 - 1).astype(np.uint64),
    "zeros, one one": (np.arange(9000) == 4321).astype(np.uint64),
    "counting": np.arange(70_000, dtype=np.uint64) * 0x0001_0001_0001_0001,
    "negative zeros": np.where(np.arange(9000) % 3, 1 << 63 | 1 << 31 | 1 << 15 | 1 << 7, 0).astype(np.uint64),
    "every exponent, and zeros": np.repeat(np.arange(256, dtype=np.uint64), 64) * 0x0080_0080_0080_0080
    & np.uint64(0x7FFF_7FFF_7FFF_7FFF),
}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_adversarial_patterns_come_back(pattern, dtype):
    returns(pattern.view(dtype.unit)[: len(pattern)].copy(), dtype, 100)
    returns(pattern.astype(dtype.unit), dtype, max(1, len(pattern)))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_every_bit_pattern_of_a_half_comes_back(dtype):  # all NaN payloads, both infinities, denormals, -0
    every = np.arange(1 << 16, dtype=np.uint16)
    returns(every, dtype, 256)
    returns(RNG.permutation(every), dtype, 1 << 16)
    returns(np.concatenate([every, np.zeros(1 << 16, np.uint16)]), dtype, 128)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_nans_denormals_and_infinities_among_weights_come_back(dtype):
    bits = bits_of(RNG.normal(0, 0.02, (64, 200)), dtype)
    exponent = (0xFF << 23) if dtype == F32 else (0x7FF << 52)
    strange = RNG.integers(1, 1 << 22, 300).astype(bits.dtype)
    places = RNG.permutation(len(bits))[:900]
    bits[places[:300]] = strange | bits.dtype.type(exponent)
    bits[places[300:600]] = strange
    bits[places[600:]] = bits.dtype.type(exponent)
    returns(bits, dtype, 200)


@pytest.mark.parametrize("zeros, bits", [(0.5, 5.66), (0.7, 3.59), (0.9, 1.28)])
def test_pruned_bf16_weights_take_no_bits_for_the_mantissas_of_their_zeros(zeros, bits):
    weights = RNG.normal(0, 0.02, (512, 1024))
    weights[np.abs(weights) < np.quantile(np.abs(weights), zeros)] = 0
    assert bits_a_weight(weights, BF16) <= bits + 0.02


def test_pruned_f32_weights_take_bits_for_the_others_only():
    weights = RNG.normal(0, 0.02, (512, 1024))
    weights[np.abs(weights) < np.quantile(np.abs(weights), 0.9)] = 0
    assert bits_a_weight(weights, F32) <= 1.28 + 0.1 * 16 + 0.02


def test_rows_and_columns_that_differ_in_scale_have_tables_of_their_own():
    weights = RNG.normal(0, 0.02, (256, 512))
    plain = bits_a_weight(weights, BF16)
    rows, columns = np.exp(RNG.normal(0, 0.5, (256, 1))), np.exp(RNG.normal(0, 0.5, (1, 512)))
    assert plain <= 10.57
    assert bits_a_weight(weights * rows, BF16) <= plain + 0.06
    assert bits_a_weight(weights * columns, BF16) <= plain + 0.06
    assert bits_a_weight(weights * rows * columns, BF16) <= plain + 0.1


def test_f32_that_came_from_f16_or_bf16_takes_what_these_take():
    weights = RNG.normal(0, 1, (256, 512)).astype(np.float16)
    assert bits_a_weight(weights.astype(np.float32), F32) <= 13.6
    narrow = (weights.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert bits_a_weight(narrow, F32) <= bits_a_weight(narrow, BF16) + 0.01


def test_rows_with_dead_bits_are_told_from_the_others():
    weights = RNG.normal(0, 1, (256, 512)).astype(np.float32)
    weights[::3] = weights[::3].astype(np.float16)
    assert bits_a_weight(weights, F32) <= 26.6 * 2 / 3 + 13.6 / 3 + 0.1


def test_small_integers_take_few_bits_with_either_sign():
    values = RNG.integers(-8, 8, 20_000)
    for name in ("i16", "i32", "i64"):
        dtype = DTYPES[name]
        assert returns(values.astype(f"<i{dtype.unit_bytes}").view(dtype.unit), dtype, 100) <= 10_000 + 600


def test_a_bias_of_two_thousand_weights_gets_smaller():
    assert returns(bits_of(RNG.normal(0, 0.02, 2000), BF16), BF16, 2000) <= 4000 * 0.69


def test_a_constant_tensor_takes_a_few_bytes():
    assert returns(bits_of(np.ones(2048), BF16), BF16, 2048) <= 8
    assert returns(bits_of(np.ones(2048), F64), F64, 2048) <= 24


def test_a_piece_of_a_row_that_is_longer_than_a_slab_comes_back():
    bits = bits_of(RNG.normal(0, 1, 100_000), BF16)
    assert returns(bits, BF16, 700_001) <= bits.nbytes * 0.68


@given(st.integers(1, 1 << 20), st.integers(0, 5000))
def test_rows_hold_what_they_are_given_with_little_to_fill_up(size, columns):
    width = flat_width(size)
    assert -size % width <= max(1, size // 100)
    assert matrix_width(size, columns) in (columns, width)


# Streams that no encoder wrote


def small_streams() -> dict[str, tuple[np.ndarray, DType, int, int]]:
    """A stream of each kind of plane: data, dtype, units, columns."""
    scaled = RNG.normal(0, 1, (70, 64)) * np.exp(RNG.normal(0, 1.5, (70, 1))) * np.exp(RNG.normal(0, 1.5, (1, 64)))
    pruned = np.where(RNG.random(600) < 0.8, 0, RNG.normal(0, 1, 600))
    made = {
        "classes": (bits_of(scaled, BF16), BF16, 64),
        "one table": (bits_of(RNG.normal(0, 1, 300), BF16), BF16, 300),
        "zeros": (bits_of(pruned, BF16), BF16, 20),
        "f32 that was f16": (bits_of(RNG.normal(0, 1, 300).astype(np.float16), F32), F32, 30),
        "bytes": (np.minimum(RNG.geometric(0.4, 200), 255).astype(np.uint8), DTYPES["u8"], 50),
        "as it is": (np.arange(40, dtype=np.uint16) * 1609, F16, 40),
    }
    return {
        name: (pack(bits, dtype, columns), dtype, len(bits), columns) for name, (bits, dtype, columns) in made.items()
    }


STREAMS = small_streams()


def is_harmless(data: np.ndarray, dtype: DType, n: int, columns: int) -> None:
    """Whatever it is: it is refused, or gives as many units as were asked for."""
    try:
        found = unpack(data.tobytes(), dtype, n, columns)
    except Damaged:
        return
    assert (found.dtype, found.shape) == (np.dtype(dtype.unit), (n,))


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_cut_anywhere_is_refused(stream):
    data, dtype, n, columns = stream
    for length in {*range(0, len(data), 1 + len(data) // 60), *range(min(60, len(data))), len(data) - 1}:
        with pytest.raises(Damaged):
            unpack(data[:length].tobytes(), dtype, n, columns)


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_that_goes_on_is_refused(stream):
    data, dtype, n, columns = stream
    for more in (b"\0", b"\1\2", bytes(16)):
        with pytest.raises(Damaged):
            unpack(data.tobytes() + more, dtype, n, columns)


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_flipped_bits_do_no_harm(stream):
    data, dtype, n, columns = stream
    for place in {*range(min(50, len(data))), *range(0, len(data), 1 + len(data) // 25)}:
        for bit in range(8) if place < 16 else (place % 8, 7):
            flipped = data.copy()
            flipped[place] ^= 1 << bit
            is_harmless(flipped, dtype, n, columns)


@given(st.binary(max_size=80), slabs())
def test_bytes_that_are_no_stream_do_no_harm(junk, slab):
    bits, dtype, columns = slab
    for mode in (b"", b"\0", b"\1", b"\1\0\2", b"\1\0\3", b"\1\7\1\0"):
        is_harmless(np.frombuffer(mode + junk, np.uint8), dtype, len(bits), columns)


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_for_another_count_is_refused(stream):
    data, dtype, n, columns = stream
    for other in (n - 5, n + 5, 2 * n, 0):
        with pytest.raises(Damaged):
            unpack(data.tobytes(), dtype, other, columns)


TABLE = bytes([5, 1, 0x80, 8, 0x80, 8])  # symbols 5 and 6, 2^10 each
START = bytes([0, 0, 1, 0])  # of a state
FORGED = {
    "unknown mode": bytes([2, 0]),
    "unknown kind of plane": bytes([1, 0, 4, 0]),
    "frequencies that add up to too much": bytes([1, 0, 2, 5, 1, 0x80, 8, 0x81, 8, 0]),
    "a symbol with all frequencies": bytes([1, 0, 2, 5, 0, 0x80, 16, 0]),
    "a frequency out of range": bytes([1, 0, 2, 5, 0, 0xFF, 0xFF, 0x7F, 0]),
    "a number longer than it needs to be": bytes([1, 0, 2, 0x85, 0, 1, 0x80, 8, 0x80, 8, 0]),
    "a symbol above 255": bytes([1, 0, 2, 0xFF, 1, 1, 0x80, 8, 0x80, 8, 0]),
    "more words than there are bytes": bytes([1, 0, 2]) + TABLE + bytes([0xFF, 0xFF, 0xFF, 0xFF, 0x7F]) + START * 2,
    "a count without an end": bytes([1, 0, 2]) + TABLE + bytes([0xFF] * 5) + START * 2,
    "a state below its range": bytes([1, 0, 2]) + TABLE + bytes([0]) + bytes(8),
    "no tables": bytes([1, 0, 3, 0, 0, 0, 1, 0, 1, 0, 0]) + START * 2,
    "too many tables": bytes([1, 0, 3, 255, 0, 0, 1, 0, 1, 0]) + TABLE * 255,
    "a shift out of range": bytes([1, 0, 3, 1, 0, 200, 1, 0, 1, 0]) + TABLE + bytes([0]) + START * 2,
    "classes that have classes": bytes([1, 0, 3, 1, 0, 0, 3, 1, 0, 0, 1, 0, 1, 0]) + TABLE,
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED)
def test_forged_streams_are_refused(data):
    with pytest.raises(Damaged):
        unpack(data, DTYPES["u8"], 100, 10)
    with pytest.raises(Damaged):
        unpack(data, BF16, 100, 10)


def test_classes_may_be_any_bytes():
    data = bytes([1, 0, 3, 2, 255, 7, 1, 255, 1, 255]) + TABLE * 2 + bytes([0]) + START * 2
    is_harmless(np.frombuffer(data, np.uint8), DTYPES["u8"], 100, 10)


def test_a_thread_that_unpacks_first_what_needs_no_memory_gives_the_same():
    """Scratch memory belongs to a thread: the first request of a new one may be for nothing."""
    bits = np.full(24, 30479, np.uint32)
    bits[9] = 31308
    packed = pack(bits, F32, 3).tobytes()
    with ThreadPoolExecutor(1) as fresh:
        assert np.array_equal(fresh.submit(unpack, packed, F32, 24, 3).result(), bits)
