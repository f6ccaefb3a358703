"""A store in a folder that counts the requests that an S3 server would get."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from shards.store import LocalStore


class CountingStore(LocalStore):
    """A folder as a store; `requests` counts its calls by kind."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.requests: Counter[str] = Counter()

    def read(self, key: str) -> bytes:
        """Return the content of an object."""
        self.requests["read"] += 1
        return super().read(key)

    def write(self, key: str, data: bytes) -> None:
        """Write an object."""
        self.requests["write"] += 1
        super().write(key, data)

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.requests["delete"] += 1
        super().delete(key)

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with a prefix."""
        self.requests["list"] += 1
        return super().list(prefix)
