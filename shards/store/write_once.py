"""Objects are written once and read whole: the comparisons that prove it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from shards.errors import CorruptObjectError, ObjectExistsError


def equal_blocks(one: Iterator[bytes], other: Iterator[bytes]) -> bool:
    """Whether two streams of blocks hold the same blocks."""
    return all(a == b for a, b in itertools.zip_longest(one, other))


def check_length(data: bytes, length: int, key: str, uri: str) -> bytes:
    """`data`, which must have the length that was asked for."""
    if len(data) != length:
        raise CorruptObjectError(
            f"{uri}/{key}: {len(data)} bytes where {length} were asked for; it is truncated."
        )
    return data


def conflict(key: str, uri: str) -> ObjectExistsError:
    """The error of writing other bytes under a key that is in use."""
    return ObjectExistsError(
        f"{uri}/{key} already holds other bytes, and objects are written once. Delete it if it is damaged."
    )
