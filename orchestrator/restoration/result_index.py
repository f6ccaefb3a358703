"""What has been restored into a folder or a bucket, kept there, so that no photograph is restored twice.

A folder of results holds `.mirage-restored/`: text files of one JSON record per line. Records are written before the
results that they speak of. So a result is done when a record says by which model, settings and photograph it was
made, and its bytes are those of the record; whatever a kill left half-way is not done and is made again.

Each writer adds files of its own, named by their content; `merge` makes one of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from orchestrator.errors import PhotoError
from shards.errors import MissingObjectError
from shards.store import Store

FOLDER = ".mirage-restored"
_README = f"{FOLDER}/README.txt"
_ABOUT = b"""Which photographs `mirage restore` has restored into this place, with which model and settings.
It skips those the next time. Without this folder it no longer knows its results, and refuses to replace them.
"""
_READERS = 16
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Record:
    """How one result was made. Digests are SHA-256 in hexadecimal."""

    name: str
    """Key of the result."""
    photograph: str
    """Digest of the photograph's file."""
    settings: str
    """Digest of model and settings."""
    result: str
    """Digest of the restored file."""


class Ledger:
    """The records of one store of results."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def prepare(self) -> None:
        """Create the place of the results. Raises StoreError where nothing can be written."""
        self._store.ensure_bucket()
        if not self._store.exists(_README):  # else it may be of another version, with other words
            self._store.write(_README, _ABOUT)

    def read(self) -> dict[str, tuple[Record, ...]]:
        """Return all records by the name of their result."""
        found: dict[str, tuple[Record, ...]] = {}
        for text in self._parts().values():
            for line in text.splitlines():
                record = self._record(line)
                found[record.name] = (*found.get(record.name, ()), record)
        return found

    def add(self, records: Sequence[Record]) -> None:
        """Write records down, before their results are written."""
        lines = "".join(json.dumps(asdict(record), sort_keys=True) + "\n" for record in records)
        if lines:
            self._store.write(_part(lines.encode()), lines.encode())

    def merge(self) -> None:
        """Write all records as one file and remove those that it replaces."""
        parts = self._parts()
        if len(parts) < 2:
            return
        whole = b"".join(sorted({line for text in parts.values() for line in text.splitlines(True)}))
        self._store.write(_part(whole), whole)
        for key in parts:
            if key != _part(whole):
                self._store.delete(key)

    def _parts(self) -> dict[str, bytes]:
        """Return all files of records by key; looks again where another command merged them meanwhile."""
        for attempts_left in reversed(range(_ATTEMPTS)):
            keys = [key for key in self._store.list(f"{FOLDER}/") if key.endswith(".jsonl")]
            try:
                with ThreadPoolExecutor(_READERS) as readers:
                    return dict(zip(keys, readers.map(self._store.read, keys), strict=True))
            except MissingObjectError:
                if not attempts_left:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _record(self, line: bytes) -> Record:
        try:
            return Record(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise PhotoError(
                f"{self._store.uri}/{FOLDER}: holds a line that is no record. Remove the folder; results made so "
                "far are then replaced with --overwrite only."
            ) from error


def _part(content: bytes) -> str:
    return f"{FOLDER}/{hashlib.sha256(content).hexdigest()}.jsonl"
