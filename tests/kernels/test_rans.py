"""Words that were written decode, damaged ones are refused, and all bodies agree on every byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from modelzip_cli.kernels import rans
from tests.kernels.codes import Codes, random_codes

SHAPES = [(1, 1), (1, 31), (7, 33), (64, 100), (3, 4096), (9, 32), (5, 72), (0, 40)]


@dataclass(frozen=True)
class Bodies:
    """One implementation of the two kernels."""

    encode: Any
    decode: Any


@pytest.fixture(params=["twin", "one lane", "eight lanes"])
def bodies(request) -> Bodies:
    """numpy; machine code; machine code that uses AVX2 where the CPU has it."""
    if request.param == "twin":
        return Bodies(rans._encode.twin, rans._decode_symbols.twin)
    if request.param == "one lane":
        return Bodies(rans._encode.compiled, rans._decode_symbols.compiled)
    from modelzip_cli.kernels import vector

    return Bodies(vector.encode.compiled, vector.decode_symbols.compiled)


def index_of(codes: Codes) -> NDArray[np.uint16]:
    """Any symbols that have frequencies, by the tables of their places."""
    random = np.random.default_rng(1)
    tables = codes.rows[:, None] + codes.columns
    index = np.empty(tables.shape, np.uint16)
    for table in np.unique(tables):
        chances = codes.frequencies[table] / codes.frequencies[table].sum()
        here = tables == table
        index[here] = table * 256 + random.choice(256, here.sum(), p=chances)
    return index


def placed(codes: Codes, index: NDArray[np.uint16]) -> tuple[Any, Any, Any]:
    """The bytes of an index, where the tables of rows begin, and which of these a row has."""
    lines, line_of = np.unique((index >> 8).astype(np.int32) << 8, axis=0, return_inverse=True)
    return (index & 255).astype(np.uint8), lines, line_of.reshape(-1)


def encode(bodies: Bodies, codes: Codes, index: NDArray[np.uint16]) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    states = np.full(min(rans.LANES, index.shape[1]), rans.LOWEST, np.uint32)
    room = np.empty(index.size * codes.bits // 16 + rans.LANES + 1, np.uint16)
    begin = bodies.encode(*placed(codes, index), codes.intervals, codes.bits, states, room)
    return states, room[begin:].copy()


def decode(bodies: Bodies, codes: Codes, index: NDArray[np.uint16], states: Any, words: Any) -> Any:
    """The symbols, the states at the end and how many words were taken."""
    symbols, states = np.zeros(index.shape, np.uint8), states.copy()
    taken = bodies.decode(words, states, codes.slots, codes.offsets(index), np.arange(len(index)), codes.bits, symbols)
    return symbols, states, taken


@pytest.mark.parametrize("bits", [11, 12])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_symbols_come_back_and_every_state_ends_where_it_began(bodies, shape, bits):
    codes = random_codes(0, *shape, machine=False, bits=bits)
    index = index_of(codes)
    states, words = encode(bodies, codes, index)
    line, none = np.zeros((1, index.shape[1]), np.int32), np.zeros(len(index), np.intp)
    states_of_index, room = states.copy(), np.empty(rans.room_for(index.size, bits), np.uint16)
    states_of_index[:] = rans.LOWEST
    begin = bodies.encode(index, line, none, codes.intervals, bits, states_of_index, room)
    assert np.array_equal(states_of_index, states)
    assert np.array_equal(room[begin:], words)
    symbols, ends, taken = decode(bodies, codes, index, states, words)
    assert np.array_equal(symbols, index & 255)
    assert (taken, set(ends.tolist())) == (len(words), {rans.LOWEST})


def test_a_matrix_without_columns_has_no_words():
    states, words = rans.encode(np.empty((2, 0), np.uint16), np.ones(256, np.uint32), 11)
    assert (states.size, words.size) == (0, 0)
    symbols, taken = rans.decode_symbols(words, states, np.ones(2048, np.uint32), np.empty((2, 0), np.int32), 11)
    assert (symbols.shape, taken) == ((2, 0), 0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_body_writes_the_words_of_the_twin(bodies, shape):
    twin = Bodies(rans._encode.twin, rans._decode_symbols.twin)
    for bits in (11, 12):
        codes = random_codes(2, *shape, machine=False, bits=bits)
        index = index_of(codes)
        ours, theirs = encode(bodies, codes, index), encode(twin, codes, index)
        assert [part.tobytes() for part in ours] == [part.tobytes() for part in theirs]


@pytest.mark.parametrize("bits", [11, 12])
@pytest.mark.parametrize("sole", [True, False], ids=["nearly certain", "as rare as can be"])
def test_the_ends_of_what_a_symbol_can_cost_come_back(bodies, bits, sole):
    """Quotients are largest for a frequency of 1; words are fewest for 2^bits - 1, of which none may take the room."""
    counts = np.zeros((1, 256), np.int64)
    counts[0, [0, 255]] = ((1 << bits) - 1, 1) if sole else (1, (1 << bits) - 1)
    index = np.zeros((50, 64), np.uint16)
    index[7, 9] = 255
    classes = np.zeros(50, np.int32), np.zeros(64, np.int32)
    codes = Codes(bits, False, *classes, counts, np.zeros(1, np.int32), np.empty((0, 0), np.int16))
    states, words = encode(bodies, codes, index)
    symbols, ends, taken = decode(bodies, codes, index, states, words)
    assert np.array_equal(symbols, index)
    assert taken == len(words)
    assert (ends == rans.LOWEST).all()


@pytest.mark.parametrize("shape", [(9, 31), (7, 33), (40, 64), (3, 256)], ids=str)
def test_a_stream_cut_short_is_damaged(bodies, shape):
    codes = random_codes(3, *shape, machine=False)
    index = index_of(codes)
    states, words = encode(bodies, codes, index)
    assert len(words)
    for kept in {*range(min(len(words), 40)), *range(max(len(words) - 40, 0), len(words))}:
        assert decode(bodies, codes, index, states, words[:kept].copy())[2] == -1


def test_a_stream_that_is_too_long_shows_by_the_words_taken(bodies):
    codes = random_codes(4, 7, 96, machine=False)
    index = index_of(codes)
    states, words = encode(bodies, codes, index)
    assert decode(bodies, codes, index, states, np.append(words, [7] * 50).astype(np.uint16))[2] == len(words)


@pytest.mark.parametrize("seed", range(6))
def test_all_bodies_make_the_same_of_any_words_and_states(bodies, seed):
    twin = Bodies(rans._encode.twin, rans._decode_symbols.twin)
    random = np.random.default_rng(seed)
    codes = random_codes(seed, 6, 77, machine=False, bits=11 + seed % 2)
    index = index_of(codes)
    words = random.integers(0, 2**16, random.integers(0, 700)).astype(np.uint16)
    states = random.integers(0, 2 ** random.choice([8, 16, 32]), 32).astype(np.uint32)
    symbols, ends, taken = decode(bodies, codes, index, states, words)
    expected, their_ends, their_taken = decode(twin, codes, index, states, words)
    assert taken == their_taken
    if taken >= 0:
        assert np.array_equal(symbols, expected)
        assert np.array_equal(ends, their_ends)


def test_nothing_is_written_below_the_room_for_words(bodies):
    codes = random_codes(5, 30, 64, machine=False)
    index = index_of(codes)
    states, words = encode(bodies, codes, index)
    guard = np.full(100 + index.size * codes.bits // 16 + rans.LANES + 1, 0xABCD, np.uint16)
    fresh = np.full(32, rans.LOWEST, np.uint32)
    begin = bodies.encode(*placed(codes, index), codes.intervals, codes.bits, fresh, guard[100:])
    assert (guard[:100] == 0xABCD).all()
    assert np.array_equal(guard[100 + begin :], words)
    assert np.array_equal(fresh, states)


def test_eight_lanes_are_used_where_the_cpu_has_them(monkeypatch):
    monkeypatch.setattr(rans.choice, "runs_compiled", lambda: True)
    from modelzip_cli.kernels import vector

    assert rans.vectors(11) is (vector if vector.AVAILABLE else None)
    assert rans.vectors(10) is None
    monkeypatch.setattr(vector, "AVAILABLE", False)
    assert rans.vectors(11) is None


def test_numpy_runs_do_not_load_the_vector_kernels(monkeypatch):
    monkeypatch.setattr(rans.choice, "runs_compiled", lambda: False)
    assert rans.vectors(11) is None
