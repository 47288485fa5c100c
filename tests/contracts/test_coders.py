"""What every coder of the table must keep."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelzip_cli import coders
from modelzip_cli.coders import CODERS, coder
from modelzip_cli.coders.base import Coder
from tests.strategies import shapes

each_coder = pytest.mark.parametrize("coder_id", CODERS)


@st.composite
def codes_of_a_width(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Codes [rows, columns] below 2^bits, as schemes give them, and the bits: 1 to 16."""
    bits = draw(st.integers(1, 16))
    dtype = np.uint8 if bits <= 8 else np.uint16
    return draw(hnp.arrays(dtype, draw(shapes()), elements=st.integers(0, 2**bits - 1))), bits


@each_coder
@given(coded=codes_of_a_width())
@example(coded=(np.empty((0, 5), np.uint8), 3))
@example(coded=(np.empty((5, 0), np.uint8), 3))
@example(coded=(np.full((3, 7), 2**11 - 1, np.uint16), 11))
def test_unpacking_gives_the_codes_that_were_packed(coder_id, coded):
    codes, bits = coded
    packed = coder(coder_id).pack(codes, bits)
    assert packed.dtype == np.uint8
    unpacked = coder(coder_id).unpack(packed.reshape(-1), bits, *codes.shape)
    assert (unpacked.shape, unpacked.dtype) == (codes.shape, codes.dtype)
    assert (unpacked == codes).all()


@each_coder
@pytest.mark.parametrize("bits", range(1, 17))
def test_rows_need_not_lie_beside_each_other_in_memory(coder_id, bits):
    wide = np.random.default_rng(bits).integers(0, 2**bits, (6, 50)).astype(np.uint8 if bits <= 8 else np.uint16)
    codes = wide[::2, 3:40]
    packed = coder(coder_id).pack(codes, bits)
    assert packed.tobytes() == coder(coder_id).pack(np.ascontiguousarray(codes), bits).tobytes()


def test_folder_and_table_hold_the_same_coders():
    defined = set()
    for module in pkgutil.iter_modules(coders.__path__, "modelzip_cli.coders."):
        for found in vars(import_module(module.name)).values():
            if (
                isinstance(found, type)
                and issubclass(found, Coder)
                and found.__module__ == module.name != Coder.__module__
            ):
                defined.add(found)
    assert defined == {type(coder(coder_id)) for coder_id in CODERS}
    assert all(found.id == coder_id and found.__doc__ for coder_id, found in ((i, coder(i)) for i in CODERS))
