"""Bit packing against its definition: least significant bit first, each row padded to a byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip_cli.coders.bitpack import BitPack
from tests.contracts.test_coders import codes_of_a_width


@given(coded=codes_of_a_width())
def test_packing_writes_the_bits_of_each_row_from_the_least_significant(coded):
    codes, bits = coded
    each_bit = codes[:, :, None].astype(np.uint32) >> np.arange(bits) & 1
    expected = np.packbits(each_bit.reshape(len(codes), codes.shape[1] * bits), axis=1, bitorder="little")
    assert BitPack().pack(codes, bits).tobytes() == expected.tobytes()


@given(coded=codes_of_a_width(), cut=st.integers(0, 40))
def test_rows_are_packed_independently_of_each_other(coded, cut):
    codes, bits = coded
    whole = BitPack().pack(codes, bits).tobytes()
    assert whole == b"".join(BitPack().pack(part, bits).tobytes() for part in (codes[:cut], codes[cut:]))


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [
        (1, [1, 0, 0, 0, 0, 0, 0, 0, 1], "0101"),
        (2, [1, 2, 3, 0, 1], "3901"),
        (3, [1, 2, 3, 4, 5, 6, 7, 0], "d1581f"),
        (4, [1, 2, 3], "2103"),
        (5, [1, 31], "e103"),
        (8, [1, 2, 255], "0102ff"),
        (12, [0xABC, 0x123], "bc3a12"),
        (16, [0x1234, 0xABCD], "3412cdab"),
    ],
)
def test_the_bytes_of_a_few_codes_worked_out_by_hand(bits, codes, packed):
    row = np.array([codes], np.uint8 if bits <= 8 else np.uint16)
    assert BitPack().pack(row, bits).tobytes().hex() == packed


@pytest.mark.parametrize("bits", range(1, 17))
def test_bits_beyond_the_last_code_are_zero_in_every_row(bits):
    codes = np.full((2, 3), 2**bits - 1, np.uint8 if bits <= 8 else np.uint16)
    packed = BitPack().pack(codes, bits)
    assert packed.shape == (2, -(-3 * bits // 8))
    for row in packed:
        assert int.from_bytes(row.tobytes(), "little") == 2 ** (3 * bits) - 1
