"""Checks that objects are written once and read completely."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from shards.errors import CorruptObjectError, ObjectExistsError


def equal_blocks(one: Iterator[bytes], other: Iterator[bytes]) -> bool:
    """Return whether two streams of blocks are equal."""
    return all(a == b for a, b in itertools.zip_longest(one, other))


def check_length(data: bytes, length: int, key: str, uri: str) -> bytes:
    """Return `data`. Raises CorruptObjectError unless it has the requested length."""
    if len(data) != length:
        raise CorruptObjectError(
            f"{uri}/{key}: {len(data)} bytes instead of the requested {length}; the object is truncated."
        )
    return data


def conflict(key: str, uri: str) -> ObjectExistsError:
    """Return the error of writing other bytes to a key that is in use."""
    return ObjectExistsError(
        f"{uri}/{key} already holds other bytes, and objects are written once. Delete it if it is damaged."
    )
