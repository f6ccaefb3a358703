"""Tracking sends lines by batches, and a resumed run asks the server for no history of its metrics."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.tracking import background, runs
from orchestrator.tracking.background import BATCH_VALUES, sync
from orchestrator.tracking.client import connect
from orchestrator.tracking.journal import Journal
from tests.scale.growth import stays_flat

LINES = [30, 120, 480]
VALUES = {f"metric/{index}": 1.0 for index in range(9)}


class CountingClient:
    """An `MlflowClient` that counts the calls of each method."""

    def __init__(self, client: Any, calls: Counter[str]) -> None:
        self._client, self._calls = client, calls

    def __getattr__(self, name: str) -> Any:
        self._calls[name] += 1
        return getattr(self._client, name)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counted: Counter[str] = Counter()
    monkeypatch.setattr(background, "connect", lambda uri: CountingClient(connect(uri), counted))
    return counted


def left_behind(spool: Path, run_id: str, steps: range) -> None:
    """Leave a journal with these steps, as a process that was killed does."""
    journal = Journal.create(spool, run_id)
    for step in steps:
        journal.add(step, VALUES)
    journal.close()


def new_run(store: str) -> str:
    return runs.start_run(store, "scale", "tracking", {}, {})


def test_a_request_carries_hundreds_of_values(store: str, tmp_path: Path, calls: Counter[str]):
    for lines in LINES:
        run_id = new_run(store)
        left_behind(tmp_path, run_id, range(lines))
        calls.clear()
        assert sync(store, run_id, tmp_path) == lines
        batches = -(-lines // (BATCH_VALUES // len(VALUES)))
        assert calls == {"get_run": 1, "log_batch": batches}


def test_no_search_for_cycles_interrupts_a_request_to_a_local_store(store: str, tmp_path: Path):
    """The objects of MLflow's store would start about eighty; afterwards they start again."""
    run_id = new_run(store)
    left_behind(tmp_path, run_id, range(400))

    def searches() -> int:
        return sum(generation["collections"] for generation in gc.get_stats())

    assert gc.isenabled()
    before = searches()
    assert sync(store, run_id, tmp_path) == 400
    assert searches() - before < 40
    assert gc.isenabled()


def test_a_resume_costs_the_same_however_long_the_run_has_been(
    store: str, tmp_path: Path, calls: Counter[str]
):
    def resume(lines: int) -> int:
        run_id = new_run(store)
        left_behind(tmp_path, run_id, range(lines))
        sync(store, run_id, tmp_path)
        left_behind(tmp_path, run_id, range(lines, lines + 5))
        calls.clear()
        tracker = background.Tracker(store, run_id, tmp_path)
        for step in range(lines, lines + 10):  # five of them again
            tracker.metrics(step, VALUES)
        assert tracker.close(120)
        assert connect(store).get_run(run_id).data.metrics.keys() == VALUES.keys()
        assert calls["get_metric_history"] == 0
        return calls["get_run"] + calls["log_batch"]

    assert max(stays_flat(resume, LINES)) <= 12


OPERATIONS = st.lists(
    st.sampled_from(
        ["metrics", "image", "same image", "artifact", "checkpoints", "status", "send", "refuse"]
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS)
def test_nothing_that_left_the_journal_counts_as_waiting(tmp_path: Path, operations: list[str]):
    """Whatever was sent, or refused and set aside: it takes no part of the room of what waits."""
    journal = Journal.create(tmp_path, "run", {"server": "x", "run": "y"})

    def empty(leave: str) -> None:
        steps = True
        while steps:
            steps, mark = journal.pending(BATCH_VALUES)
            journal.sent(mark)
        files = [image.file for image in journal.images()] + journal.artifacts()
        files += [path for path in journal.folder.glob("*.json")]
        for file in files:
            if leave == "send":
                journal.remove(file)
            else:
                journal.set_aside(file, "refused")

    try:
        for number, operation in enumerate([*operations, "refuse"]):
            if operation == "metrics":
                journal.add(number, VALUES)
            elif operation in ("image", "same image"):
                journal.add_image("sheet", b"x" * (100 + number), number if operation == "image" else 0)
            elif operation == "artifact":
                journal.add_artifact(f"folder/{number % 3}.txt", b"y" * (50 + number))
            elif operation == "checkpoints":
                journal.add_checkpoints({"checkpoints": [], "n": "z" * number})
            elif operation == "status":
                journal.end("FINISHED")
            else:
                empty(operation)
                assert journal.waiting_bytes() == 0
    finally:
        journal.discard()
