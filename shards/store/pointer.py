"""Pointers, the only mutable objects. Each starts with the sha256 of its content."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from shards.errors import CorruptObjectError, MissingObjectError

if TYPE_CHECKING:
    from shards.store.protocol import Store

_ATTEMPTS = 4
_DIGEST = 64  # hexadecimal characters of a sha256


def seal(data: bytes) -> bytes:
    """Return the content preceded by its checksum."""
    return hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def read_pointer(store: Store, key: str) -> bytes | None:
    """Return the content of a pointer, None if it was never written; retry while its checksum does not match.

    Raises CorruptObjectError after the last attempt.
    """
    for attempt in range(_ATTEMPTS):
        try:
            sealed = store.read(key)
        except MissingObjectError:
            return None
        data = sealed[_DIGEST + 1 :]
        if seal(data) == sealed:
            return data
        time.sleep(0.1 * 2**attempt)  # it may be in the middle of an update
    raise CorruptObjectError(
        f"{store.uri}/{key}: the pointer does not match its own checksum. Publish again, or restore a copy."
    )
