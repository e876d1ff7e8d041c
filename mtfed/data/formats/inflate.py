"""Unpack no more bytes than a header declares: a few packed bytes can contain gigabytes."""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Callable

SLACK = 1024  # bytes that may follow those that a header declares


def inflate(content: bytes, size: int, wbits: int) -> bytes:
    """Return ``size`` bytes unpacked by zlib; raise ``ValueError`` if there are fewer, or more than a little."""
    return _bounded(zlib.decompressobj(wbits).decompress, content, size)


def unpack_bz2(content: bytes, size: int) -> bytes:
    """Return ``size`` bytes unpacked by bzip2; raise ``ValueError`` as :func:`inflate` does."""
    return _bounded(bz2.BZ2Decompressor().decompress, content, size)


def _bounded(decompress: Callable[[bytes, int], bytes], content: bytes, size: int) -> bytes:
    unpacked = decompress(content, size + SLACK)
    if not size <= len(unpacked) < size + SLACK:
        raise ValueError(f"expected {size} bytes, got {len(unpacked)}")
    return unpacked[:size]
