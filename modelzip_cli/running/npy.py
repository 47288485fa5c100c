"""NumPy files, read without running anything of them: `.npy` and `.npz`. Format: NEP 1, numpy.lib.format."""

from __future__ import annotations

import os
from io import BytesIO
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.errors import BadData, ModelzipError, UnsafeInput, inert

ZIP, NPY = b"PK\x03\x04", b"\x93NUMPY"
ARRAYS = ("x", "y", "attention_mask")
NUMBERS = frozenset(np.dtype(code) for code in "?bBhHiIlLqQefd")
MOST_RANK = 32
SAVE = "np.savez(FILE, x=..., y=...)"


def read_arrays(content: bytes, label: str) -> dict[str, NDArray[Any]]:
    """The arrays called x, y and attention_mask of an `.npz` file; the array of an `.npy` file is x.

    Raises BadData where x is missing, or the file damaged or too large for this machine; UnsafeInput for objects.
    """
    if content.startswith(NPY):
        return {"x": read_npy(content, label)}
    if not content.startswith(ZIP):
        raise BadData(f"{label}: no NumPy file; {SAVE} writes one")
    try:
        with np.load(BytesIO(content), allow_pickle=False) as archive:
            if "x" not in archive.files:
                found = ", ".join(inert(name, longest=40) for name in archive.files[:8]) or "none"
                raise BadData(f"{label}: no array is called x; it has {found}; {SAVE}")
            return {
                name: read_npy(_member(archive.zip, f"{name}.npy", label), f"{label}: {name}")
                for name in ARRAYS
                if name in archive.files
            }
    except ModelzipError:
        raise
    except Exception as error:  # a damaged archive raises a dozen kinds, of zipfile, zlib and numpy
        raise BadData(f"{label}: damaged: {inert(str(error), longest=200)}; download or save it again") from error


def read_npy(content: bytes, label: str) -> NDArray[Any]:
    """The array in `content`, without a copy where it is in this machine's byte order and by rows; else with one.

    Raises BadData unless the header tells numbers, and of exactly the bytes that follow; UnsafeInput for objects.
    """
    shape, by_columns, dtype, offset = _header(content, label)
    if dtype.hasobject:
        raise UnsafeInput(f"{label}: holds pickled objects, which could run code; nothing was run; save numbers")
    if dtype.newbyteorder("=") not in NUMBERS:
        raise BadData(f"{label}: holds {inert(str(dtype), longest=60)}, no numbers of 8 to 64 bits")
    if len(shape) > MOST_RANK or any(size < 1 for size in shape):
        raise BadData(f"{label}: an array of shape {inert(str(shape), longest=60)}, which holds nothing")
    size = prod(shape) * dtype.itemsize
    if size != len(content) - offset:
        found = f"{len(content) - offset:,}; download or save it again"
        raise BadData(f"{label}: {dtype} {list(shape)} takes {size:,} bytes, but the file has {found}")
    flat: NDArray[Any] = np.frombuffer(content, dtype, offset=offset)
    flat = flat.astype(dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(flat.reshape(shape[::-1]).T) if by_columns else flat.reshape(shape)


def _header(content: bytes, label: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether columns come first, dtype, and where the values begin."""
    stream = BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(stream)
    except Exception as error:  # numpy parses the header as a Python literal: what is none fails in many ways
        raise BadData(f"{label}: its header is damaged: {inert(str(error), longest=200)}") from error
    return shape, by_columns, dtype, stream.tell()


def _member(archive: Any, name: str, label: str) -> bytes:
    """The bytes of a file in a zip archive, never more than the archive says that there are."""
    size = archive.getinfo(name).file_size
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise BadData(f"{label}: {name} says it has {size:,} bytes; this machine has {memory:,} bytes of memory")
    content: bytes = archive.read(name)
    return content
