"""Events of a sweep that are damaged or of another shape: one error that names the event."""

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import records
from orchestrator.errors import SweepError
from orchestrator.sweeps import event_log
from orchestrator.sweeps.event_log import EventLog, read_events
from orchestrator.sweeps.event_schema import Rejected
from orchestrator.sweeps.trial_table import table_of
from shards.store import LocalStore, checked
from tests.orchestrator.sweeps.simulated import MemoryStore

COSTS = {"parameters": 1, "parameters_at_inference": 1, "macs_224": 1, "training_memory": 1}
EVENTS: list[dict[str, Any]] = [
    {"kind": "submitted", "job": "jobs/a.yaml", "format": 2},
    {"kind": "suggested", "index": 0, "number": 0, "values": {"a": 1}, "reason": "first", "costs": COSTS},
    {
        "kind": "started",
        "number": 0,
        "attempt": 1,
        "run": "r",
        "tracked": "t",
        "devices": 1,
        "length": 9,
        "whole": True,
    },
    {"kind": "observed", "number": 0, "attempt": 1, "step": 3, "seconds": 1.5, "metrics": {"val/psnr": 20}},
    {"kind": "suggested", "index": 1, "number": 1, "values": {"a": 2}, "reason": "second", "costs": COSTS},
    {"kind": "exploited", "number": 1, "origin": 0, "step": 3, "values": {"a": 3}},
    {"kind": "rejected", "index": 2, "values": {}, "reason": "no"},
    {"kind": "ended", "number": 0, "status": "finished", "reason": "done", "seconds": 2.5},
    {"kind": "exhausted", "reason": "all"},
]
ODD = ["x", -1, 1.5, True, None, [], {}, [1], {"a": []}, 2**70, 99]


@pytest.fixture(autouse=True, scope="module")
def no_pause() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checked, "_FIRST_PAUSE_SECONDS", 0.0)
        yield


def write(folder: Path, events: list[Any]) -> LocalStore:
    (folder / "events").mkdir()
    for index, event in enumerate(events):
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        (folder / "events" / f"{index:06d}.json").write_bytes(data)
    return LocalStore(folder)


def test_whole_events_are_read_also_with_fields_that_this_version_does_not_know(tmp_path: Path):
    events = [{**event, "newer": 1} for event in copy.deepcopy(EVENTS)]
    events[1]["costs"]["newer"] = 1
    read = [asdict(event) for event in read_events(write(tmp_path, events))]
    assert all(event.items() <= found.items() for event, found in zip(EVENTS, read, strict=True))


def test_events_whose_numbers_have_more_digits_follow_the_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(event_log, "_DIGITS", 1)  # so that the tenth event is what the millionth is otherwise
    store = MemoryStore()
    log = EventLog(store, echo=lambda line: None)
    log.submit(b"job", code="", data=[])
    for index in range(25):
        log.add(Rejected({}, "no", index))
    again = EventLog(store, echo=lambda line: None)
    assert [event.index for event in again.events if isinstance(event, Rejected)] == list(range(25))
    del store.content["events/9.json"]
    with pytest.raises(SweepError, match="event 9 is missing"):
        read_events(store)


PLACES = [
    (index, name) for index, event in enumerate(EVENTS) for name in event if name not in ("index", "format")
]


@given(place=st.sampled_from(PLACES), value=st.sampled_from([..., *ODD]))
@settings(max_examples=150, deadline=None)
def test_any_field_that_is_missing_or_of_another_type_is_read_or_told(tmp_path_factory, place, value: object):
    events = copy.deepcopy(EVENTS)
    index, name = place
    if value is ...:
        del events[index][name]
    else:
        events[index][name] = value
    store = write(tmp_path_factory.mktemp("sweep"), events)
    with suppress(SweepError):
        table = table_of(read_events(store))
        assert value is not ...
        assert [(row.psnr, row.curve, row.wall_seconds) for row in table.ranked()]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"\xff", b"[" * 50_000, b"{", b'{"kind": "new"}', b'{"kind": []}']
)
def test_an_object_that_is_no_event_is_named(tmp_path: Path, content: bytes):
    with pytest.raises(SweepError, match=r"000001\.json: the event log of the sweep is damaged"):
        read_events(write(tmp_path, [EVENTS[0], content]))


def test_reading_many_events_keeps_one_reader_of_their_type(tmp_path: Path) -> None:
    store = write(tmp_path, EVENTS)
    read_events(store)
    before = records._adapter.cache_info().currsize
    read_events(store)
    assert records._adapter.cache_info().currsize == before
