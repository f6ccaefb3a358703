"""A good run stays good when MLflow is away: its results are printed first, and `mirage sync` sends the rest."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.config.schema import Job
from orchestrator.runner import run_any
from orchestrator.tracking import background, runs
from orchestrator.tracking.client import connect
from tests.claims import Finished, mirage
from tests.orchestrator.tracking.gate import Gate, artifacts

if TYPE_CHECKING:
    from tests.orchestrator.mlflow_server import Server

pytestmark = pytest.mark.xdist_group("mlflow")
MakeJob = Callable[..., Job]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(background, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(background, "RETRY_SECONDS", (0.05, 0.1))


def submit(job: Job, on_line: Callable[[str], None] = lambda line: None) -> list[str]:
    printed: list[str] = []

    def echo(line: str) -> None:
        printed.append(line)
        on_line(line)

    assert run_any(job, echo, in_process=True).status == "finished"
    return printed


def sync(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Finished:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.uri)
    return mirage("sync")


def assert_complete(server: Server, job: Job) -> None:
    client = connect(server.uri)
    experiment = client.get_experiment_by_name(job.track.experiment)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss/total")]
    assert sorted(steps) == [2, 4, 6]
    assert run.data.metrics["test/average/psnr"] > 0
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"job.yaml", "plan.txt", "report.md", "sheet.png", "scores.json"} <= files
    models = client.search_logged_models([experiment.experiment_id], "model_type = 'checkpoint'")
    assert sorted(model.name.rpartition("-")[2] for model in models) == ["4", "6"]
    if job.track.register_as:
        (version,) = client.search_model_versions(f"name = '{job.track.register_as}'")
        assert version.run_id == run.info.run_id


FAULTS: dict[str, Any] = {
    "away": lambda path: "reset",
    "artifact store": artifacts((500, b"oops")),
}


@pytest.mark.parametrize(("kind", "by"), [("away", "sync"), ("artifact store", "submission")])
def test_mlflow_that_fails_from_the_middle_to_the_end_costs_nothing(
    server: Server,
    small_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    by: str,
) -> None:
    name = f"outage-{kind}-{by}".replace(" ", "-")
    with Gate(server.uri) as gate:
        track = {"uri": gate.uri, "experiment": name, "register_as": name}
        job = small_job(name=name, track=track, seed=len(name))

        def fail_after_step_2(line: str) -> None:
            if line.startswith("step 2/"):
                gate.fault = FAULTS[kind]

        printed = submit(job, fail_after_step_2)
        (table,) = (
            i for i, line in enumerate(printed) if "PSNR" in line and "haze" in line and "\n" in line.strip()
        )
        (warning,) = (i for i, line in enumerate(printed) if "warning: MLflow" in line)
        assert table < warning
        assert "The model is not registered yet: call `mirage sync`" in printed[warning]
        assert printed[-1].startswith("picture")
        failed = sync(gate, monkeypatch)
        assert failed.status == 1, failed.text
        gate.fault = lambda path: None
        if by == "sync":
            sent = sync(gate, monkeypatch)
            assert sent.status == 0, sent.text
            assert sync(gate, monkeypatch).text.strip() == "nothing waits"
        else:
            submit(job)
        assert_complete(server, job)


def test_an_artifact_store_that_fails_at_the_start_does_not_stop_the_run(
    server: Server, small_job: MakeJob, at_home: Path
) -> None:
    with Gate(server.uri) as gate:
        track = {"uri": gate.uri, "experiment": "early", "register_as": None}
        job = small_job(name="early", track=track, seed=91)
        gate.fault = FAULTS["artifact store"]

        def recover(line: str) -> None:
            if line.startswith("step 4/"):
                gate.fault = lambda path: None

        submit(job, recover)
        assert_complete(server, job)


def test_a_finished_run_is_reported_without_mlflow(server: Server, small_job: MakeJob) -> None:
    with Gate(server.uri) as gate:
        track = {"uri": gate.uri, "experiment": "reported", "register_as": None}
        job = small_job(name="reported", track=track, seed=92)
        submit(job)
        gate.fault = FAULTS["away"]
        again = submit(job)
        assert any("no answer. Start that server" in line for line in again)
        assert again[-1].startswith("picture")
        gate.fault = lambda path: None
        submit(job)
        assert_complete(server, job)


def test_a_database_that_is_emptied_while_a_run_trains_gets_the_rest_and_the_model(
    server: Server, small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is deleted for good by a gate that hides it, as an emptied database does."""
    with Gate(server.uri) as gate:
        track = {"uri": gate.uri, "experiment": "emptied", "register_as": "emptied"}
        job = small_job(name="emptied", track=track, seed=93)
        client = connect(server.uri)

        def empty(line: str) -> None:
            if line.startswith("step 4/"):
                (run,) = client.search_runs([client.get_experiment_by_name("emptied").experiment_id])
                client.delete_run(run.info.run_id)
                missing = f"Run with id={run.info.run_id} not found"
                body = f'{{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "{missing}"}}'.encode()
                # Requests that name the run in their body are answered by the server: it is deleted there.
                gate.fault = lambda path: (404, body) if run.info.run_id in path else None

        printed = submit(job, empty)
        assert any("PSNR" in line for line in printed)
        sent = sync(gate, monkeypatch)
        assert sent.status == 0, sent.text
        (new,) = client.search_runs([client.get_experiment_by_name("emptied").experiment_id])
        assert new.info.status == "FINISHED"
        assert new.data.metrics["loss/total"] > 0
        assert new.data.metrics["test/average/psnr"] > 0
        (version,) = client.search_model_versions("name = 'emptied'")
        assert version.run_id == new.info.run_id


def test_a_run_that_is_stopped_is_killed_in_mlflow_and_resumes_as_itself(
    server: Server, small_job: MakeJob
) -> None:
    track = {"uri": server.uri, "experiment": "stopped", "register_as": None}
    job = small_job(name="stopped", track=track, seed=94)

    def stop(line: str) -> None:
        if line.startswith("step 2/"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert run_any(job, stop, in_process=True).status == "stopped"
    found = runs.find_run(server.uri, "mirage.setting", job.setting, "stopped")
    assert connect(server.uri).get_run(found.id).info.status == "KILLED"
    submit(job)
    assert_complete(server, job)
