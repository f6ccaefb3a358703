"""The wall clock may move at any moment: what counts durations does not look at it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator import ownership
from orchestrator.config.job_types import JobOutcome
from orchestrator.errors import OwnedError
from orchestrator.maintenance.garbage_collection import find
from orchestrator.ownership import owned
from orchestrator.serving import active_model
from orchestrator.serving.active_model import ActiveModel
from orchestrator.training.checkpoint import Retention
from shards.store import LocalStore, retry
from tests.claims import assert_same_weights, final_weights
from tests.orchestrator.training.test_loop import Listener, run

DAY = 86400


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each look at the wall clock differ from the one before by a day or two."""
    moves, now, now_ns = itertools.cycle((0, DAY, -DAY)), time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: now() + next(moves))
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + 10**9 * next(moves))


def test_a_run_stops_resumes_and_ends_with_the_same_bits(
    small_job, small_data, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    job = small_job(checkpoint={"every_steps": 1, "keep": 2, "keep_hours": 1})
    run(job, small_data, tmp_path / "undisturbed")
    request.getfixturevalue("moving")
    assert run(job, small_data, tmp_path / "run", Listener(stop_after=3)) == JobOutcome("stopped", 3, 6)
    again = Listener()
    assert run(job, small_data, tmp_path / "run", again) == JobOutcome("finished", 6, 6)
    assert again.resumed_at() == [3]
    assert_same_weights(final_weights(tmp_path / "run"), final_weights(tmp_path / "undisturbed"))


def test_nobody_takes_over_from_an_owner_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moving: None
) -> None:
    monkeypatch.setattr(ownership, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(ownership, "_POLL_SECONDS", 0.005)
    folder = LocalStore(tmp_path)
    with owned(folder, "run r", print) as lease:
        for _ in range(3):
            with pytest.raises(OwnedError, match="is at work"), owned(folder, "run r", print):
                pass
        lease.check()


def test_garbage_is_as_old_as_the_clock_of_its_store_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".tmp-0123").write_bytes(b"half")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 30 * DAY)
    store = LocalStore(tmp_path)
    assert find(store, ()).garbage == ()
    assert len(find(store, (), grace_hours=0).garbage) == 1
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-0123"]


def test_checkpoints_of_the_future_are_young_and_kept_only_where_age_counts() -> None:
    records = {f"{step:09d}-x": {"metrics": {}, "written_unix": 1000 + step * DAY} for step in range(4)}
    assert Retention(1, 1, hours=1).kept(records, 1000) == records.keys()
    assert Retention(1, 1).kept(records, 1000) == {"000000003-x"}


def test_a_server_that_names_a_date_means_its_own_clock() -> None:
    date = {"date": "Mon, 30 Nov 2020 00:06:30 GMT", "retry-after": "Mon, 30 Nov 2020 00:07:00 GMT"}
    assert retry._retry_after(date) == 30
    assert retry._retry_after({"retry-after": date["retry-after"]}) == 0


def test_a_rejected_model_is_tried_again_after_a_minute_of_waiting(
    monkeypatch: pytest.MonkeyPatch, moving: None
) -> None:
    clock = iter((0.0, 59.0, 61.0))
    monkeypatch.setattr(active_model, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    model = ActiveModel(current=_Model("1"))  # type: ignore[arg-type]
    model.reject("2", "damaged")
    assert [model.may_try("2"), model.may_try("2")] == [False, True]


class _Model:
    def __init__(self, version: str) -> None:
        self.version = self.label = version
