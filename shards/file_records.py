"""Remember what was read of raw files, so that a file that did not change is read once.

A fact about a file, such as its sha256, is kept with the file's size, modification time and change time, and counts
while all three stay the same. Users can set the modification time and only the kernel sets the change time, so this
notices more than git and rsync do. Facts are kept in an SQLite database in batches: a killed process loses one batch.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from shards.errors import PackError

log = logging.getLogger(__name__)

_READERS = 8
_BATCH = 256
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


class FileRecords:
    """Facts about files, kept in the database at `path`; those that nobody used for 90 days are deleted.

    Without a path, and with `reread`, every file is read. A database that cannot be used is a warning, not an error.
    """

    def __init__(self, path: Path | None = None, *, reread: bool = False) -> None:
        self._path, self._reread = path, reread
        self._today = int(time.time() // _DAY_SECONDS)

    def recall(
        self, kind: str, files: Sequence[Path], read: Callable[[Path], str]
    ) -> Iterator[str | PackError]:
        """Yield a fact about each file: the kept one, or what `read` returns or raises, in several threads."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="raw-files") as readers:
            for start in range(0, len(files), _BATCH):
                batch = files[start : start + _BATCH]
                paths = [os.fsencode(os.path.abspath(file)) for file in batch]
                known = self._load(kind, paths)
                pairs = list(zip(batch, paths, strict=True))
                parts = [pairs[i : i + _PART] for i in range(0, len(pairs), _PART)]
                found = readers.map(
                    lambda part, known=known: [
                        self._fact(kind, file, path, known.get(path), read) for file, path in part
                    ],
                    parts,
                )
                rows = [row for part in found for row in part]
                self._save([row for row in rows if isinstance(row, tuple) and row != known.get(row[1])])
                yield from (row[5] if isinstance(row, tuple) else row for row in rows)

    def _fact(
        self, kind: str, file: Path, path: bytes, known: _Row | None, read: Callable[[Path], str]
    ) -> _Row | PackError:
        """Return the row of a file; its day is -1 when the file may still change without a new time."""
        now = time.time_ns()
        try:
            stat = os.stat(file)
        except OSError as error:
            return PackError(f"{file}: cannot be read ({error.strerror}).")
        stamp = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        if known is not None and known[2:5] == stamp:
            return (*known[:6], self._today)
        settled = now - max(stamp[1:]) > _SETTLED_NS
        try:
            return (kind, path, *stamp, read(file), self._today if settled else -1)
        except PackError as error:
            return error

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
        log.warning("%s cannot be used (%s): raw files are read again. Delete it.", self._path, error)
