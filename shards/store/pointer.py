"""Pointers: the only objects that change. Each carries the sha256 of its content before it."""

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
    """Content with its checksum before it."""
    return hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def read_pointer(store: Store, key: str) -> bytes | None:
    """Content of a pointer, None if it was never written; read again while it does not fit."""
    for attempt in range(_ATTEMPTS):
        try:
            sealed = store.read(key)
        except MissingObjectError:
            return None
        data = sealed[_DIGEST + 1 :]
        if seal(data) == sealed:
            return data
        time.sleep(0.1 * 2**attempt)  # a reader can meet a pointer that is being moved
    raise CorruptObjectError(
        f"{store.uri}/{key}: the pointer does not fit its own checksum. Publish again, or restore a copy."
    )
