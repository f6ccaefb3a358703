"""A bounded cache of verified shards on the local disk, shared by all processes of a machine.

The first process that needs a shard downloads it while the others wait at a lock, checks its size and sha256 against
the manifest, and renames it into place. The least recently used shards are evicted. A shard in a local store is
verified once and read in place. A file that changed after it was verified is verified again.

The lock file `locks/room` holds the bytes of all shards, so that a fetch does not list the cache. It is counted again
when it says that the cache is full, and after every so many fetches: other programs and kills may make it wrong.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
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
_NO_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO)
_PER_LISTING = 16
"""A listing of n shards pays for n / 16 fetches: that many pass before the next, or are made room for at once."""


class ShardCache:
    """A folder with at most `max_bytes` of shards, not counting those being downloaded.

    An evicted shard stays on disk until the processes that read it close it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = expand_user(folder).absolute()
        self.max_bytes = max_bytes
        self._evicted = str(self.folder / "evicted")  # its modification time is that of the last eviction
        self._fetches_until_count = 0
        # What this process knows already: to open a shard takes less time than to join a path or to read a mark.
        self._paths: dict[tuple[str, str, str], Path] = {}
        self._verified: dict[str, str] = {}

    def __reduce__(self) -> tuple[type[ShardCache], tuple[Path, int]]:
        return ShardCache, (self.folder, self.max_bytes)

    def path(self, store: Store, shard: Shard) -> Path:
        """Return a local file with the verified bytes of a shard.

        Raises StoreError when the shard is larger than the cache, CorruptObjectError when it is damaged.
        """
        try:
            return self._path(store, shard)
        except FileNotFoundError:
            raise  # evicted meanwhile: `open` tries again
        except OSError as error:
            raise self._explained(error, f"{store.uri}/{shard.key}") from error

    def _path(self, store: Store, shard: Shard) -> Path:
        place = store.uri, shard.key, shard.sha256
        path = self._paths.get(place)
        if path is None:
            path = self._paths[place] = (
                store.path(shard.key) if isinstance(store, LocalStore) else self._file(shard)
            )
        if isinstance(store, LocalStore):
            self._verify_in_place(path, store, shard)
        elif not self._is_present(path, shard):
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

    def open(self, store: Store, shard: Shard, buffering: int = -1) -> BinaryIO:
        """Open a verified shard for reading; an eviction while it is open does no harm."""
        for _ in range(_OPEN_ATTEMPTS):
            try:
                return open(self.path(store, shard), "rb", buffering)
            except FileNotFoundError:
                continue  # another process evicted it between the two calls
        raise CorruptObjectError(
            f"{store.uri}/{shard.key} was evicted from the cache {self.folder} {_OPEN_ATTEMPTS} times before it could "
            "be opened. Allow the cache more bytes."
        )

    def holds(self, store: Store, shard: Shard) -> bool:
        """Return whether the shard's file is on this machine."""
        return isinstance(store, LocalStore) or self._file(shard).exists()

    def last_eviction(self) -> int:
        """Return the time of the last eviction in ns, 0 if there was none: `holds` has not changed since."""
        try:
            return os.stat(self._evicted).st_mtime_ns
        except OSError:
            return 0

    def _file(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _is_present(self, path: Path, shard: Shard) -> bool:
        """Return whether the file exists and is unchanged since it was verified; mark it as just used."""
        try:
            stat = os.stat(path)
            # The modification time does not change: it tells which file was verified.
            os.utime(path, ns=(time.time_ns(), stat.st_mtime_ns))
            return self._is_verified(path, stat, shard)
        except FileNotFoundError:
            return False  # not there, or evicted by another process in the meantime

    def _is_verified(self, path: Path, stat: os.stat_result, shard: Shard) -> bool:
        """Return whether this file was verified and has not changed since."""
        stamp = _stamp(path, stat)
        if self._verified.get(shard.sha256) == stamp:
            return True
        mark = self._mark(shard)
        if not mark.exists() or mark.read_text() != stamp:
            return False
        self._verified[shard.sha256] = stamp
        return True

    def _set_verified(self, path: Path, shard: Shard, name: Path | None = None) -> None:
        """Record a verified file, under the name that it will be renamed to."""
        mark = self._mark(shard)
        fresh = mark.with_suffix(".part")
        fresh.write_text(_stamp(name or path, os.stat(path)))
        fresh.replace(mark)

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
        self._set_verified(path, shard)
        return True

    def _fetch(self, store: Store, shard: Shard, path: Path) -> None:
        self._make_room(shard.size)
        part = path.with_suffix(".part")  # only one process writes it: the shard's lock is held
        download_named(store, shard.key, part, shard.sha256, shard.size)
        self._set_verified(part, shard, path)
        self._make_room(shard.size, lambda: part.replace(path))
        self._fetches_until_count -= 1

    def _mark(self, shard: Shard) -> Path:
        """Return the file that says which shard file was verified, by its path, size and modification time."""
        return self.folder / "verified" / shard.sha256

    def _make_room(self, size: int, then_add: Callable[[], object] | None = None) -> None:
        """Evict shards until `size` more bytes fit; `then_add` puts a file of that size into the cache."""
        with locked(self.folder / "locks" / "room", "a+b") as room:
            room.seek(0)
            known = room.read()
            total = int(known) if known.isdigit() else None
            if total is None or total + size > self.max_bytes or self._fetches_until_count <= 0:
                total = self._evict_for(size)
            if then_add is not None:
                then_add()
                total += size
            room.truncate(0)
            room.write(str(total).encode())

    def _evict_for(self, size: int) -> int:
        """Remove the least recently used shards until `size` more bytes fit; return the bytes of those that stay.

        When shards must go, a sixteenth of all goes with them. Downloads that were killed are removed.
        """
        for path, stat in _files(self.folder, ".tmp-*"):
            if time.time() - stat.st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        present = sorted(_files(self.folder, "*.tar"), key=lambda item: item[1].st_atime_ns)
        total = sum(stat.st_size for _, stat in present)
        self._fetches_until_count = spare = len(present) // _PER_LISTING
        full = total + size > self.max_bytes
        for path, stat in present if full else ():
            if total + size <= self.max_bytes:
                spare -= 1
                if spare < 0:
                    break
            path.unlink(missing_ok=True)
            total -= stat.st_size
            log.info("evicted %s from the shard cache", path.name)
        if full:
            now = time.time_ns()  # the clock of a file system ticks too slowly to tell two evictions apart
            Path(self._evicted).touch()
            os.utime(self._evicted, ns=(now, now))
        return total

    def _verify_in_place(self, path: Path, store: LocalStore, shard: Shard) -> None:
        try:
            if not self._is_verified(path, os.stat(path), shard):
                self._make_folders()
                with locked(self.folder / "locks" / shard.sha256):
                    if not self._is_verified(path, os.stat(path), shard):
                        check_file(path, shard.sha256, shard.size, f"{store.uri}/{shard.key}")
                        self._set_verified(path, shard)
        except FileNotFoundError as error:
            raise CorruptObjectError(
                f"{store.uri}/{shard.key} is missing although the manifest lists it. Pack again."
            ) from error
        except OSError as error:
            if self._is_own(error) or error.errno not in _NO_FILE:
                raise
            raise CorruptObjectError(
                f"{store.uri}/{shard.key} is no file ({error.strerror}). Restore it from a copy."
            ) from error

    def _make_folders(self) -> None:
        for name in ("locks", "verified"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def _is_own(self, error: OSError) -> bool:
        """Return whether an error concerns the cache; that of a full disk names no file."""
        file = Path(str(error.filename or self.folder))
        return file.is_relative_to(self.folder) or self.folder.is_relative_to(file)

    def _explained(self, error: OSError, shard: str) -> StoreError:
        """Return the error of the file system as one that says whether the shard or the cache is the cause."""
        if self._is_own(error):
            return StoreError(
                f"the shard cache {self.folder} cannot be used ({error.strerror}). Free some space, or choose a "
                "writable folder: MIRAGE_CACHE names one for this machine."
            )
        return StoreError(f"{shard}: cannot be read ({error.strerror}). Make it readable.")


def _stamp(path: Path, stat: os.stat_result) -> str:
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


def _files(folder: Path, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob(pattern):
        try:
            yield path, path.stat()
        except FileNotFoundError:
            continue  # evicted by another process in the meantime
