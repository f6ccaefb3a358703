"""The event log of a sweep in the store, from which an interrupted sweep is repeated.

    <storage>/sweeps/<sweep>/jobs/<sha256>.yaml     the resolved job of each submission
    <storage>/sweeps/<sweep>/events/000007.json     {"kind": ..., ...}, see `event_schema`

Every event is one object, written once, so a killed driver leaves complete events only. Nothing of Ray Tune is ever
restored from a pickle: a new driver repeats the events of earlier ones with a fresh searcher and a fresh scheduler. The
same code runs as before, and `EventLog.add` returns recorded events in their order instead of writing new ones. Once
all are repeated, searcher and scheduler have the state that they had.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from pydantic import Field

from orchestrator.console import Echo
from orchestrator.errors import SweepError
from orchestrator.records import RecordError, read_record
from orchestrator.sweeps.event_schema import Exhausted, Started, Submitted, SweepEvent
from orchestrator.sweeps.trial_table import TrialTable
from shards.errors import ShardsError
from shards.store import Store
from shards.store.checked import read_checked, read_named

E = TypeVar("E", bound=SweepEvent)

_FORMAT = 2
"""Format of the events; those from before Ray Tune have none, and cannot be repeated."""
_FOLDER = "events"
_DIGITS = 6
"""Fewest digits in the name of an event; names of events from 1,000,000 on have more."""
_READERS = 16


class EventLog:
    """The events of one sweep and their table, written by one driver at a time.

    `check` is called before each write; it raises if another driver has taken over.
    Raises SweepError if events are damaged, or from before Ray Tune.
    """

    def __init__(self, store: Store, echo: Echo = print, check: Callable[[], None] = lambda: None) -> None:
        self._store, self.echo, self._check = store, echo, check
        self._driver = uuid.uuid4().hex[:12]
        self.events = read_events(store)
        if any(isinstance(event, Submitted) and event.format != _FORMAT for event in self.events):
            raise SweepError(
                "this sweep was started by an older version, which did not use Ray Tune, and cannot be continued. "
                "`mirage sweep report` and `mirage sweep export` work as before; to search again, give it another name."
            )
        self._recorded = deque(self.events)
        self.table = TrialTable()
        self.error: Exception | None = None
        """Why an event was not written; Ray Tune replaces errors of its callbacks by others."""

    def submit(self, job: bytes, code: str, data: Sequence[str]) -> None:
        """Write the resolved job of a submission, and that its driver starts."""
        key = f"jobs/{hashlib.sha256(job).hexdigest()}.yaml"
        self._store.write(key, job)
        self._write(Submitted(key, _FORMAT, code, data))

    @property
    def next(self) -> SweepEvent | None:
        """The recorded event that has to happen next, None when all are repeated.

        Neither searcher nor scheduler depends on those that are skipped.
        """
        while self._recorded and isinstance(self._recorded[0], Submitted | Started | Exhausted):
            self.table.apply(self._recorded.popleft())
        return self._recorded[0] if self._recorded else None

    def add(self, event: E) -> E:
        """Write an event and print its line, or return the recorded event that it repeats.

        Raises SweepError if the recorded event is another one, or if another driver writes too.
        """
        try:
            recorded = self.next
            if recorded is None:
                event = self._write(event)
                if line := str(event):
                    self.echo(line)
            elif isinstance(recorded, type(event)) and _trial(recorded) == _trial(event):
                event = recorded
                self._recorded.popleft()
            else:
                raise self.mismatch(recorded, f"`{event.kind}` of trial {_trial(event)}")
        except Exception as error:
            self.error = error
            raise
        self.table.apply(event)
        return event

    def mismatch(self, recorded: SweepEvent, found: str) -> SweepError:
        """Return the error that repeating a recorded event has another consequence."""
        return SweepError(
            f"the sweep cannot be continued: event {len(self.events) - len(self._recorded)} of its log is "
            f"`{recorded.kind}` of trial {_trial(recorded)}, but repeating it gives {found}. Another "
            "version of Ray Tune, or of the searcher, decides differently. Give the sweep another name to start again."
        )

    def _write(self, event: E) -> E:
        self._check()
        key = _key(len(self.events))
        stamp = {"unix": round(time.time(), 3), "driver": self._driver}
        data = json.dumps({**asdict(event), **stamp}, allow_nan=False).encode()
        if not self._store.create(key, data):
            raise SweepError(
                f"{self._store.uri}/{key} was written by another driver: this sweep runs twice. Stop one of them; "
                "finished work is kept."
            )
        written: E = _parse(data)
        self.events.append(written)
        return written


def _trial(event: SweepEvent) -> int | str:
    return getattr(event, "number", "-")


def read_events(store: Store) -> list[SweepEvent]:
    """Return the events in their order. Raises SweepError if one is missing or damaged."""
    keys = in_order(key for key in store.list(f"{_FOLDER}/") if key.endswith(".json"))
    with ThreadPoolExecutor(_READERS) as readers:
        reads = [readers.submit(read_checked, store, key, _parse, RecordError) for key in keys]
    table = TrialTable()
    events: list[SweepEvent] = []
    for index, (key, read) in enumerate(zip(keys, reads, strict=True)):
        try:
            if key != _key(index):
                raise ValueError(f"event {index} is missing")
            events.append(read.result())
            table.apply(events[-1])
        except (ValueError, LookupError) as error:
            reason = (
                error
                if isinstance(error, ValueError)
                else "it names a trial or a step that no event before has"
            )
            raise SweepError(
                f"{store.uri}/{key}: the event log of the sweep is damaged ({reason}). "
                "Give the sweep another name to start again."
            ) from error
    return events


def in_order(keys: Iterable[str]) -> list[str]:
    """Return the keys of events in the order of their numbers, which have more than six digits from a million on."""
    return sorted(keys, key=lambda key: (len(key), key))


def _key(index: int) -> str:
    return f"{_FOLDER}/{index:0{_DIGITS}d}.json"


_EVENT: Any = Annotated[SweepEvent, Field(discriminator="kind")]
"""One object, because the adapter of a record is kept by the identity of its type."""


def _parse(content: bytes) -> Any:
    return read_record(_EVENT, content)


def newest_job(store: Store, events: Sequence[SweepEvent]) -> bytes:
    """Return the resolved job of the newest submission, as YAML. Raises SweepError if there is none."""
    submitted = [event for event in events if isinstance(event, Submitted)]
    if not submitted:
        raise SweepError(
            f"{store.uri} contains no sweep. Name a sweep by its id or by its folder in the store."
        )
    try:
        return read_named(store, submitted[-1].job)
    except ShardsError as error:
        raise SweepError(f"{store.uri}: the job of the sweep cannot be read: {error}") from error
