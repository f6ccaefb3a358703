"""Protocol of an object store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """Size and age of an object."""

    size: int
    """Size in bytes."""
    modified_unix: float
    """Time of the write by the store's clock, in seconds since 1970."""


class Store(Protocol):
    """An object store. Keys are relative, with `/` between their parts. All methods raise StoreError."""

    uri: str

    def read(self, key: str) -> bytes:
        """Return all bytes of an object."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes of an object from `start` on."""

    def write(self, key: str, data: bytes) -> None:
        """Write an object once; writing the same bytes again is allowed, other bytes are an error."""

    def write_file(self, key: str, path: Path) -> None:
        """Do `write` with a file of any size, in bounded memory."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object if there is none; return whether this call wrote it. Of several callers one is told True."""

    def read_pointer(self, key: str) -> bytes | None:
        """Return the content of a mutable pointer, None if it was never written."""

    def write_pointer(self, key: str, data: bytes) -> None:
        """Replace the content of a pointer; readers see the old or the new content."""

    def exists(self, key: str) -> bool:
        """Return whether an object exists."""

    def stat(self, key: str) -> ObjectStat:
        """Return size and age of an object."""

    def list(self, prefix: str = "") -> list[str]:
        """Return the sorted keys that start with `prefix`."""

    def unfinished(self) -> Sequence[str]:
        """Return the sorted keys of partial objects left by killed writes; `delete` removes them."""

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""

    def download(self, key: str, path: Path) -> None:
        """Copy an object to a local file, in bounded memory."""

    def reconnect(self) -> None:
        """Close all connections; the next request opens a new one."""

    def ensure_bucket(self) -> None:
        """Create the folder or bucket if it does not exist."""
