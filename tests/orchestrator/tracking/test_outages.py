"""Whatever MLflow does, and whenever: what a run reported arrives once, and each failure has its own words."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from orchestrator.errors import TrackingError
from orchestrator.tracking import background, runs
from orchestrator.tracking.background import Tracker, sync_all
from orchestrator.tracking.checkpoints import TrackedCheckpoint, sync_checkpoints
from orchestrator.tracking.client import connect
from orchestrator.tracking.failures import explain
from orchestrator.tracking.finished_runs import FinishedRun, keep
from orchestrator.tracking.journal import Journal
from tests.claims import wait_until
from tests.orchestrator.tracking.gate import Answer, Gate, artifacts

if TYPE_CHECKING:
    from tests.orchestrator.mlflow_server import Server

on_server = pytest.mark.xdist_group("mlflow")

FAULTS: dict[str, Any] = {
    "away": lambda path: "reset",
    "answers lost": lambda path: "lost",
    "500": lambda path: (500, b"oops"),
    "503": lambda path: (503, b""),
    "507": lambda path: (507, b"full"),
    "429": lambda path: (429, b""),
    "401": lambda path: (401, b"You are not authenticated"),
    "403": lambda path: (403, b"Permission denied"),
    "413": lambda path: (413, b"too large"),
    "login page": lambda path: (200, b"<html>Please log in"),
    "artifact store 500": artifacts((500, b"oops")),
    "artifact store resets": artifacts("reset"),
    "run deleted": None,
}
WORDS = {
    "away": "no answer. Start that server",
    "500": "the server fails with HTTP 500. The log of the server says why",
    "507": "no space is left",
    "429": "too many requests",
    "401": "Set MLFLOW_TRACKING_USERNAME",
    "403": "do not permit it",
    "413": "too large",
    "login page": "is not MLflow",
    "artifact store 500": "its artifact store fails with HTTP 500",
    "run deleted": "mlflow runs restore --run-id",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(background, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(background, "RETRY_SECONDS", (0.01, 0.05))


@pytest.fixture(scope="module")
def gate(server: Server) -> Iterator[Gate]:
    with Gate(server.uri) as opened:
        yield opened


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 0, 0)).save(out, "PNG")
    return out.getvalue()


def report(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.metrics(step, {"loss/total": float(step), "loss/l1": 1.0})
    tracker.image("sheet", png(), steps[-1])
    tracker.artifact(f"pictures/{steps[-1]}.txt", b"content")
    last = TrackedCheckpoint(f"s3://store/{steps[-1]}.json", steps[-1], {"average/psnr": 20.0})
    tracker.checkpoints([last], {"recipe": "fast"}, None)


def assert_arrived(uri: str, run_id: str, steps: int, parts: int = 3) -> None:
    """Assert that MLflow has each step once, one image and file of each of `parts`, and the newest checkpoint alone."""
    client = connect(uri)
    for name in ("loss/total", "loss/l1"):
        assert sorted(metric.step for metric in client.get_metric_history(run_id, name)) == list(range(steps))
    size = steps // parts
    images = [Path(file.path).name for file in client.list_artifacts(run_id, "images")]
    found = sorted(name.split("+")[2] for name in images if name.endswith(".png"))
    assert found == sorted(str(part * size - 1) for part in range(1, parts + 1))
    files = {Path(file.path).name for file in client.list_artifacts(run_id, "pictures")}
    assert files == {f"{part * size - 1}.txt" for part in range(1, parts + 1)}
    run = client.get_run(run_id)
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert [model.tags["mirage.checkpoint"] for model in models] == [f"s3://store/{steps - 1}.json"]
    assert run.info.status == "FINISHED"


# --- every failure at every moment -----------------------------------------------------------------------------


@on_server
@pytest.mark.parametrize("moment", ["start", "middle", "end"])
@pytest.mark.parametrize("kind", FAULTS)
def test_everything_arrives_once_whatever_fails_whenever(
    gate: Gate,
    server: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    moment: str,
) -> None:
    direct = connect(server.uri)
    run_id = runs.start_run(server.uri, "outages", f"{kind}, {moment}", {}, {})
    seen = 0

    def fail() -> None:
        nonlocal seen
        seen = len(caplog.records)
        if kind == "run deleted":
            direct.delete_run(run_id)
        else:
            gate.fault = FAULTS[kind]

    def recover() -> None:
        gate.fault = lambda path: None
        if kind == "run deleted":
            direct.restore_run(run_id)

    def next_failure() -> None:
        """Let the tracker fail once, and recover."""
        wait_until(lambda: len(caplog.records) > seen, "the failure is noticed")
        recover()

    try:
        if moment == "start":
            fail()
        tracker = Tracker(gate.uri, run_id, tmp_path)
        report(tracker, range(5))
        if moment == "start":
            next_failure()
        if moment == "middle":
            wait_until(
                lambda: direct.search_logged_models(
                    [direct.get_run(run_id).info.experiment_id], f"source_run_id = '{run_id}'"
                ),
                "the first part arrives",
            )
            fail()
        report(tracker, range(5, 10))
        if moment == "middle":
            next_failure()
        if moment == "end":
            fail()
        report(tracker, range(10, 15))
        tracker.end("FINISHED")
        arrived = tracker.close()
    finally:
        recover()
    assert arrived is (moment != "end")
    if moment == "end":
        assert f"the rest is in {tmp_path / run_id}: " in caplog.text
        assert "`mirage sync`" in caplog.text
        (synced,) = sync_all(gate.uri, tmp_path)
        assert synced.problem == ""
    if kind in WORDS:
        assert WORDS[kind] in caplog.text
    assert "is set aside" not in caplog.text
    assert_arrived(server.uri, run_id, 15)
    assert list(tmp_path.iterdir()) == []


@on_server
def test_the_next_process_sends_what_another_run_left(gate: Gate, server: Server, tmp_path: Path) -> None:
    gate.fault = FAULTS["away"]
    left = runs.start_run(server.uri, "outages", "left", {}, {})
    tracker = Tracker(gate.uri, left, tmp_path)
    report(tracker, range(3))
    tracker.end("KILLED")
    assert not tracker.close()
    gate.fault = lambda path: None
    other = Tracker(gate.uri, runs.start_run(server.uri, "outages", "next", {}, {}), tmp_path)
    wait_until(lambda: not (tmp_path / left).exists(), "the journal is sent")
    assert other.close()
    run = connect(server.uri).get_run(left)
    assert (run.data.metrics["loss/total"], run.info.status) == (2.0, "KILLED")


@on_server
def test_of_two_processes_that_sync_at_once_one_sends_each_line_once(
    gate: Gate, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # one request waits for the other process
    spool, run_id = tmp_path / "spool", runs.start_run(server.uri, "outages", "twice", {}, {})
    gate.fault = FAULTS["away"]
    tracker = Tracker(gate.uri, run_id, spool)
    report(tracker, range(3))
    tracker.end("FINISHED")
    assert not tracker.close()
    finished = FinishedRun(server.uri, "outages", "evaluated", "tests.name", {}, {}, {"psnr": 1.0})
    keep(spool, finished, {"report.md": b"good"})
    others: list[subprocess.CompletedProcess[str]] = []

    def sync_in_another_process(path: str) -> None:
        """Do so while this process sends, and has locked the journal."""
        if "log-batch" in path and not others:
            others.append(mirage_sync(server.uri, tmp_path))

    gate.fault = sync_in_another_process
    (synced,) = sync_all(gate.uri, spool)
    assert (synced.sent, synced.problem) == (5, "")
    (other,) = others
    assert (other.returncode, other.stdout) == (0, "evaluated: 2 records sent\n"), other.stderr
    assert_arrived(server.uri, run_id, 3, parts=1)
    assert runs.find_run(server.uri, "tests.name", "evaluated", "outages")
    assert mirage_sync(server.uri, tmp_path).stdout == "nothing waits\n"


def mirage_sync(uri: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run `mirage sync` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", "sync"],
        env={**os.environ, "MLFLOW_TRACKING_URI": uri, "MIRAGE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


@on_server
def test_a_resumed_run_asks_for_no_history(gate: Gate, server: Server, tmp_path: Path) -> None:
    run_id = runs.start_run(server.uri, "outages", "resumed", {}, {})
    for steps in (range(6), range(3, 9)):
        del gate.requests[:]
        tracker = Tracker(gate.uri, run_id, tmp_path)
        for step in steps:
            tracker.metrics(step, {f"loss/{name}": 1.0 for name in range(30)})
        assert tracker.close()
    asked = [path.partition("?")[0].rpartition("/")[2] for path in gate.requests]
    assert "get-history" not in asked
    assert asked.count("get") == 1
    assert asked.count("log-batch") <= 6
    for name in (0, 29):
        history = connect(server.uri).get_metric_history(run_id, f"loss/{name}")
        assert sorted(metric.step for metric in history) == list(range(9))


@on_server
def test_many_steps_are_sent_in_few_requests(gate: Gate, server: Server, tmp_path: Path) -> None:
    run_id = runs.start_run(server.uri, "outages", "batches", {}, {})
    gate.fault = FAULTS["away"]
    tracker = Tracker(gate.uri, run_id, tmp_path)
    for step in range(300):
        tracker.metrics(step, {f"loss/{name}": 1.0 for name in range(9)})
    assert not tracker.close()
    gate.fault = lambda path: None
    del gate.requests[:]
    assert background.sync(gate.uri, run_id, tmp_path) == 300
    assert len(gate.requests) <= 2 + 300 * 9 / background.BATCH_VALUES


@on_server
def test_a_file_that_a_proxy_finds_too_large_holds_nothing_else_back(
    gate: Gate, server: Server, tmp_path: Path
) -> None:
    run_id = runs.start_run(server.uri, "outages", "large", {}, {})
    gate.fault = lambda path: (413, b"") if "large.bin" in path else None
    tracker = Tracker(gate.uri, run_id, tmp_path)
    tracker.artifact("a/large.bin", b"x" * 100)
    report(tracker, range(3))
    tracker.end("FINISHED")
    assert not tracker.close()
    files = {file.path for file in connect(server.uri).list_artifacts(run_id)}
    assert files == {"images", "pictures"}
    gate.fault = lambda path: None
    assert [each.sent for each in sync_all(gate.uri, tmp_path)] == [1]
    assert_arrived(server.uri, run_id, 3, parts=1)


def test_how_an_earlier_process_ended_says_nothing_of_a_run_that_goes_on_elsewhere(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = runs.start_run(store, "outages", "elsewhere", {}, {})
    left = Journal.create(tmp_path, run_id)
    left.add(1, {"loss/total": 1.0})
    left.add_checkpoints({"checkpoints": [], "params": {}, "validated_on": None})
    left.end("KILLED")
    left.close()
    later = time.time_ns() + 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    runs.start_run(store, "outages", "elsewhere", {}, {}, resume_id=run_id)
    running = [TrackedCheckpoint("s3://store/5.json", 5, {"average/psnr": 20.0})]
    sync_checkpoints(connect(store), run_id, running, {}, None)
    assert [each.problem for each in sync_all(store, tmp_path)] == [""]
    run = connect(store).get_run(run_id)
    assert (run.info.status, run.data.metrics["loss/total"]) == ("RUNNING", 1.0)
    found = connect(store).search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert len(found) == 1


# --- a run or a database that is gone --------------------------------------------------------------------------


def left_behind(store: str, tmp_path: Path, name: str) -> str:
    """Return the id of a run whose journal waits, because the run was deleted."""
    run_id = runs.start_run(store, "outages", name, {"mirage.run_id": name}, {})
    connect(store).delete_run(run_id)
    tracker = Tracker(store, run_id, tmp_path, name=name)
    tracker.metrics(1, {"loss/total": 1.0})
    assert not tracker.close()
    return run_id


def test_a_deleted_run_waits_until_it_is_restored(store: str, tmp_path: Path) -> None:
    run_id = left_behind(store, tmp_path, "deleted")
    (synced,) = sync_all(store, tmp_path)
    assert f"run {run_id} was deleted there. Restore it" in synced.problem
    connect(store).restore_run(run_id)
    (synced,) = sync_all(store, tmp_path)
    assert (synced.sent, synced.problem) == (1, "")


@pytest.mark.parametrize("by", ["the next process", "sync"])
def test_what_a_lost_run_reported_goes_to_the_run_that_replaces_it(
    tmp_path: Path, store: str, by: str
) -> None:
    copy = tmp_path / "mlflow.db"
    source = sqlite3.connect(store.removeprefix("sqlite:///"))
    source.backup(target := sqlite3.connect(copy))
    source.close()
    target.close()
    uri, spool = f"sqlite:///{copy}", tmp_path / "spool"
    lost = runs.start_run(uri, "outages", "lost", {"mirage.run_id": "lost-1"}, {})
    tracker = Tracker(uri, lost, spool, name="lost-1")
    tracker.metrics(1, {"loss/total": 1.0})
    wait_until(lambda: connect(uri).get_run(lost).data.metrics, "the first step arrives")
    database = sqlite3.connect(copy)
    for table in ("metrics", "latest_metrics", "tags", "runs"):
        database.execute(f"DELETE FROM {table} WHERE run_uuid = '{lost}'")
    database.commit()
    database.close()
    tracker.metrics(2, {"loss/total": 2.0})
    assert not tracker.close()
    (synced,) = sync_all(uri, spool)
    assert "it has no run" in synced.problem
    assert "submit the job again" in synced.problem

    new = runs.start_run(uri, "outages", "lost", {"mirage.run_id": "lost-1"}, {})
    if by == "sync":
        assert [(each.name, each.problem) for each in sync_all(uri, spool)] == [("lost-1", "")]
    else:
        assert Tracker(uri, new, spool, name="lost-1").close()
    (metric,) = connect(uri).get_metric_history(new, "loss/total")
    assert (metric.step, list(spool.iterdir())) == (2, [])


@pytest.mark.parametrize("damage", ["no database", "schema", "full"])
def test_a_database_that_cannot_be_used_says_what_to_do(
    store: str, tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "mlflow.db"
    source = sqlite3.connect(store.removeprefix("sqlite:///"))
    source.backup(target := sqlite3.connect(copy))
    source.close()
    if damage == "no database":
        copy.write_bytes(b"not a database" * 100)
    if damage == "schema":
        target.execute("UPDATE alembic_version SET version_num = 'acf3f17fdcc7'")
    if damage == "full":
        full = "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        target.execute(f"CREATE TRIGGER full BEFORE INSERT ON runs {full}")
    target.commit()
    target.close()
    with pytest.raises(TrackingError) as refusal:
        runs.start_run(f"sqlite:///{copy}", "new", "run", {}, {})
    words = {"no database": "its database is damaged", "schema": "mlflow db upgrade", "full": "Free space"}
    assert words[damage] in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("The experiment 7 must be in the 'active' state. Current state is deleted.", "--experiment-id 7"),
        ("(psycopg2.OperationalError) could not extend file: No space left on device", "Free space there"),
        ("(sqlite3.OperationalError) attempt to write a readonly database", "Change the permissions"),
        ("(sqlite3.OperationalError) database is locked", "try again"),
        ("something new", "something new."),
    ],
)
def test_other_failures_have_their_words(message: str, says: str) -> None:
    assert says in explain(RuntimeError(message))
    assert "Start that server" not in explain(RuntimeError(message))


# --- a start that fails in its middle --------------------------------------------------------------------------


@on_server
@pytest.mark.parametrize("failing", ["log-batch", "log-inputs"])
def test_what_a_failed_start_left_out_is_added_by_the_next(gate: Gate, server: Server, failing: str) -> None:
    def fault(path: str) -> Answer:
        return (500, b"oops") if failing in path else None

    tags = {"mirage.run_id": f"half-{failing}"}
    gate.fault = fault
    try:
        if failing == "log-batch":
            with pytest.raises(TrackingError, match="HTTP 500"):
                runs.start_run(gate.uri, "outages", "half", tags, {"lr": 1})
        else:
            runs.start_run(gate.uri, "outages", "half", tags, {"lr": 1})
    finally:
        gate.fault = lambda path: None
    found = runs.find_run(server.uri, "mirage.run_id", f"half-{failing}")
    runs.start_run(gate.uri, "outages", "half", tags, {"lr": 2, "late": 3}, resume_id=found.id)
    params = connect(server.uri).get_run(found.id).data.params
    assert params == {"lr": "2" if failing == "log-batch" else "1", "late": "3"}


def test_a_journal_says_where_it_belongs(store: str, tmp_path: Path) -> None:
    run_id = left_behind(store, tmp_path, "named")
    (file,) = (tmp_path / run_id).glob("*.jsonl")
    assert json.loads(file.read_text().splitlines()[0]) == {"server": store, "run": "named"}
