"""The event log of a sweep in the store, from which an interrupted sweep is repeated.

    <storage>/sweeps/<sweep>/jobs/<sha256>.yaml     the resolved job of each submission
    <storage>/sweeps/<sweep>/events/000007.json     {"kind": ..., ...}

    submitted   job, code, data, format              a driver started
    rejected    index, values, reason                a candidate that is not run
    suggested   index, number, values, reason, costs a candidate that is run
    started     number, attempt, run, length, ...    a trial's process starts
    observed    number, attempt, step, metrics, ...  a validation
    exploited   number, origin, step, values         a trial copied weights and values of another
    ended       number, status, reason, seconds      finished, stopped or failed: its row is final
    exhausted   reason                               why fewer trials than asked for are run

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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator.console import Echo
from orchestrator.errors import SweepError
from orchestrator.records import RecordError, read_record
from orchestrator.sweeps.event_schema import AnyEvent
from orchestrator.sweeps.trial_table import Event, TrialTable, apply
from shards.errors import ShardsError
from shards.store import Store
from shards.store.checked import read_checked, read_named

_FORMAT = 2
"""Format of the events; those from before Ray Tune have none, and cannot be repeated."""
_FOLDER = "events"
_DIGITS = 6
"""Fewest digits in the name of an event; names of events from 1,000,000 on have more."""
_READERS = 16
_NOT_REPEATED = ("submitted", "started", "exhausted")
"""Events on which neither searcher nor scheduler depends."""


class EventLog:
    """The events of one sweep and their table, written by one driver at a time.

    `check` is called before each write; it raises if another driver has taken over.
    Raises SweepError if events are damaged, or from before Ray Tune.
    """

    def __init__(self, store: Store, echo: Echo = print, check: Callable[[], None] = lambda: None) -> None:
        self._store, self.echo, self._check = store, echo, check
        self._driver = uuid.uuid4().hex[:12]
        self.events = read_events(store)
        if any(event["kind"] == "submitted" and event.get("format") != _FORMAT for event in self.events):
            raise SweepError(
                "this sweep was started by an older version, which did not use Ray Tune, and cannot be continued. "
                "`mirage sweep report` and `mirage sweep export` work as before; to search again, give it another name."
            )
        self._recorded = deque(self.events)
        self.table = TrialTable()
        self.error: Exception | None = None
        """Why an event was not written; Ray Tune replaces errors of its callbacks by others."""

    def submit(self, job: bytes, **facts: Any) -> None:
        """Write the resolved job of a submission, and that its driver starts."""
        key = f"jobs/{hashlib.sha256(job).hexdigest()}.yaml"
        self._store.write(key, job)
        self._write({"kind": "submitted", "job": key, "format": _FORMAT, **facts})

    @property
    def next(self) -> Event | None:
        """The recorded event that has to happen next, None when all are repeated."""
        while self._recorded and self._recorded[0]["kind"] in _NOT_REPEATED:
            apply(self.table, self._recorded.popleft())
        return self._recorded[0] if self._recorded else None

    def add(self, kind: str, line: str = "", **facts: Any) -> Event:
        """Write an event and print `line`, or return the recorded event that it repeats.

        Raises SweepError if the recorded event is another one, or if another driver writes too.
        """
        try:
            event = self.next
            if event is None:
                event = self._write({"kind": kind, **facts})
                if line:
                    self.echo(line)
            elif (event["kind"], event.get("number")) == (kind, facts.get("number")):
                self._recorded.popleft()
            else:
                raise self.mismatch(event, f"`{kind}` of trial {facts.get('number', '-')}")
        except Exception as error:
            self.error = error
            raise
        apply(self.table, event)
        return event

    def mismatch(self, recorded: Event, found: str) -> SweepError:
        """Return the error that repeating a recorded event has another consequence."""
        return SweepError(
            f"the sweep cannot be continued: event {len(self.events) - len(self._recorded)} of its log is "
            f"`{recorded['kind']}` of trial {recorded.get('number', '-')}, but repeating it gives {found}. Another "
            "version of Ray Tune, or of the searcher, decides differently. Give the sweep another name to start again."
        )

    def _write(self, event: dict[str, Any]) -> Event:
        self._check()
        key = _key(len(self.events))
        event |= {"unix": round(time.time(), 3), "driver": self._driver}
        data = json.dumps(event, allow_nan=False).encode()
        if not self._store.create(key, data):
            raise SweepError(
                f"{self._store.uri}/{key} was written by another driver: this sweep runs twice. Stop one of them; "
                "finished work is kept."
            )
        self.events.append(json.loads(data))
        return self.events[-1]


def read_events(store: Store) -> list[Event]:
    """Return the events in their order. Raises SweepError if one is missing or damaged."""
    keys = sorted(
        (key for key in store.list(f"{_FOLDER}/") if key.endswith(".json")),
        key=lambda key: (len(key), key),  # the order of their numbers
    )
    with ThreadPoolExecutor(_READERS) as readers:
        reads = [readers.submit(read_checked, store, key, _parse, RecordError) for key in keys]
    events, table = [], TrialTable()
    for index, (key, read) in enumerate(zip(keys, reads, strict=True)):
        try:
            if key != _key(index):
                raise ValueError(f"event {index} is missing")
            event = read.result()
            apply(table, event)
            events.append(event)
        except (ValueError, LookupError) as error:
            raise SweepError(
                f"{store.uri}/{key}: the event log of the sweep is damaged ({_reason(error)}). "
                "Give the sweep another name to start again."
            ) from error
    return events


def _key(index: int) -> str:
    return f"{_FOLDER}/{index:0{_DIGITS}d}.json"


def _parse(content: bytes) -> Event:
    """Return an event, with the fields that no schema names. Raises RecordError."""
    read_record(AnyEvent, content)  # type: ignore[arg-type]  # a union is no class
    return read_record(dict[str, Any], content)


def _reason(error: Exception) -> str:
    return (
        str(error) if isinstance(error, ValueError) else "it names a trial or a step that no event before has"
    )


def newest_job(store: Store, events: Sequence[Event]) -> bytes:
    """Return the resolved job of the newest submission, as YAML. Raises SweepError if there is none."""
    submitted = [event for event in events if event["kind"] == "submitted"]
    if not submitted:
        raise SweepError(
            f"{store.uri} contains no sweep. Name a sweep by its id or by its folder in the store."
        )
    try:
        return read_named(store, submitted[-1]["job"])
    except ShardsError as error:
        raise SweepError(f"{store.uri}: the job of the sweep cannot be read: {error}") from error
