"""A bounded cache of verified shards on the local disk, shared by all processes of a machine.

The first process that needs a shard downloads it while the others wait at a lock, checks its size and sha256 against
the manifest, and renames it into place. The least recently used shards are evicted. A shard in a local store is
verified once and read in place. A file that changed after it was verified is verified again.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shards.errors import CorruptObjectError, StoreError
from shards.filesystem import expand_user
from shards.manifest import Shard
from shards.store import LocalStore, Store
from shards.store.checked import check_file, download_named
from shards.store.files import locked

log = logging.getLogger(__name__)

_ABANDONED_SECONDS = 3600
_OPEN_ATTEMPTS = 3


class ShardCache:
    """A folder with at most `max_bytes` of shards, not counting those being downloaded.

    An evicted shard stays on disk until the processes that read it close it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = expand_user(folder).absolute()
        self.max_bytes = max_bytes

    def path(self, store: Store, shard: Shard) -> Path:
        """Return a local file with the verified bytes of a shard.

        Raises StoreError when the shard is larger than the cache, CorruptObjectError when it is damaged.
        """
        if isinstance(store, LocalStore):
            return self._verified_in_place(store, shard)
        path = self._file(shard)
        if not self._is_present(path, shard):
            if shard.size > self.max_bytes:
                raise StoreError(
                    f"{store.uri}/{shard.key} has {shard.size} bytes, and the cache {self.folder} is limited to "
                    f"{self.max_bytes}. Allow the cache more bytes, or pack smaller shards."
                )
            self._make_folders()
            with locked(self.folder / "locks" / shard.sha256):
                if not self._is_present(path, shard) and not self._verify_again(path, shard):
                    self._fetch(store, shard, path)
        return path

    def open(self, store: Store, shard: Shard) -> BinaryIO:
        """Open a verified shard for reading; an eviction while it is open does no harm."""
        for _ in range(_OPEN_ATTEMPTS):
            try:
                return self.path(store, shard).open("rb")
            except FileNotFoundError:
                continue  # another process evicted it between the two calls
        raise CorruptObjectError(
            f"{store.uri}/{shard.key} was evicted from the cache {self.folder} {_OPEN_ATTEMPTS} times before it could "
            "be opened. Allow the cache more bytes."
        )

    def holds(self, store: Store, shard: Shard) -> bool:
        """Return whether the shard's file is on this machine."""
        return isinstance(store, LocalStore) or self._file(shard).exists()

    def _file(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _is_present(self, path: Path, shard: Shard) -> bool:
        """Return whether the file exists and is unchanged since it was verified; mark it as just used."""
        try:
            return _touch(path) and self._mark(shard).is_current(path)
        except FileNotFoundError:
            return False  # evicted by another process between the two

    def _verify_again(self, path: Path, shard: Shard) -> bool:
        """Verify a file that changed after it was verified; remove it and return False when it is damaged."""
        try:
            check_file(path, shard.sha256, shard.size)
        except FileNotFoundError:
            return False
        except CorruptObjectError:
            path.unlink(missing_ok=True)
            log.warning("%s was damaged on this disk after it was verified; it is downloaded again", path)
            return False
        self._mark(shard).set(path)
        return True

    def _fetch(self, store: Store, shard: Shard, path: Path) -> None:
        with locked(self.folder / "locks" / "room"):
            self._evict_for(shard.size)
        part = path.with_suffix(".part")  # only one process writes it: the shard's lock is held
        download_named(store, shard.key, part, shard.sha256, shard.size)
        self._mark(shard).set(part, path)
        part.replace(path)

    def _mark(self, shard: Shard) -> _VerifiedMark:
        return _VerifiedMark(self.folder / "verified" / shard.sha256)

    def _evict_for(self, size: int) -> None:
        """Remove the least recently used shards until `size` more bytes fit, and downloads that were killed."""
        for path, stat in _files(self.folder, ".tmp-*"):
            if time.time() - stat.st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        present = sorted(_files(self.folder, "*.tar"), key=lambda item: item[1].st_atime_ns)
        total = sum(stat.st_size for _, stat in present)
        for path, stat in present:
            if total + size <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= stat.st_size
            log.info("evicted %s from the shard cache", path.name)

    def _verified_in_place(self, store: LocalStore, shard: Shard) -> Path:
        path = store.path(shard.key)
        mark = self._mark(shard)
        try:
            if not mark.is_current(path):
                self._make_folders()
                with locked(self.folder / "locks" / shard.sha256):
                    if not mark.is_current(path):
                        check_file(path, shard.sha256, shard.size, f"{store.uri}/{shard.key}")
                        mark.set(path)
        except FileNotFoundError as error:
            raise CorruptObjectError(
                f"{store.uri}/{shard.key} is missing although the manifest lists it. Pack again."
            ) from error
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO):
                raise
            raise CorruptObjectError(
                f"{store.uri}/{shard.key} is no file ({error.strerror}). Restore it from a copy."
            ) from error
        return path

    def _make_folders(self) -> None:
        try:
            for name in ("locks", "verified"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the shard cache {self.folder} cannot be created ({error.strerror}). Choose a writable folder: "
                "MIRAGE_CACHE names one for this machine."
            ) from error


class _VerifiedMark:
    """A file that records which shard file was verified, by its path, size and modification time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def is_current(self, path: Path) -> bool:
        """Return whether that file was verified and has not changed since."""
        stamp = self._stamp(path, path)
        return self._path.exists() and self._path.read_text() == stamp

    def set(self, path: Path, name: Path | None = None) -> None:
        """Record a verified file, under the name that it will be renamed to."""
        fresh = self._path.with_suffix(".part")
        fresh.write_text(self._stamp(path, name or path))
        fresh.replace(self._path)

    @staticmethod
    def _stamp(path: Path, name: Path) -> str:
        stat = path.stat()
        return f"{name} {stat.st_size} {stat.st_mtime_ns}"


def _touch(path: Path) -> bool:
    """Set the access time to now; return False if there is no such file.

    The modification time does not change: it tells which file was verified.
    """
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
            continue  # evicted by another process in the meantime
