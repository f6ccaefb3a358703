"""Tracking never hurts training: what a run reports arrives once, whoever dies in between."""

from __future__ import annotations

import io
import logging
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from orchestrator.errors import TrackingError
from orchestrator.tracking import journal, runs
from orchestrator.tracking.client import connect
from orchestrator.tracking.failures import one_line
from orchestrator.tracking.journal import Journal

if TYPE_CHECKING:
    from tests.orchestrator.mlflow_server import Server
from orchestrator.masking import without_password
from orchestrator.tracking import background
from orchestrator.tracking.uri import page_command, resolve_tracking_uri
from tests.claims import assert_one_clear_error, wait_until


@pytest.fixture
def run_id(store: str) -> str:
    return runs.start_run(store, "5deg", "run", {}, {})


@pytest.fixture
def nobody(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a server that is down."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return f"http://127.0.0.1:{closed_port}"


@pytest.fixture
def black_hole(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3600")  # longer than a test may take
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def png(shade: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 0, 0)).save(out, "PNG")
    return out.getvalue()


def history(uri: str, run_id: str, name: str = "loss/total") -> list[tuple[int, float]]:
    recorded = connect(uri).get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in recorded)


def pictures(uri: str, run_id: str) -> list[str]:
    listed = connect(uri).list_artifacts(run_id, "images")
    return sorted(
        Path(file.path).name.split("+timestamp")[0] for file in listed if file.path.endswith(".png")
    )


def report(tracker: background.Tracker, steps: range, offset: float = 0.0) -> None:
    for step in steps:
        tracker.metrics(step, {"loss/total": step + offset})


# --- driver ----------------------------------------------------------------------------------------------


def test_a_run_keeps_what_the_driver_says(store: str, tmp_path: Path) -> None:
    (tmp_path / "sheet.png").write_bytes(png())
    params = {"model.dim": 24, **{f"key{i}": i for i in range(150)}}  # more than MLflow takes at a time
    run_id = runs.start_run(store, "5deg", "tiny", {"mirage.run": "tiny-1"}, params)
    background.log_metrics(store, run_id, 7, {"test/rain/psnr": 31.5})
    background.log_metrics(store, run_id, 7, {"test/rain/psnr": 31.5})
    runs.log_artifacts(
        store, run_id, {"job.yaml": b"name: 5deg\n", "pictures/sheet.png": tmp_path / "sheet.png"}
    )
    assert not runs.is_finished(store, run_id)
    runs.end_run(store, run_id, "FINISHED")

    run = connect(store).get_run(run_id)
    assert run.info.run_name == "tiny"
    assert run.data.params == {key: str(value) for key, value in params.items()}
    assert history(store, run_id, "test/rain/psnr") == [(7, 31.5)]
    assert runs.is_finished(store, run_id)
    everything = Path(store.removeprefix("sqlite:///")).parent / "mlartifacts"
    (artifacts,) = (
        folder for folder in everything.rglob(run_id) if folder.is_dir()
    )  # others' runs are there too
    assert [path.read_bytes() for path in artifacts.rglob("job.yaml")] == [b"name: 5deg\n"]
    assert [path.read_bytes() for path in artifacts.rglob("pictures/sheet.png")] == [png()]


def test_a_run_is_found_by_its_tag_and_resumed_as_itself(store: str) -> None:
    first = runs.start_run(store, "resume", "run", {"mirage.run": "r-1"}, {"lr": 1})
    runs.end_run(store, first, "KILLED")
    assert runs.find_run(store, "mirage.run", "r-1", "resume").id == first
    again = runs.start_run(store, "resume", "run", {"mirage.code_version": "2"}, {"lr": 2}, resume_id=first)
    run = connect(store).get_run(again)
    assert again == first
    assert run.info.status == "RUNNING"
    assert run.data.params == {"lr": "1"}
    assert run.data.tags["mirage.code_version"] == "2"


def test_no_run_is_found_where_none_is(store: str) -> None:
    assert runs.find_run(store, "mirage.run", "never", "5deg") is None
    assert runs.find_run(store, "mirage.run", "r-1", "no such experiment") is None


def test_an_unreachable_server_is_one_line_without_its_password(nobody: str) -> None:
    with pytest.raises(TrackingError) as refusal:
        runs.start_run(nobody.replace("//", "//me:secret@"), "5deg", "run", {}, {})
    assert_one_clear_error(refusal.value, nobody.removeprefix("http://"), "unset MLFLOW_TRACKING_URI")
    assert "secret" not in str(refusal.value)


@pytest.mark.slow
def test_two_drivers_may_meet_on_a_new_store(tmp_path: Path) -> None:
    start = (
        "import sys; from orchestrator.tracking import runs; runs.start_run(sys.argv[1], 'e', 'r', {}, {})"
    )
    command = [sys.executable, "-c", start, f"sqlite:///{tmp_path}/new.db"]
    drivers = [subprocess.Popen(command) for _ in range(2)]
    assert [driver.wait() for driver in drivers] == [0, 0]


def test_importing_the_module_does_not_import_mlflow() -> None:
    check = (
        "import sys; from orchestrator.tracking import background, runs; sys.exit('mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


# --- where -----------------------------------------------------------------------------------------------


def test_runs_go_to_the_home_folder_unless_something_else_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_tracking_uri() == f"sqlite:///{tmp_path}/.mirage/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert resolve_tracking_uri() == "http://mlflow:5000"
    assert resolve_tracking_uri("http://other:5000") == "http://other:5000"


def test_a_relative_database_stands_below_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    assert resolve_tracking_uri("sqlite:///runs.db") == f"sqlite:///{tmp_path}/runs.db"
    assert resolve_tracking_uri(f"sqlite:///{tmp_path}/runs.db") == f"sqlite:///{tmp_path}/runs.db"


def test_the_page_command_avoids_a_taken_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(page_command(f"sqlite:///{tmp_path}/.mirage/mlflow.db"))
    assert words[2:4] == ["--backend-store-uri", "sqlite:///.mirage/mlflow.db"]
    port = int(words[words.index("--port") + 1])
    with socket.create_server(("127.0.0.1", port)):
        words = shlex.split(page_command(f"sqlite:///{tmp_path}/.mirage/mlflow.db"))
        assert int(words[words.index("--port") + 1]) > port
    assert page_command("http://me:secret@mlflow:5000") == "http://***@mlflow:5000"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:pa/ss@w/rd@mlflow:5000/team", "http://***@mlflow:5000/team"),
        ("http://token@mlflow:5000", "http://***@mlflow:5000"),
        (
            "no answer from http://me:a@b@mlflow, ask ops@here",
            "no answer from http://***@mlflow, ask ops@here",
        ),
        ("http://mlflow:5000/team", "http://mlflow:5000/team"),
        ("http://mlflow/models/a@b", "http://mlflow/models/a@b"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_what_is_shown_of_an_address_has_no_password(uri: str, shown: str) -> None:
    assert without_password(uri) == shown


def test_a_long_error_is_not_cut_inside_a_password() -> None:
    told = one_line(OSError("x" * 170 + " http://me:" + "secret" * 10 + "@mlflow"))
    assert "secret" not in told


# --- rank 0 ----------------------------------------------------------------------------------------------


def test_numbers_and_pictures_arrive(store: str, run_id: str, tmp_path: Path) -> None:
    tracker = background.Tracker(store, run_id, tmp_path)
    report(tracker, range(2000))
    tracker.image("samples/sheet", png(), 500)
    assert tracker.close()
    assert history(store, run_id) == [(step, float(step)) for step in range(2000)]
    assert pictures(store, run_id) == ["samples~sheet+step+500"]
    assert list(tmp_path.iterdir()) == []


def test_a_number_has_the_time_at_which_it_was_reported(store: str, run_id: str, tmp_path: Path) -> None:
    before = time.time_ns() // 1_000_000
    tracker = background.Tracker(store, run_id, tmp_path)
    report(tracker, range(1))
    reported = time.time_ns() // 1_000_000
    assert tracker.close()
    (metric,) = connect(store).get_metric_history(run_id, "loss/total")
    assert before <= metric.timestamp <= reported


def test_a_number_that_is_not_finite_becomes_nan(store: str, run_id: str, tmp_path: Path) -> None:
    tracker = background.Tracker(store, run_id, tmp_path)
    tracker.metrics(1, {"loss/total": math.inf, "loss/l1": math.nan, "loss/spd": 0.5})
    assert tracker.close()
    assert math.isnan(history(store, run_id, "loss/total")[0][1])
    assert math.isnan(history(store, run_id, "loss/l1")[0][1])
    assert history(store, run_id, "loss/spd") == [(1, 0.5)]


def test_a_resumed_run_records_each_step_once(store: str, run_id: str, tmp_path: Path) -> None:
    """The second process resumes at 500, as after a crash at 540 with a checkpoint at 500."""
    for steps, rounding in ((range(0, 540), 0.0), (range(500, 600), 1e-6)):
        tracker = background.Tracker(store, run_id, tmp_path)
        report(tracker, steps, rounding)
        tracker.image("sheet", png(), 500)
        assert tracker.close()
    recorded = history(store, run_id)
    assert [step for step, _ in recorded] == list(range(600))
    assert recorded[539] == (539, 539.0)
    assert recorded[540] == (540, 540.0 + 1e-6)
    assert pictures(store, run_id) == ["sheet+step+500"]


def test_an_outage_costs_nothing_and_is_replayed(
    store: str, run_id: str, nobody: str, tmp_path: Path
) -> None:
    tracker = background.Tracker(nobody, run_id, tmp_path)
    report(tracker, range(300))
    tracker.image("sheet", png(), 299)
    assert not tracker.close()
    assert history(store, run_id) == []

    assert background.sync(store, run_id, tmp_path) == 301
    assert history(store, run_id) == [(step, float(step)) for step in range(300)]
    assert pictures(store, run_id) == ["sheet+step+299"]
    assert background.sync(store, run_id, tmp_path) == 0


def test_a_server_that_never_answers_does_not_delay_a_step(
    run_id: str, black_hole: socket.socket, tmp_path: Path
) -> None:
    tracker = background.Tracker(f"http://127.0.0.1:{black_hole.getsockname()[1]}", run_id, tmp_path)
    report(tracker, range(1))
    connection, _ = black_hole.accept()  # from now on the sender waits for its answer
    with connection:
        report(tracker, range(1, 1000))
        assert not tracker.close(timeout=0.1)


def test_a_killed_writer_loses_nothing_that_it_reported(
    store: str, run_id: str, nobody: str, tmp_path: Path
) -> None:
    victim = (
        "import sys, time; from pathlib import Path; from orchestrator.tracking.background import Tracker\n"
        "tracker = Tracker(sys.argv[1], sys.argv[2], Path(sys.argv[3]))\n"
        "for step in range(100): tracker.metrics(step, {'loss/total': float(step)})\n"
        "print('reported', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", victim, nobody, run_id, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reported\n"
        process.send_signal(signal.SIGKILL)
    successor = background.Tracker(store, run_id, tmp_path)
    report(successor, range(90, 120))
    assert successor.close()
    assert history(store, run_id) == [(step, float(step)) for step in range(120)]
    assert list(tmp_path.iterdir()) == []


def test_sync_leaves_a_living_writer_alone(store: str, run_id: str, tmp_path: Path) -> None:
    living = Journal.create(tmp_path, run_id)
    living.add(1, {"loss/total": 1.0})
    assert background.sync(store, run_id, tmp_path) == 0
    living.close()
    assert background.sync(store, run_id, tmp_path) == 1


def test_a_line_cut_short_by_death_is_left_out(store: str, run_id: str, tmp_path: Path) -> None:
    left = Journal.create(tmp_path, run_id)
    left.add(1, {"loss/total": 1.0})
    left.close()
    with left.path.open("ab") as file:
        file.write(b'{"step": 2, "time": 17')
    assert background.sync(store, run_id, tmp_path) == 1
    assert history(store, run_id) == [(1, 1.0)]


def test_a_refused_picture_does_not_hold_back_numbers(store: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where the artifact folder should be")
    client = connect(store)
    experiment = client.create_experiment(str(tmp_path), artifact_location=(tmp_path / "file" / "x").as_uri())
    run_id = client.create_run(experiment).info.run_id
    tracker = background.Tracker(store, run_id, tmp_path / "spool")
    tracker.image("sheet", png(), 1)
    report(tracker, range(10))
    assert not tracker.close()
    assert len(history(store, run_id)) == 10


def test_training_goes_on_where_nothing_can_be_written(
    store: str, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "orchestrator.tracking.background"):
        tracker = background.Tracker(store, run_id, tmp_path / "file")
        report(tracker, range(3))
        tracker.image("sheet", png(), 1)
    assert not tracker.close()
    assert "nothing is tracked: cannot write" in caplog.text


def test_a_full_journal_takes_no_more_disk(
    run_id: str,
    nobody: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 2000)
    tracker = background.Tracker(nobody, run_id, tmp_path)
    report(tracker, range(500))
    tracker.image("sheet", os.urandom(3000), 1)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert 1500 < size <= 2000
    assert caplog.text.count("are lost from here on") == 1
    assert not tracker.close()


def test_a_report_after_the_end_is_ignored(store: str, run_id: str, tmp_path: Path) -> None:
    tracker = background.Tracker(store, run_id, tmp_path)
    assert tracker.close()
    report(tracker, range(3))
    assert history(store, run_id) == []


# --- a real server ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow")
def test_a_server_that_dies_in_mid_run_misses_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(background, "RETRY_SECONDS", (0.5, 1.0))
    uri = server.uri.replace("//", "//me:CANARY@")
    run_id = runs.start_run(uri, "5deg", "run", {}, {})
    tracker = background.Tracker(uri, run_id, tmp_path / "spool")
    report(tracker, range(100))
    tracker.image("sheet", png(1), 50)
    wait_until(lambda: pictures(uri, run_id), "the first picture arrives", every=0.5)

    server.kill()
    report(tracker, range(100, 200))
    tracker.image("sheet", png(2), 150)
    time.sleep(2)  # long enough for an attempt that fails
    server.start()
    report(tracker, range(200, 300))
    assert tracker.close(timeout=60)
    assert history(uri, run_id) == [(step, float(step)) for step in range(300)]
    # A picture whose arrival the server did not come to confirm is sent again.
    assert set(pictures(uri, run_id)) == {"sheet+step+150", "sheet+step+50"}
    runs.end_run(uri, run_id, "FINISHED")  # MLflow itself would print the address with its password
    assert "CANARY" not in str(capfd.readouterr())


def test_a_tracker_that_could_not_send_everything_says_where_the_rest_waits(
    store: str, run_id: str, nobody: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for uri, complete in ((store, True), (nobody, False)):
        caplog.clear()
        tracker = background.Tracker(uri, run_id, tmp_path)
        report(tracker, range(3))
        assert tracker.close() is complete
        assert ("has not received everything; the rest is in" in caplog.text) is not complete


def test_a_journal_gives_whole_steps_up_to_the_limit_but_always_one(tmp_path: Path) -> None:
    mine = Journal.create(tmp_path, "run")
    for step in range(4):
        mine.add(step, {"a": 1.0, "b": 2.0, "c": 3.0})

    def steps(max_values: int) -> list[int]:
        return [record.step for record in mine.pending(max_values)[0]]

    assert [steps(limit) for limit in (1, 5, 6, 9, 100)] == [[0], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    mine.sent(mine.pending(6)[1])
    assert steps(100) == [2, 3]
    mine.close()
