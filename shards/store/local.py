"""A store in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from shards.errors import StoreError
from shards.filesystem import expand_user, open_regular, read_regular
from shards.store import pointer, write_once
from shards.store.files import (
    TEMPORARY,
    blocks,
    copy,
    create_atomically,
    translate_os_errors,
    write_atomically,
)
from shards.store.protocol import ObjectStat


class LocalStore:
    """Objects as plain files in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = expand_user(root).absolute()
        self.uri = str(self.root)

    def path(self, key: str) -> Path:
        """Return the file of an object. Raises StoreError for a key that leaves the folder."""
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise StoreError(f"{key!r} is not a key of a store: it must be relative and without '..'.")
        return self.root / key

    def read(self, key: str) -> bytes:
        """Return all bytes of an object."""
        with self._explained(key):
            return read_regular(self.path(key))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes of an object from `start` on."""
        with self._explained(key), open_regular(self.path(key)) as file:
            file.seek(start)
            data = file.read(length)
        return write_once.check_length(data, length, key, self.uri)

    def write(self, key: str, data: bytes) -> None:
        """Write an object once."""
        if not self.create(key, data) and self.read(key) != data:
            raise write_once.conflict(key, self.uri)

    def write_file(self, key: str, path: Path) -> None:
        """Write an object once from a file."""
        target = self.path(key)
        with self._explained(key), path.open("rb") as source:
            if create_atomically(target, lambda file: copy(source, file)):
                return
            source.seek(0)
            with target.open("rb") as present:
                if not write_once.equal_blocks(blocks(source), blocks(present)):
                    raise write_once.conflict(key, self.uri)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object if there is none; return whether this call wrote it."""
        with self._explained(key):
            return create_atomically(self.path(key), lambda file: file.write(data))

    def read_pointer(self, key: str) -> bytes | None:
        """Return the content of a mutable pointer."""
        return pointer.read_pointer(self, key)

    def write_pointer(self, key: str, data: bytes) -> None:
        """Replace the content of a pointer."""
        sealed = pointer.seal(data)
        with self._explained(key):
            write_atomically(self.path(key), lambda file: file.write(sealed))

    def exists(self, key: str) -> bool:
        """Return whether an object exists."""
        with self._explained(key):
            return self.path(key).is_file()

    def stat(self, key: str) -> ObjectStat:
        """Return size and age of an object."""
        with self._explained(key):
            found = self.path(key).stat()
        return ObjectStat(found.st_size, found.st_mtime)

    def list(self, prefix: str = "") -> list[str]:
        """Return the sorted keys that start with `prefix`."""
        base = self.root / prefix.rpartition("/")[0]
        with self._explained(prefix):
            files = (p for p in base.rglob("*") if p.is_file() and not p.name.startswith(TEMPORARY))
            keys = (file.relative_to(self.root).as_posix() for file in files)
            return sorted(key for key in keys if key.startswith(prefix))

    def unfinished(self) -> Sequence[str]:
        """Return the keys of temporary files."""
        with self._explained(""):
            files = (p for p in self.root.rglob(f"{TEMPORARY}*") if p.is_file())
            return sorted(file.relative_to(self.root).as_posix() for file in files)

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._explained(key):
            self.path(key).unlink(missing_ok=True)

    def download(self, key: str, path: Path) -> None:
        """Copy an object to a local file."""
        with self._explained(key), open_regular(self.path(key)) as source:
            write_atomically(path, lambda file: copy(source, file))

    def reconnect(self) -> None:
        """Do nothing: a folder has no connections."""

    def ensure_bucket(self) -> None:
        """Create the folder."""
        with self._explained(""):
            self.root.mkdir(parents=True, exist_ok=True)

    def _explained(self, key: str) -> AbstractContextManager[None]:
        return translate_os_errors(self.uri, key)
