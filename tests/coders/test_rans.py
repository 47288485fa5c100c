"""The entropy coder against plain Python integers: streams of closed and open ranges, escapes, damage."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip_cli.coders.rans import Rans, coded_bytes, count_points, pack_vector, unpack_vector
from modelzip_cli.coders.tables import BITS, TOTAL, Damaged, Tables, from_counts
from modelzip_cli.kernels.rans import LANES, LOWEST, decode_symbols, encode
from modelzip_cli.schemes.base import Contexts
from modelzip_cli.schemes.ecq import Ecq
from tests.entropy import first_tables
from tests.strategies import fit

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((300, 20)).astype(np.float32)
TALL, WIDE = (300, 20), (20, 300)


def some_index(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, Tables]:
    """Symbols of two tables, which take turns, and the tables."""
    random = np.random.default_rng(seed)
    which = (np.arange(rows)[:, None] + np.arange(columns)) % 2
    symbols = np.clip(np.rint(random.normal(127, np.where(which, 1, 9), which.shape)), 0, 255).astype(int)
    counts = [np.bincount(symbols[which == table], minlength=256) for table in (0, 1)]
    return (which * 256 + symbols).astype(np.uint16), Tables(np.array([from_counts(each) for each in counts]))


def decode_in_python(words: list[int], states: list[int], index: np.ndarray, tables: Tables) -> np.ndarray:
    """The definition, weight by weight; of `index` only the tables are looked at."""
    intervals = [[int(n) for n in row] for row in tables.frequencies]
    symbols, words = np.empty(index.shape, int), words[::-1]
    for (i, j), coded in np.ndenumerate(index):
        lane, table = j % len(states), intervals[int(coded) >> 8]
        slot, start, symbol = states[lane] % TOTAL, 0, 0
        while start + table[symbol] <= slot:
            start += table[symbol]
            symbol += 1
        state = table[symbol] * (states[lane] // TOTAL) + slot - start
        states[lane] = state * 65536 + words.pop() if state < 65536 else state
        symbols[i, j] = symbol
    assert not words
    assert states == [LOWEST] * len(states)
    return symbols


@pytest.mark.parametrize("shape", [(1, 1), (40, 1), (3, 100), (60, 32), (25, 33)], ids=str)
def test_plain_integers_decode_what_was_encoded(shape):
    index, tables = some_index(*shape)
    states, words = encode(index, tables.intervals, BITS)
    assert len(states) == min(LANES, shape[1])
    assert np.array_equal(decode_in_python(words.tolist(), states.tolist(), index, tables), index & 255)


@pytest.mark.parametrize("shape", [(500, 1), (200, 40)], ids=str)
def test_words_take_no_more_bits_than_one_endless_integer_a_lane(shape):
    index, tables = some_index(*shape)
    states, words = encode(index, tables.intervals, BITS)
    endless = 0
    for lane in range(len(states)):
        x = LOWEST
        for row in index[::-1]:
            for coded in row[lane :: len(states)][::-1]:
                table, symbol = tables.frequencies[coded >> 8], coded & 255
                frequency, start = int(table[symbol]), int(table[:symbol].sum())
                x = (x // frequency << BITS) + x % frequency + start
        endless += x.bit_length()
    assert abs(16 * len(words) + 32 * len(states) - endless) <= 16 * len(states) + 0.002 * endless


def test_decoding_is_the_inverse_of_encoding_for_every_width():
    for columns in range(1, 70):
        index, tables = some_index(5, columns, seed=columns)
        states, words = encode(index, tables.intervals, BITS)
        symbols, taken = decode_symbols(words, states, tables.slots, (index >> 8).astype(np.int32) << BITS, BITS)
        assert np.array_equal(symbols, index & 255)
        assert taken == len(words)


def test_a_closed_range_takes_little_more_than_its_entropy():
    codes = np.clip(np.rint(RANDOM.normal(8, 1.2, (200, 100))), 0, 15).astype(np.uint8)
    share = np.bincount(codes.reshape(-1)) / codes.size
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum()
    size = len(Rans().pack(codes, 4))
    assert 8 * size / codes.size < entropy + 0.1
    assert abs(coded_bytes(codes, 4) + 4 * LANES - size) < 0.01 * size


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_bits_beyond_eight_are_stored_as_they_are(bits):
    codes = RANDOM.integers(0, 2**bits, (40, 50)).astype(np.uint16)
    size = len(Rans().pack(codes, bits))
    assert abs(coded_bytes(codes, bits) + 4 * LANES - size) < 0.02 * size
    assert size > codes.size * bits / 8
    same_top = (codes & (1 << bits - 8) - 1 | 7 << bits - 8).astype(np.uint16)
    assert abs(len(Rans().pack(same_top, bits)) - codes.size * (bits - 8) / 8) < 160


@pytest.mark.parametrize("bits", [1, 3, 4, 7])
def test_a_symbol_that_is_no_code_is_refused(bits):
    codes = np.full((4, 40), (1 << bits) - 1, np.uint8)
    codes[2, 3] = 1 << bits
    with pytest.raises(Damaged, match="range"):
        Rans().unpack(Rans().pack(codes, 8), bits, 4, 40)


@pytest.mark.parametrize("bits", [4, 10])
def test_a_stream_of_a_closed_range_is_whole_or_refused(bits):
    codes = RANDOM.integers(0, 2**bits, (6, 33)).astype(np.uint8 if bits <= 8 else np.uint16)
    stream = Rans().pack(codes, bits)
    for length in range(len(stream)):
        with pytest.raises(Damaged):
            Rans().unpack(stream[:length], bits, 6, 33)
    for more in ([0], [0, 0], [7, 7, 7]):
        with pytest.raises(Damaged):
            Rans().unpack(np.append(stream, more).astype(np.uint8), bits, 6, 33)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=400), st.binary(max_size=5))
def test_a_vector_comes_back_with_what_follows_it(values, rest):
    packed = np.concatenate([pack_vector(np.array(values, np.uint8)), np.frombuffer(rest, np.uint8)])
    found, left = unpack_vector(packed, len(values))
    assert found.tolist() == values
    assert left.tobytes() == rest


def test_a_constant_vector_takes_a_few_bytes():
    assert len(pack_vector(np.full(4096, 9, np.uint8))) < 20


class Slab:
    """Points of a scheme with all that codes them."""

    def __init__(self, scheme: Ecq, weight: np.ndarray, tables: Tables | None = None) -> None:
        self.params = fit(scheme, weight)
        self.tables = tables or first_tables(scheme)
        self.points = scheme.encode(weight, self.params, scheme.prices(self.tables.rates))
        self.contexts = scheme.contexts(self.params, *weight.shape)
        self.step = self.params["step"][0, 0]

    @property
    def unknown(self) -> Contexts:
        """What a reader knows before it reads the classes of the rows."""
        return replace(self.contexts, row_class=np.zeros_like(self.contexts.row_class))

    def stream(self) -> np.ndarray:
        return Rans().pack_points(self.points, self.contexts, self.tables)

    def unpacked(self, stream: np.ndarray) -> np.ndarray:
        return Rans().unpack_points(stream, self.unknown, self.tables, self.step)


def points_in_python(slab: Slab, stream: np.ndarray) -> np.ndarray:
    """The points of a stream without low bits and escapes, by the definitions alone."""
    row_class, rest = unpack_vector(stream, len(slab.contexts.row_class))
    assert rest[0] == 0, "no escapes"
    rows, columns = row_class.astype(int), slab.contexts.column_class
    if slab.contexts.along_rows:
        rows, columns = columns, rows
    lanes = min(LANES, len(columns))
    states = np.frombuffer(rest[1 : 1 + 4 * lanes].tobytes(), "<u4").tolist()
    words = np.frombuffer(rest[1 + 4 * lanes :].tobytes(), "<u2").tolist()[::-1]
    points = np.zeros((len(rows), len(columns)), int)
    following = ((0, 2), (5, 7), (1, 3), (4, 6), (2, 0), (7, 5), (3, 1), (6, 4))
    machine = [0] * len(columns)
    for i in range(len(rows)):
        for j in range(len(columns)):
            q = machine[j] & 1
            table = slab.tables.frequencies[
                (rows[i] + columns[j]) * 2 + q if slab.contexts.machine else rows[i] + columns[j]
            ]
            slot = states[j % lanes] % TOTAL
            symbol = int(np.searchsorted(np.cumsum(table), slot, side="right"))
            state = int(table[symbol]) * (states[j % lanes] // TOTAL) + slot - int(table[:symbol].sum())
            states[j % lanes] = state * 65536 + words.pop() if state < 65536 else state
            k = symbol - 127
            points[i, j] = 2 * k - q * np.sign(k) if slab.contexts.machine else k
            machine[j] = following[machine[j]][k & 1]
    return points.T if slab.contexts.along_rows else points


@pytest.mark.parametrize("shape", [(260, 5), (6, 40)], ids=["down the rows", "along the rows"])
@pytest.mark.parametrize("states", [1, 8])
def test_plain_integers_decode_points(states, shape):
    random = np.random.default_rng(2)
    weight = (random.standard_normal(shape) * 2.0 ** random.uniform(-2, 2, (shape[0], 1))).astype(np.float32)
    slab = Slab(Ecq(0.6, states), weight)
    slab.points = np.where(np.abs(slab.points) > 8, 0, slab.points) if states == 1 else slab.points
    assert np.array_equal(points_in_python(slab, slab.stream()), slab.points)


@pytest.mark.parametrize("shape", [TALL, WIDE], ids=["down the rows", "along the rows"])
@pytest.mark.parametrize("states", [1, 8])
def test_more_escapes_than_the_first_buffer_holds_come_back(states, shape):
    """Tables that know nothing but zero: every other point escapes."""
    scheme = Ecq(0.1, states)
    counts = np.zeros(256, np.int64)
    counts[127], counts[255] = 1, 9
    few = Tables(np.repeat(from_counts(counts, escape=255)[None], len(first_tables(scheme).frequencies), axis=0))
    slab = Slab(scheme, WEIGHT.reshape(shape), few)
    assert np.count_nonzero(slab.points) > WEIGHT.size // 256 + 64
    assert np.array_equal(slab.unpacked(slab.stream()), slab.points.astype(np.float32) * slab.step)


@pytest.mark.parametrize("outlier", [300, 3e4, 3e6])
@pytest.mark.parametrize("states", [1, 8])
def test_an_escape_takes_as_many_bytes_as_the_largest_needs(states, outlier):
    slab = Slab(Ecq(1, states), WEIGHT)
    plain, few = len(slab.stream()), slab.points.astype(np.int32)
    place = 299, int(np.flatnonzero(slab.points[299])[0])
    few[place] = int(outlier) * 2 + int(slab.points[place] & 1)  # of the parity that its state has points for
    slab.points = few
    assert len(slab.stream()) <= plain + 8
    assert np.array_equal(slab.unpacked(slab.stream()), few.astype(np.float32) * slab.step)


@pytest.mark.parametrize("shape", [TALL, WIDE], ids=["down the rows", "along the rows"])
@pytest.mark.parametrize("states", [1, 8])
def test_low_bits_of_fine_steps_come_back(states, shape):
    slab = Slab(Ecq(0.01, states), (WEIGHT * 2.0 ** np.linspace(0, 3, 20)).astype(np.float32).reshape(shape))
    classes = slab.contexts.row_class[:, None] + slab.contexts.column_class
    assert len({*slab.contexts.low_bits[classes].reshape(-1).tolist()}) > 1
    assert np.array_equal(slab.unpacked(slab.stream()), slab.points.astype(np.float32) * slab.step)


@pytest.mark.parametrize("states", [1, 8])
def test_counting_gives_what_packing_takes(states):
    slab = Slab(Ecq(0.3, states), WEIGHT)
    counts, beside = count_points(slab.points, slab.contexts, slab.tables)
    assert counts.sum() == WEIGHT.size
    bits = (counts * slab.tables.rates)[slab.tables.frequencies > 0].sum() / 256
    rows = len(pack_vector(slab.contexts.row_class.astype(np.uint8)))
    assert abs(rows + 1 + beside + 4 * 20 + bits / 8 - len(slab.stream())) < 0.01 * len(slab.stream()) + 40


@pytest.mark.parametrize("step", [0.5, 0.01])
@pytest.mark.parametrize("states", [1, 8])
def test_a_stream_of_points_is_whole_or_refused(states, step):
    slab = Slab(Ecq(step, states), WEIGHT[:12, :5])
    stream = slab.stream()
    for length in range(len(stream)):
        with pytest.raises(Damaged):
            slab.unpacked(stream[:length])
    for more in ([0], [0, 0], [9] * 4):
        with pytest.raises(Damaged):
            slab.unpacked(np.append(stream, more).astype(np.uint8))


@pytest.mark.parametrize("states", [1, 8])
def test_any_changed_byte_of_points_is_refused_or_decodes_to_finite_weights(states):
    """Checksums are looked at before; a forged file has the right ones."""
    slab = Slab(Ecq(0.02, states), WEIGHT[:20, :3])
    stream = slab.stream()
    for place in range(len(stream)):
        for change in (1, 0xFF):
            forged = stream.copy()
            forged[place] ^= change
            with contextlib.suppress(Damaged):
                assert np.isfinite(slab.unpacked(forged)).all()


@pytest.mark.parametrize("states", [1, 8])
def test_classes_without_a_table_are_refused(states):
    slab = Slab(Ecq(0.3, states), WEIGHT)
    width = 2 if states == 8 else 1
    classes = slab.contexts.row_class[:, None] + slab.contexts.column_class
    least, most = int(classes.min()), int(classes.max())
    stream = slab.stream()
    for first, last in ((least, most), (least + 1, most + 1)):
        tables = Tables(slab.tables.frequencies, (first * width, last * width))
        with pytest.raises(Damaged, match="no table"):
            Rans().unpack_points(stream, slab.unknown, tables, slab.step)
    whole = Tables(slab.tables.frequencies, (least * width, (most + 1) * width))
    assert np.array_equal(Rans().unpack_points(stream, slab.unknown, whole, slab.step), slab.unpacked(stream))
    other = first_tables(Ecq(1, 9 - states))
    with pytest.raises(Damaged, match="no table"):
        Rans().unpack_points(stream, slab.unknown, other, slab.step)
