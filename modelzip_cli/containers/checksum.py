"""CRC-32 of a whole from the CRC-32 of its pieces, so that pieces can be summed on any thread.

Source: Adler, `crc32_combine` of zlib 1.2.13 (crc32.c): appending n bytes multiplies the sum by x^(8n) modulo the
polynomial.
"""

from __future__ import annotations

from functools import lru_cache

POLYNOMIAL = 0xEDB88320  # of CRC-32, reflected


def _multiply(a: int, b: int) -> int:
    """Multiply two polynomials modulo `POLYNOMIAL`, both reflected 32-bit."""
    product = 0
    mask = 1 << 31
    while mask:
        if a & mask:
            product ^= b
        b = (b >> 1) ^ POLYNOMIAL if b & 1 else b >> 1
        mask >>= 1
    return product


@lru_cache(maxsize=1024)
def _power(length: int) -> int:
    """x^(8 * length) modulo the polynomial."""
    result, square = 1 << 31, 1 << 23  # x^0 and x^8
    while length:
        if length & 1:
            result = _multiply(square, result)
        square = _multiply(square, square)
        length >>= 1
    return result


def combine(first: int, second: int, length: int) -> int:
    """Return the CRC-32 of A + B from those of A (`first`) and of B (`second`), B being `length` bytes long."""
    return _multiply(_power(length), first) ^ second
