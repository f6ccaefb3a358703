"""Remember what was read of raw files, so that a file that did not change is read once.

A fact about a file, such as its sha256, is kept with the file's size, modification time and change time, and counts
while all three stay the same. Users can set the modification time and only the kernel sets the change time, so this
notices more than git and rsync do. Facts are kept in an SQLite database in batches: a killed process loses one batch,
which ends after so many files or bytes.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from shards.errors import PackError

log = logging.getLogger(__name__)

_READERS = 8
_BATCH = 256
_BATCH_BYTES = 4 << 30
_PART = 32
"""Files that a thread takes at a time: to hand over one takes longer than to ask for its time."""
_SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system: a younger file may change without a new time
_DAY_SECONDS = 86_400
_KEPT_DAYS = 90
_TABLE = """
CREATE TABLE IF NOT EXISTS facts (
    kind TEXT, path BLOB, size INTEGER, modified_ns INTEGER, changed_ns INTEGER, fact TEXT, day INTEGER,
    PRIMARY KEY (kind, path)
) WITHOUT ROWID
"""

_Row = tuple[str, bytes, int, int, int, str, int]
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


class _Fact(NamedTuple, Generic[T]):
    """A fact as it is kept, and what it says."""

    row: _Row
    value: T


class FileRecords:
    """Facts about files, kept in the database at `path`; those that nobody used for 90 days are deleted.

    Without a path, and with `reread`, every file is read. A database that cannot be used is a warning, not an error.
    """

    def __init__(self, path: Path | None = None, *, reread: bool = False) -> None:
        self._path, self._reread = path, reread
        self._today = int(time.time() // _DAY_SECONDS)

    def recall(
        self, kind: str, files: Sequence[Path], read: Callable[[Path], str], parse: Callable[[str], T]
    ) -> Iterator[T | PackError]:
        """Yield a fact about each file: the kept one, or what `read` returns or raises, in several threads.

        It is given as `parse` returns it; a kept one for which `parse` raises an error is read again. Another way to
        read a file needs another `kind`.
        """
        with ThreadPoolExecutor(_READERS, thread_name_prefix="raw-files") as readers:

            def in_parts(do: Callable[[A], B], items: Sequence[A]) -> list[B]:
                # Each thread has a part of a small batch.
                size = max(1, min(_PART, -(-len(items) // _READERS)))
                parts = [items[i : i + size] for i in range(0, len(items), size)]
                return [one for part in readers.map(lambda part: list(map(do, part)), parts) for one in part]

            for start in range(0, len(files), _BATCH):
                batch = [(file, os.fsencode(os.path.abspath(file))) for file in files[start : start + _BATCH]]
                known = self._load(kind, [path for _, path in batch])
                found = in_parts(partial(self._kept, known, parse), batch)
                kept = [one.row for one in found if isinstance(one, _Fact)]
                self._save([row for row in kept if row != known[row[1]]])
                unread = [(place, one) for place, one in enumerate(found) if isinstance(one, int)]
                for group in _groups(unread):
                    files_of_group = [batch[place] for place, _ in group]
                    fresh = in_parts(partial(self._fresh, kind, read, parse), files_of_group)
                    self._save([one.row for one in fresh if isinstance(one, _Fact)])
                    for (place, _), new in zip(group, fresh, strict=True):
                        found[place] = new
                for one in found:
                    assert not isinstance(one, int), "all of them were read"
                    yield one.value if isinstance(one, _Fact) else one

    def _kept(
        self, known: Mapping[bytes, _Row], parse: Callable[[str], T], named: tuple[Path, bytes]
    ) -> _Fact[T] | PackError | int:
        """Return the kept fact about a file, or the size of one that has to be read."""
        file, path = named
        try:
            stat = os.stat(file)
        except OSError as error:
            return PackError(f"{file}: cannot be read ({error.strerror}).")
        row = known.get(path)
        if row is not None and row[2:5] == (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns):
            with suppress(ValueError, TypeError, LookupError):  # written by other code
                return _Fact((*row[:6], self._today), parse(row[5]))
        return stat.st_size

    def _fresh(
        self,
        kind: str,
        read: Callable[[Path], str],
        parse: Callable[[str], T],
        named: tuple[Path, bytes],
    ) -> _Fact[T] | PackError:
        """Read a file; the day of its row is -1 when it may still change without a new time."""
        file, path = named
        now = time.time_ns()
        try:
            stat = os.stat(file)
            stamp = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
            fact = read(file)
        except OSError as error:
            return PackError(f"{file}: cannot be read ({error.strerror}).")
        except PackError as error:
            return error
        settled = now - max(stamp[1:]) > _SETTLED_NS
        return _Fact((kind, path, *stamp, fact, self._today if settled else -1), parse(fact))

    @cached_property
    def _database(self) -> sqlite3.Connection | None:
        if self._path is None:
            return None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self._path, timeout=10)
            with database:
                database.execute(_TABLE)
                (pruned,) = database.execute("PRAGMA user_version").fetchone()
                if pruned != self._today:
                    database.execute("DELETE FROM facts WHERE day < ?", (self._today - _KEPT_DAYS,))
                    database.execute(f"PRAGMA user_version = {self._today}")
        except (sqlite3.Error, OSError) as error:
            self._warn(error)
            return None
        return database

    def _load(self, kind: str, paths: Sequence[bytes]) -> dict[bytes, _Row]:
        if self._database is None or self._reread:
            return {}
        marks = ", ".join("?" * len(paths))
        try:
            found = self._database.execute(
                f"SELECT * FROM facts WHERE kind = ? AND path IN ({marks})", (kind, *paths)
            )
            return {row[1]: row for row in found}
        except sqlite3.Error as error:
            self._warn(error)
            return {}

    def _save(self, rows: Sequence[_Row]) -> None:
        settled = [row for row in rows if row[6] >= 0]
        if self._database is None or not settled:
            return
        try:
            with self._database:
                self._database.executemany(
                    "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?, ?, ?)", settled
                )
        except sqlite3.Error as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        """Say once that the database cannot be used, and do without it."""
        self.__dict__["_database"] = None
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        log.warning(
            "%s cannot be used (%s): raw files are read again.%s",
            self._path,
            error,
            " Delete it." if damaged else "",
        )


def _groups(unread: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield files, each with its size, in groups that end where they have enough bytes: each is saved at once."""
    group: list[tuple[int, int]] = []
    held = 0
    for place, size in unread:
        group.append((place, size))
        held += size
        if held >= _BATCH_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group
