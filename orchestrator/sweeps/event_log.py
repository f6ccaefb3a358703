"""The book of a sweep in the store: every event is one object, written once and numbered.

    <storage>/sweeps/<sweep>/jobs/<sha256>.yaml     the resolved job of each submission
    <storage>/sweeps/<sweep>/events/000007.json     {"kind": ..., ...}

    submitted   job, code, data                      a driver began
    rejected    index, values, reason                a candidate that is not run
    suggested   index, number, values, reason, costs a candidate that is
    started     number, attempt, run, length, ...    a trial's workers are asked for
    observed    number, step, metrics, decisions     a validation, and whether its trial goes on from a rung
    ended       number, status, reason, ...          finished, stopped or failed: the row is final

A driver that is killed leaves whole events. Two drivers on one sweep would number alike: the second to write is told.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator.errors import SweepError
from shards.errors import ShardsError
from shards.store import Store

Event = Mapping[str, Any]

_FOLDER = "events"
_READERS = 16


class Book:
    """The events of one sweep; one driver writes at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._driver = uuid.uuid4().hex[:12]
        self.events: list[Event] = read(store)

    @property
    def uri(self) -> str:
        """Folder of the sweep in the store."""
        return self._store.uri

    def add(self, kind: str, **facts: Any) -> Event:
        """Write down an event; it is in the store when this returns. Raises SweepError when another driver writes."""
        event = {"kind": kind, **facts, "unix": round(time.time(), 3), "driver": self._driver}
        key = f"{_FOLDER}/{len(self.events):06d}.json"
        data = json.dumps(event, allow_nan=False).encode()
        if self._store.exists(key):
            raise SweepError(
                f"{self._store.uri}/{key} was written by another driver: this sweep runs twice. Stop one of them; "
                "what is done is kept."
            )
        self._store.write(key, data)
        self.events.append(json.loads(data))
        return self.events[-1]

    def keep(self, key: str, content: bytes) -> None:
        """Store a file with the sweep, once."""
        self._store.write(key, content)


def read(store: Store) -> list[Event]:
    """Return the events in their order. Raises SweepError where one is missing or damaged."""
    keys = [key for key in store.list(f"{_FOLDER}/") if key.endswith(".json")]
    with ThreadPoolExecutor(_READERS) as readers:
        contents = list(readers.map(store.read, keys))
    events = []
    for index, (key, content) in enumerate(zip(keys, contents, strict=True)):
        try:
            if key != f"{_FOLDER}/{index:06d}.json":
                raise ValueError(f"event {index} is missing")
            events.append(json.loads(content))
        except ValueError as error:
            raise SweepError(
                f"{store.uri}/{key}: the book of the sweep is damaged ({error}). "
                "Give the sweep another name to begin anew."
            ) from error
    return events


def job_of(store: Store, events: list[Event]) -> bytes:
    """Return the resolved job of the newest submission, as YAML. Raises SweepError when the folder holds no sweep."""
    submitted = [event for event in events if event["kind"] == "submitted"]
    if not submitted:
        raise SweepError(f"{store.uri} holds no sweep. Name one by its id, or by its folder in the store.")
    try:
        return store.read(submitted[-1]["job"])
    except ShardsError as error:
        raise SweepError(f"{store.uri}: the job of the sweep cannot be read: {error}") from error
