"""Pointers, the only mutable objects. Each starts with the sha256 of its content."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from shards.errors import CorruptObjectError, MissingObjectError
from shards.store.checked import read_checked

if TYPE_CHECKING:
    from shards.store.protocol import Store

_DIGEST = 64  # hexadecimal characters of a sha256


def seal(data: bytes) -> bytes:
    """Return the content preceded by its checksum."""
    return hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def read_pointer(store: Store, key: str) -> bytes | None:
    """Return the content of a pointer, None if it was never written. Raises CorruptObjectError."""

    def content(sealed: bytes) -> bytes:
        data = sealed[_DIGEST + 1 :]
        if seal(data) != sealed:  # damaged, or in the middle of an update
            raise CorruptObjectError(
                f"{store.uri}/{key}: the pointer does not match its own checksum. Publish again, or restore a copy."
            )
        return data

    try:
        return read_checked(store, key, content)
    except MissingObjectError:
        return None
