from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelzip_cli.errors import BadData, ModelzipError, UnsafeInput
from modelzip_cli.running.npy import read_arrays, read_npy

X = np.arange(6, dtype=np.float32).reshape(2, 3)
any_dtype = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes()
    | hnp.unsigned_integer_dtypes()
    | hnp.floating_dtypes(sizes=(16, 32, 64))
)


def npy(array, **options) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), **options)
    return stream.getvalue()


def npz(compressed: bool = False, **arrays) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def with_header(header: str, values: bytes = bytes(24)) -> bytes:
    """A file of version 1.0 with this header."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values


@given(hnp.arrays(any_dtype, hnp.array_shapes()), st.booleans(), st.sampled_from([None, (1, 0), (2, 0)]))
def test_an_array_comes_back_in_its_dtype_and_the_byte_order_of_this_machine(array, by_columns, version):
    stored = np.asfortranarray(array) if by_columns else array
    found = read_npy(npy(stored, version=version), "a.npy")
    assert (found.dtype, found.shape) == (array.dtype.newbyteorder("="), array.shape)
    assert found.flags.c_contiguous
    assert np.array_equal(found, array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize("compressed", [False, True])
def test_other_arrays_are_not_even_read(compressed):
    content = npz(compressed, x=X, y=[0, 1], names=np.array(["a", None], object))
    found = read_arrays(content, "d.npz")
    assert list(found) == ["x", "y"]
    assert np.array_equal(found["x"], X)


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    for content in (npy(np.array([Trap()])), npz(x=np.array([Trap()]))):
        with pytest.raises(UnsafeInput, match="holds pickled objects, which could run code; nothing was run"):
            read_arrays(content, "d.npz")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "d.npz: no NumPy file; np.savez(FILE, x=..., y=...) writes one"),
        (npz(images=X, labels=X), "d.npz: no array is called x; it has images, labels; np.savez(FILE, x=..., y=...)"),
        (npy(X)[:-1], "d.npz: float32 [2, 3] takes 24 bytes, but the file has 23; download or save it again"),
        (npy(X) + b"\0", "d.npz: float32 [2, 3] takes 24 bytes, but the file has 25; download or save it again"),
        (npy(np.array(["a"])), "d.npz: holds <U1, no numbers of 8 to 64 bits"),
        (npy(X.astype(complex)), "d.npz: holds complex128, no numbers of 8 to 64 bits"),
        (npy(np.zeros(3, [("a", "f4")])), "d.npz: holds [('a', '<f4')], no numbers of 8 to 64 bits"),
        (npy(np.zeros((0, 3))), "d.npz: an array of shape (0, 3), which holds nothing"),
        (
            with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**15}, 3)}}"),
            f"d.npz: float32 [{10**15}, 3] takes {12 * 10**15:,} bytes, but the file has 24; download or save it again",
        ),
        (
            with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}"),
            "d.npz: an array of shape (-2, -3), which holds nothing",
        ),
        (
            with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1, ' * 100}6)}}"),
            f"d.npz: an array of shape ({'1, ' * 19}1…, which holds nothing",
        ),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(content, message):
    with pytest.raises(BadData) as caught:
        read_arrays(content, "d.npz")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'more': 1}",
        "{'descr': '<f4', 'fortran_order': 3, 'shape': (2, 3)}",
        "{'descr': '<q9', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2.0, 3)}",
        "__import__('os').system('false')",
        "(" * 9000,
        "[" * 50 + "'",
        "{'descr': '<f4', 'shape': (2, 3)" + " " * 20_000 + "}",
        "",
    ],
)
def test_a_header_that_is_none_is_refused(header):
    with pytest.raises(BadData, match="its header is damaged"):
        read_npy(with_header(header), "a.npy")


def test_a_compressed_array_that_claims_more_than_memory_is_refused_before_it_is_read():
    content = bytearray(npz(True, x=X))
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = b"\xff" * 4
    content[directory + 30 : directory + 32] = struct.pack("<H", 12)  # the size in 64 bits, in an extra field
    name = directory + 46 + len("x.npy")
    content[name:name] = struct.pack("<HHQ", 1, 8, 1 << 60)
    end = content.rindex(b"PK\x05\x06")
    content[end + 12 : end + 16] = struct.pack("<I", end - directory)
    with pytest.raises(BadData, match=r"x\.npy says it has 1,152,921,504,606,846,976 bytes; this machine has"):
        read_arrays(bytes(content), "d.npz")


@given(st.data())
def test_a_damaged_archive_is_refused_or_gives_an_array(data):
    content = bytearray(npz(data.draw(st.booleans()), x=X, y=np.arange(2)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    try:
        assert read_arrays(bytes(content), "d.npz")["x"].dtype.kind in "biuf"
    except ModelzipError as error:
        assert str(error).startswith("d.npz: ")
        assert "\n" not in str(error)
