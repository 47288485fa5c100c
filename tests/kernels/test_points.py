"""Grid points through the coder and back, by every body, and what is damaged is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from modelzip_cli.kernels import points, rans
from tests.kernels.codes import Codes, random_codes

SHAPES = [(1, 1), (1, 31), (7, 33), (64, 100), (3, 4096), (40, 72), (0, 40)]
STEP = np.float32(0.1)


@pytest.fixture(params=["twin", "one lane", "eight lanes"])
def decoder(request) -> Any:
    """numpy; machine code; machine code that uses AVX2 where the CPU has it."""
    if request.param == "twin":
        return points._decode_points.twin
    if request.param == "one lane":
        return points._decode_points.compiled
    from modelzip_cli.kernels import vector

    return vector.decode_points.compiled


def encoded(codes: Codes) -> tuple[Any, ...]:
    """States, words, escapes and low bits, by the bodies that this run would take."""
    contexts = codes.rows, codes.columns, codes.machine, codes.low_bits
    index, escapes, low = points.index_of(codes.points, *contexts, codes.known)
    return *rans.encode(index, codes.intervals, codes.bits), escapes, low


def decoded(decoder: Any, codes: Codes, states: Any, words: Any, escapes: Any, low: Any) -> Any:
    """The weights, the states at the end and how many words were taken."""
    values, states = np.zeros(codes.points.shape, np.float32), states.copy()
    contexts = codes.rows, codes.columns, codes.bits, codes.machine, codes.low_bits
    taken = decoder(words, states, codes.slots, *contexts, escapes, low, STEP, values)
    return values, states, taken


@pytest.mark.parametrize("low", [False, True], ids=["", "low bits"])
@pytest.mark.parametrize("machine", [False, True], ids=["grid", "trellis"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_point_comes_back_times_the_step(decoder, shape, machine, low):
    codes = random_codes(1, *shape, machine=machine, low=low)
    states, words, escapes, raw = encoded(codes)
    values, ends, taken = decoded(decoder, codes, states, words, escapes, raw)
    assert values.tobytes() == (codes.points.astype(np.float32) * STEP).tobytes()
    assert taken == len(words)
    assert (ends == rans.LOWEST).all()


@pytest.mark.parametrize("body", ["twin", "compiled"])
@pytest.mark.parametrize("far", [2**20 + 1, -(2**20) - 1, 2**30 + 1, -(2**30) + 1, 16385, -16387])
@pytest.mark.parametrize("machine", [False, True], ids=["grid", "trellis"])
def test_a_far_point_escapes_and_comes_back(decoder, monkeypatch, body, far, machine):
    monkeypatch.setattr(points, "_index_of", getattr(points._index_of, body))
    codes = random_codes(2, 20, 50, machine=machine, low=True)
    wide = codes.points.astype(np.int32)
    wide[19] = np.where(wide[19] % 2, far, wide[19])  # the parity that its state has points for
    wide[19] = np.where(wide[19] == 0, far * (not machine), wide[19])
    far_codes = replace(codes, points=wide)
    states, words, escapes, raw = encoded(far_codes)
    assert len(escapes)
    values, _, taken = decoded(decoder, far_codes, states, words, escapes, raw)
    assert taken == len(words)
    assert values.tobytes() == (wide.astype(np.float32) * STEP).tobytes()


def test_a_point_of_a_symbol_without_frequency_escapes():
    codes = random_codes(3, 30, 64, machine=True)
    index, escapes, _ = points.index_of(codes.points, codes.rows, codes.columns, True, codes.low_bits, codes.known)
    assert codes.known.reshape(-1)[index].all()
    assert len(escapes) == np.count_nonzero((index & 255) == points.ESCAPE)


def test_as_many_escapes_as_there_are_points_come_back(decoder):
    codes = random_codes(4, 20, 70, machine=False)
    all_far = replace(codes, points=np.full((20, 70), 500, np.int16))
    states, words, escapes, raw = encoded(all_far)
    assert len(escapes) == 1400
    assert (decoded(decoder, all_far, states, words, escapes, raw)[0] == 500 * STEP).all()


@pytest.mark.parametrize("low", [False, True], ids=["", "low bits"])
def test_side_lists_that_are_too_short_or_too_long_are_damage(decoder, low):
    codes = random_codes(5, 40, 70, machine=True, low=low)
    states, words, escapes, raw = encoded(codes)
    assert len(escapes)
    assert decoded(decoder, codes, states, words, escapes, raw)[2] == len(words)
    for one in (escapes[:-1].copy(), escapes[:0].copy(), np.append(escapes, np.int32(9))):
        assert decoded(decoder, codes, states, words, one, raw)[2] == -1
    for one in (raw[:-1].copy(), raw[: len(raw) // 2].copy()) if low else ():
        assert decoded(decoder, codes, states, words, escapes, one)[2] == -1
    assert decoded(decoder, codes, states, words, escapes, np.append(raw, np.uint8(1)))[2] == -1


def test_a_stream_cut_short_is_damaged(decoder):
    codes = random_codes(6, 12, 100, machine=True)
    states, words, escapes, raw = encoded(codes)
    for kept in range(len(words)):
        assert decoded(decoder, codes, states, words[:kept].copy(), escapes, raw)[2] == -1


@pytest.mark.parametrize("seed", range(8))
def test_any_words_states_and_lists_give_what_the_twin_gives(decoder, seed):
    random = np.random.default_rng(seed)
    codes = random_codes(seed, 8, 90, machine=seed % 2 == 0, low=seed % 4 > 1)
    words = random.integers(0, 2**16, random.integers(0, 1500)).astype(np.uint16)
    states = random.integers(0, 2**32, 32).astype(np.uint32)
    escapes = random.integers(-(2**31), 2**31, random.integers(0, 500)).astype(np.int32)
    raw = random.integers(0, 256, random.integers(0, 1000) * (seed % 4 > 1)).astype(np.uint8)
    values, ends, taken = decoded(decoder, codes, states, words, escapes, raw)
    expected, their_ends, their_taken = decoded(points._decode_points.twin, codes, states, words, escapes, raw)
    assert taken == their_taken
    if taken >= 0:
        assert (values.tobytes(), ends.tobytes()) == (expected.tobytes(), their_ends.tobytes())


def test_words_may_be_bytes_that_cannot_be_written(decoder):
    codes = random_codes(7, 9, 70, machine=True)
    states, words, escapes, raw = encoded(codes)
    values, _, taken = decoded(decoder, codes, states, np.frombuffer(words.tobytes(), np.uint16), escapes, raw)
    assert taken == len(words)
    assert values.tobytes() == (codes.points.astype(np.float32) * STEP).tobytes()
