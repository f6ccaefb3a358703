"""What the rest of the package asks of storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What a store knows of an object."""

    size: int
    """Bytes."""
    modified_unix: float
    """When it was written, in seconds since 1970, by the store's own clock."""


class Store(Protocol):
    """What the rest of the package asks of storage. Keys are relative, with `/` between their parts."""

    uri: str

    def read(self, key: str) -> bytes:
        """All bytes of an object."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start` on."""

    def write(self, key: str, data: bytes) -> None:
        """Write once: the same bytes again are fine, other bytes under the same key are an error."""

    def write_file(self, key: str, path: Path) -> None:
        """`write` for a file of any size, in bounded memory."""

    def read_pointer(self, key: str) -> bytes | None:
        """Content of a mutable pointer, None if it was never written."""

    def write_pointer(self, key: str, data: bytes) -> None:
        """Move a pointer; readers see the old content or the new one."""

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    def stat(self, key: str) -> ObjectStat:
        """Size and age of an object."""

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys that start with `prefix`."""

    def unfinished(self) -> Sequence[str]:
        """Sorted keys of what writes left that were killed half-way; nothing reads them, `delete` removes them."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    def download(self, key: str, path: Path) -> None:
        """Copy an object to a local file, in bounded memory. The file is complete when this returns."""

    def ensure_bucket(self) -> None:
        """Create the folder or bucket when it is not there yet."""
