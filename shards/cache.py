"""Whole shards on the local disk: shared by the processes of a machine, bounded in bytes, verified.

A shard is downloaded once by whichever process needs it first (the others wait at its lock), checked
against the size and sha256 of its manifest, and renamed into place; what is least recently used makes room.
A local store is verified once and read in place. A file that was changed since is verified again.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import CorruptObjectError, StoreError
from shards.manifest import Shard
from shards.store import LocalStore, Store

log = logging.getLogger(__name__)

_ABANDONED_SECONDS = 3600


class ShardCache:
    """A folder that holds at most `max_bytes` of shards, besides those that are on their way in.

    Processes that still read an evicted shard keep it alive on disk until they let go of it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder.expanduser().absolute()
        self.max_bytes = max_bytes

    def path(self, store: Store, shard: Shard) -> Path:
        """Local file with the verified bytes of a shard."""
        if isinstance(store, LocalStore):
            return self._in_place(store, shard)
        path = self._file(shard)
        if not self._present(path, shard):
            if shard.size > self.max_bytes:
                raise StoreError(
                    f"{store.uri}/{shard.key} has {shard.size} bytes, and the cache {self.folder} may hold "
                    f"{self.max_bytes}. Give the cache more room, or pack smaller shards."
                )
            self._make_folders()
            with _locked(self.folder / "locks" / shard.sha256):
                if not self._present(path, shard) and not self._still_whole(path, shard):
                    self._fetch(store, shard, path)
        return path

    def holds(self, store: Store, shard: Shard) -> bool:
        """Whether the shard's file is here."""
        return isinstance(store, LocalStore) or self._file(shard).exists()

    def _file(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _present(self, path: Path, shard: Shard) -> bool:
        """Whether the file is here and is the one that was verified; it counts as used just now."""
        try:
            return _touch(path) and self._mark(shard).is_current(path)
        except FileNotFoundError:
            return False  # evicted by another process between the two

    def _still_whole(self, path: Path, shard: Shard) -> bool:
        """Whether a file that was changed since it was verified has the right bytes; if not, it is removed."""
        try:
            _verify(path, shard, str(path), delete=True)
        except FileNotFoundError:
            return False
        except CorruptObjectError:
            log.warning("%s was damaged on this disk after it was verified: it is fetched again", path)
            return False
        self._mark(shard).set(path)
        return True

    def _fetch(self, store: Store, shard: Shard, path: Path) -> None:
        with _locked(self.folder / "locks" / "room"):
            self._make_room(shard.size)
        part = path.with_suffix(".part")  # one writer: the lock is held
        store.download(shard.key, part)
        _verify(part, shard, f"{store.uri}/{shard.key}", delete=True)
        self._mark(shard).set(part, path)
        part.replace(path)

    def _mark(self, shard: Shard) -> _VerifiedMark:
        return _VerifiedMark(self.folder / "verified" / shard.sha256)

    def _make_room(self, size: int) -> None:
        for path, stat in _files(self.folder, ".tmp-*"):
            if time.time() - stat.st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)  # its download was killed
        present = sorted(
            ((stat.st_atime_ns, stat.st_size, path) for path, stat in _files(self.folder, "*.tar")),
            key=lambda item: item[0],
        )
        total = sum(item[1] for item in present)
        for _, bytes_, path in present:
            if total + size <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= bytes_
            log.info("evicted %s from the shard cache", path.name)

    def _in_place(self, store: LocalStore, shard: Shard) -> Path:
        path = store.path(shard.key)
        mark = self._mark(shard)
        try:
            if not mark.is_current(path):
                self._make_folders()
                with _locked(self.folder / "locks" / shard.sha256):
                    if not mark.is_current(path):
                        _verify(path, shard, f"{store.uri}/{shard.key}", delete=False)
                        mark.set(path)
        except FileNotFoundError as error:
            raise CorruptObjectError(
                f"{store.uri}/{shard.key} is missing although the manifest lists it. Pack again."
            ) from error
        return path

    def _make_folders(self) -> None:
        try:
            for name in ("locks", "verified"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the shard cache {self.folder} cannot be created ({error.strerror}). Choose a folder "
                "that can be written."
            ) from error


class _VerifiedMark:
    """Remembers which file was verified, by its place, size and time of change."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def is_current(self, path: Path) -> bool:
        """Whether that file was verified and not changed since."""
        stamp = self._stamp(path, path)
        return self._path.exists() and self._path.read_text() == stamp

    def set(self, path: Path, name: Path | None = None) -> None:
        """Remember a file, under the name that it is going to have."""
        fresh = self._path.with_suffix(".part")
        fresh.write_text(self._stamp(path, name or path))
        fresh.replace(self._path)

    @staticmethod
    def _stamp(path: Path, name: Path) -> str:
        stat = path.stat()
        return f"{name} {stat.st_size} {stat.st_mtime_ns}"


def _verify(path: Path, shard: Shard, where: str, *, delete: bool) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if size == shard.size else ""
    if digest == shard.sha256:
        return
    if delete:
        path.unlink()
    found = f"has {size} bytes instead of {shard.size}" if not digest else "does not fit its sha256"
    raise CorruptObjectError(f"{where} {found}. Delete it and pack again, or restore it from a copy.")


def _touch(path: Path) -> bool:
    """Mark as just used; False if it is not there. The time of change stays: it tells what was verified."""
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def _files(folder: Path, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob(pattern):
        try:
            yield path, path.stat()
        except FileNotFoundError:
            continue  # evicted by another process meanwhile


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclusive lock among processes and threads; the kernel frees it when its holder dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
