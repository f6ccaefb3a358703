"""Index of the results in a folder or bucket, stored there, so that no photograph is restored twice.

It lies in `.mirage-restored/`: text files with one JSON record per line. A record is written before its result. A
result is complete if a record names its photograph, model and settings, and its bytes have the digest in the record;
anything else that a killed process left is restored again.

Each writer adds files named by their content; `merge` combines them into one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

from orchestrator.errors import PhotoError
from orchestrator.records import RecordError, read_record
from shards.errors import MissingObjectError
from shards.store import Store
from shards.store.checked import read_named

FOLDER = ".mirage-restored"
_README = f"{FOLDER}/README.txt"
_ABOUT = b"""The photographs that `mirage restore` has restored into this folder, with model and settings.
It skips them the next time. Without these files it does not recognise its results, and refuses to replace them.
"""
_READERS = 16
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """How one result was computed. Digests are SHA-256 in hexadecimal."""

    name: str
    """Key of the result."""
    photograph: str
    """Digest of the photograph's file."""
    settings: str
    """Digest of model and settings."""
    result: str
    """Digest of the restored file."""


class ResultIndex:
    """The records of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def prepare(self) -> None:
        """Create the bucket or folder and the README. Raises StoreError if it cannot be written."""
        self._store.ensure_bucket()
        if not self._store.exists(_README):  # one of another version may differ
            self._store.write(_README, _ABOUT)

    def read(self) -> dict[str, tuple[ResultRecord, ...]]:
        """Return all records by the key of their result."""
        found: dict[str, tuple[ResultRecord, ...]] = {}
        for text in self._parts().values():
            for line in text.splitlines():
                record = self._record(line)
                found[record.name] = (*found.get(record.name, ()), record)
        return found

    def add(self, records: Sequence[ResultRecord]) -> None:
        """Write records; call it before their results are written."""
        lines = "".join(json.dumps(asdict(record), sort_keys=True) + "\n" for record in records)
        if lines:
            self._store.write(_part(lines.encode()), lines.encode())

    def merge(self) -> None:
        """Write all records to one file and remove the others."""
        parts = self._parts()
        if len(parts) < 2:
            return
        whole = b"".join(sorted({line for text in parts.values() for line in text.splitlines(True)}))
        self._store.write(_part(whole), whole)
        for key in parts:
            if key != _part(whole):
                self._store.delete(key)

    def _parts(self) -> dict[str, bytes]:
        """Return the content of all files by key; lists again if another process merged them meanwhile."""
        for attempts_left in reversed(range(_ATTEMPTS)):
            keys = [key for key in self._store.list(f"{FOLDER}/") if key.endswith(".jsonl")]
            try:
                with ThreadPoolExecutor(_READERS) as readers:
                    return dict(zip(keys, readers.map(partial(read_named, self._store), keys), strict=True))
            except MissingObjectError:
                if not attempts_left:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _record(self, line: bytes) -> ResultRecord:
        try:
            return read_record(ResultRecord, line, names=True)
        except RecordError as error:
            raise PhotoError(
                f"{self._store.uri}/{FOLDER}: has a line that is not a record. Remove the folder; the existing "
                "results are then replaced only with --overwrite."
            ) from error


def _part(content: bytes) -> str:
    return f"{FOLDER}/{hashlib.sha256(content).hexdigest()}.jsonl"
