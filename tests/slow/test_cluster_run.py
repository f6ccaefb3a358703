"""A job on a real cluster: however it is submitted and whatever dies, the same weights come out."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from ray.train import Result
from torch import Tensor

from orchestrator.events import (
    ModelRegistered,
    Progress,
    Resumed,
    RunAlreadyFinished,
    RunFinished,
    RunStarted,
    RunStopped,
    StopRequested,
    Validation,
    WorkersReplaced,
    WorkersStarted,
    WorkersStarting,
    read_log,
)
from orchestrator.run_files import RUN_TAG
from orchestrator.tracking.client import connect
from tests.claims import BIN, assert_same_weights, assert_unchanged, final_weights, wait_until
from tests.slow.project import ENDED, Project, find_event

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.cluster]


def runs(project: Project, name: str) -> list[Path]:
    return sorted((project.root / ".mirage" / "store" / "mirage" / "runs").glob(f"{name}-*"))


def submit(project: Project, *words: str, **options: Any) -> str:
    """Run `ray job submit WORDS` in a shell; return the job's id, which Ray prints."""
    done = project.submit(*words, **options)
    assert done.status == 0, done.text
    (job,) = set(re.findall(r"raysubmit_\w+", done.text))
    return job


def kill_relay(project: Project) -> None:
    """Kill the actor between driver and workers."""
    (relay,) = project.workers("DriverRelay")
    relay.kill()


def train_runs(project: Project) -> list[dict[str, Any]]:
    """Return what Ray's state API says of all Train runs."""
    with urllib.request.urlopen("http://127.0.0.1:8265/api/train/v2/runs/v1", timeout=30) as answer:
        return list(json.load(answer)["train_runs"])


def leaked_groups(project: Project) -> list[str]:
    script = (
        "import os; from pathlib import Path; from orchestrator.cluster.local import lifecycle\n"
        "os.environ.update(lifecycle.environment(Path.cwd()))\n"
        "import ray; ray.init(log_to_driver=False, logging_level='ERROR')\n"
        "from orchestrator.cluster.placement_groups import leaked_groups\n"
        "import json; print(json.dumps(leaked_groups()))"
    )
    done = project.run(sys.executable, "-c", script)
    assert done.status == 0, done.text
    return list(json.loads(done.text.splitlines()[-1]))


@pytest.fixture(scope="session")
def submitted(project: Project) -> str:
    """The job of the literal command, from the project root, in a shell where no environment is activated."""
    return submit(project, "jobs/small.yaml")


@pytest.fixture(scope="session")
def uninterrupted(project: Project, submitted: str) -> dict[str, Tensor]:
    (folder,) = runs(project, "small")
    return final_weights(folder)


def test_the_literal_command_works_without_an_activated_environment(project: Project, uninterrupted) -> None:
    (folder,) = (project.root / ".mirage" / "runs").glob("small-*")
    assert {"restored.png", "sheet.png", "report.md"} <= {p.name for p in folder.iterdir()}


def test_every_event_of_the_run_is_in_the_jobs_log_once_and_in_order(
    project: Project, submitted: str
) -> None:
    found = project.events(submitted)
    assert [event.step for event in found if isinstance(event, Progress)] == list(range(1, 61))
    assert [event.step for event in found if isinstance(event, Validation)] == [30, 60]
    once = (RunStarted, WorkersStarting, WorkersStarted, ModelRegistered, RunFinished)
    assert [type(event) for event in found if isinstance(event, once)] == list(once)
    assert {event.workers for event in found if isinstance(event, WorkersStarting | WorkersStarted)} == {2}
    # Ray puts the process before what it forwards from workers or patches into print.
    lines = project.logs(submitted).splitlines()
    assert not [line for line in lines if "pid=" in line or "RayTrainWorker" in line]


@pytest.mark.filterwarnings("ignore:The `parse_obj` method is deprecated")  # Ray's
def test_ray_knows_the_run_and_each_checkpoint_with_its_metrics(project: Project, uninterrupted) -> None:
    (folder,) = runs(project, "small")
    (run,) = (run for run in train_runs(project) if str(run["name"]).rpartition("-")[0] == folder.name)
    assert run["status"] == "FINISHED"
    assert [len(attempt["workers"]) for attempt in run["attempts"]] == [2]
    result = Result.from_path(project.root / ".mirage" / "ray" / run["name"])
    in_store = {file.stem: json.loads(file.read_bytes()) for file in (folder / "checkpoints").iterdir()}
    newest = max(in_store)
    assert Path(result.checkpoint.path).name == newest
    uri = f"s3://mirage/runs/{folder.name}/checkpoints/{newest}.json"
    with result.checkpoint.as_directory() as pointer:
        assert json.loads((Path(pointer) / "checkpoint.json").read_bytes()) == {"uri": uri}
    reported = {Path(checkpoint.path).name: metrics for checkpoint, metrics in result.best_checkpoints}
    assert reported[newest] == {"step": 60, "checkpoint": uri, **in_store[newest]["metrics"]}
    assert reported[newest]["val/psnr"] > 0
    # Of several that are written between two exchanges with Ray, the newest is reported.
    assert len(reported) >= 3
    assert all(metrics["checkpoint"].endswith(f"/{name}.json") for name, metrics in reported.items())


def test_submitting_a_finished_job_from_anywhere_without_its_executable_bit_reports_it_and_changes_nothing(
    project: Project, uninterrupted, tmp_path: Path
) -> None:
    (folder,) = runs(project, "small")
    plain = project.root / "jobs" / "plain.yaml"
    plain.write_text((project.root / "jobs" / "small.yaml").read_text())
    plain.chmod(0o644)
    hook = {"RAY_JOB_SUBMIT_HOOK": "orchestrator.cluster.submit_hook.submit"}
    with assert_unchanged(folder):
        found = project.events(submit(project, str(plain), cwd=tmp_path, **hook))
    assert find_event(found, RunAlreadyFinished, run_id=folder.name)
    assert find_event(found, ModelRegistered, version="1")
    assert not find_event(found, RunStarted)


def test_a_killed_worker_and_relay_cost_time_and_nothing_else_in_a_job_submitted_from_anywhere(
    project: Project, uninterrupted, tmp_path: Path
) -> None:
    command = (
        "--no-wait",
        "--working-dir",
        str(project.root),
        "--",
        "jobs/small.yaml",
        "--set",
        "name=killed",
    )
    job = submit(project, *command, cwd=tmp_path)
    project.wait_for_event(job, Progress, step=20)
    workers = project.workers("RayTrainWorker")
    assert len(workers) == 2
    kill_relay(project)
    workers[-1].kill()
    done = project.wait_for_end(job)
    assert done.status == 0, done.text
    failed = find_event(project.events(job), WorkersReplaced)
    assert failed
    assert {*failed[1].ranks} <= {0, 1}
    assert failed[1].reason
    resumed = find_event(project.events(job), Resumed)
    assert resumed
    assert resumed[1].step >= 10
    (folder,) = runs(project, "killed")
    assert_same_weights(final_weights(folder), uninterrupted)


def versions_of(project: Project, run: str) -> int:
    """Return how many versions are registered for a run."""
    client = connect(f"sqlite:///{project.root / '.mirage' / 'mlflow.db'}")
    return len(client.search_model_versions(f"tags.`{RUN_TAG}` = '{run}'"))


def test_a_job_stopped_in_training_in_a_checkpoint_and_in_registration_resumes_from_a_folder(
    project: Project, uninterrupted
) -> None:
    words = ("storage=.mirage/folder", "name=stopped", "validation.every_steps=2")
    command = ("jobs/small.yaml", *(word for each in words for word in ("--set", each)))
    job = project.start(*command)
    project.wait_for_event(job, Progress, step=20)
    kill_relay(project)
    project.run(str(BIN / "ray"), "job", "stop", job)
    project.wait_for_status(job, "STOPPED")
    assert leaked_groups(project) == []
    (folder,) = (project.root / ".mirage" / "folder" / "runs").glob("stopped-*")
    assert not (folder / "result.json").exists()
    newest = json.loads(max((folder / "checkpoints").iterdir()).read_bytes())
    assert newest["step"] >= 20
    assert find_event(project.events(job), RunStopped, step=newest["step"])

    # While a checkpoint is written.
    again = project.start(*command)
    project.wait_for_event(again, Resumed, step=newest["step"])
    writers = project.workers("RayTrainWorker")
    wait_until(lambda: [*(folder / "blobs").glob(".tmp-*")], "a checkpoint is written", every=0)
    for worker in writers:
        worker.suspend()
    project.stop(again)
    project.wait_for_event(again, StopRequested)
    for worker in writers:
        worker.resume()
    project.wait_for_status(again, "STOPPED")
    stopped = json.loads(max((folder / "checkpoints").iterdir()).read_bytes())
    assert find_event(project.events(again), RunStopped, step=stopped["step"])

    # While the model is registered, which follows the table of results; it may be registered when the signal comes.
    last = project.start(*command)
    wait_until(lambda: "best linear fit" in project.logs(last), "the results are printed", 400, every=0.1)
    project.stop(last)
    assert ENDED[project.wait_for_end(last).status] in ("STOPPED", "SUCCEEDED")
    assert find_event(project.events(last), Resumed, step=stopped["step"])

    done = project.finish(*command)
    assert done.status == 0, done.text
    assert find_event(read_log(done.text), ModelRegistered)
    assert_same_weights(final_weights(folder), uninterrupted)
    assert versions_of(project, folder.name) == 1


def test_a_job_the_cluster_can_never_hold_is_refused_with_the_arithmetic(project: Project) -> None:
    done = project.finish(
        "jobs/small.yaml", "--set", "workers={min: 3, max: 3, cpus: 64}", "--set", "name=huge"
    )
    assert done.status != 0
    assert "3 x 64 CPU = 192 CPU" in done.text
