"""Keep the record of a run in its folder in the store.

    history/status.json     a `Status`: a list of runs reads nothing else
    history/history.json    a `History`
    history/sheet           the newest comparison sheet, a JPEG file after the checksum of a pointer
    report.html             the report as its last process left it

Only the run's owner writes them, and no training decision depends on them.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import TypeVar

from orchestrator.history.record import History, Status
from orchestrator.records import RecordError, read_record
from shards.errors import CorruptObjectError
from shards.store import Store

T = TypeVar("T", History, Status)

log = logging.getLogger(__name__)

FOLDER = "history"
REPORT = "report.html"
STATUS, _HISTORY, _SHEET = f"{FOLDER}/status.json", f"{FOLDER}/history.json", f"{FOLDER}/sheet"


def read_history(store: Store) -> History | None:
    """Return the record of the run in `store`; None if there is none, with a warning if it is damaged."""
    return _read(store, _HISTORY, History)


def read_status(store: Store) -> Status | None:
    """Return the state of the run in `store`; None if it is not recorded, with a warning if it is damaged."""
    return _read(store, STATUS, Status)


def read_sheet(store: Store) -> bytes | None:
    """Return the run's newest sheet, a JPEG file; None if there is none."""
    try:
        return store.read_pointer(_SHEET)
    except CorruptObjectError as error:
        log.warning("%s", error)
        return None


def write_history(store: Store, history: History) -> None:
    """Write the whole record."""
    _write(store, _HISTORY, history)


def write_status(store: Store, status: Status) -> None:
    """Write the state."""
    _write(store, STATUS, status)


def write_sheet(store: Store, jpeg: bytes) -> None:
    """Write the newest sheet."""
    store.write_pointer(_SHEET, jpeg)


def _write(store: Store, key: str, record: History | Status) -> None:
    store.write_pointer(key, json.dumps(asdict(record), allow_nan=False).encode())


def _read(store: Store, key: str, kind: type[T]) -> T | None:
    try:
        data = store.read_pointer(key)
        return None if data is None else read_record(kind, data)
    except (CorruptObjectError, RecordError) as error:
        log.warning("%s/%s is left out: %s", store.uri, key, error)
        return None
