"""Whole shards on the local disk: shared by the processes of a machine, bounded in bytes, verified.

A shard is downloaded once by whichever process needs it first (the others wait at its lock), checked
against the size and sha256 of its manifest, and renamed into place; what is least recently used makes room.
A local store is verified once and read in place.
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
        path = self.folder / f"{shard.sha256}.tar"
        if not _touch(path):
            if shard.size > self.max_bytes:
                raise StoreError(
                    f"{store.uri}/{shard.key} has {shard.size} bytes, and the cache {self.folder} may hold "
                    f"{self.max_bytes}. Give the cache more room, or pack smaller shards."
                )
            self._make_folders()
            with _locked(self.folder / "locks" / shard.sha256):
                if not _touch(path):
                    self._fetch(store, shard, path)
        return path

    def _fetch(self, store: Store, shard: Shard, path: Path) -> None:
        with _locked(self.folder / "locks" / "room"):
            self._make_room(shard.size)
        part = path.with_suffix(".part")  # one writer: the lock is held
        store.download(shard.key, part)
        _verify(part, shard, f"{store.uri}/{shard.key}", delete=True)
        part.replace(path)

    def _make_room(self, size: int) -> None:
        for path, stat in _files(self.folder, ".tmp-*"):
            if time.time() - stat.st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)  # its download was killed
        present = sorted(
            ((stat.st_mtime_ns, stat.st_size, path) for path, stat in _files(self.folder, "*.tar")),
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
        try:
            stat = path.stat()
        except FileNotFoundError as error:
            raise CorruptObjectError(
                f"{store.uri}/{shard.key} is missing although the manifest lists it. Pack again."
            ) from error
        stamp = f"{path} {stat.st_size} {stat.st_mtime_ns}"
        mark = self.folder / "verified" / shard.sha256
        if not mark.exists() or mark.read_text() != stamp:
            self._make_folders()
            with _locked(self.folder / "locks" / shard.sha256):
                if not mark.exists() or mark.read_text() != stamp:
                    _verify(path, shard, f"{store.uri}/{shard.key}", delete=False)
                    fresh = mark.with_suffix(".part")
                    fresh.write_text(stamp)
                    fresh.replace(mark)
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
    """Mark as just used; False if it is not there."""
    try:
        os.utime(path)
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
