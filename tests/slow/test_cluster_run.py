"""A job on a real cluster: however it is submitted and whatever dies, the same weights come out."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from torch import Tensor

from tests.claims import BIN, Finished, assert_same_weights, assert_unchanged, final_weights
from tests.slow.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.cluster]


def runs(project: Project, name: str) -> list[Path]:
    return sorted((project.root / ".mirage" / "store" / "mirage" / "runs").glob(f"{name}-*"))


def leaked_groups(project: Project) -> str:
    script = (
        "import os; from pathlib import Path; from orchestrator.cluster.local import lifecycle\n"
        "os.environ.update(lifecycle.environment(Path.cwd()))\n"
        "import ray; ray.init(log_to_driver=False, logging_level='ERROR')\n"
        "from orchestrator.cluster.placement_groups import leaked_groups; print('leaked', len(leaked_groups()))"
    )
    return project.run(sys.executable, "-c", script).text


@pytest.fixture(scope="session")
def submitted(project: Project) -> Finished:
    """The literal command, from the project root, in a shell where no environment is activated."""
    done = project.submit("jobs/small.yaml")
    assert done.status == 0, done.text
    assert "registered" in done.text or "alias candidate" in done.text
    return done


@pytest.fixture(scope="session")
def uninterrupted(project: Project, submitted: Finished) -> dict[str, Tensor]:
    (folder,) = runs(project, "small")
    return final_weights(folder)


def test_the_literal_command_works_without_an_activated_environment(project: Project, uninterrupted) -> None:
    (folder,) = (project.root / ".mirage" / "runs").glob("small-*")
    assert {"restored.png", "sheet.png", "report.md"} <= {p.name for p in folder.iterdir()}


def test_every_line_of_the_run_is_in_the_jobs_log_once_and_as_the_driver_said_it(
    project: Project, submitted: Finished
) -> None:
    (job,) = set(re.findall(r"raysubmit_\w+", submitted.text))
    lines = project.logs(job).splitlines()
    steps = [int(found[1]) for line in lines if (found := re.search(r"\bstep (\d+)/160\b", line))]
    assert steps == list(range(1, 161))
    events = ("2 workers train", "step 80: validation", "step 160: validation", "starting 2 workers")
    assert {event: sum(event in line for line in lines) for event in events} == dict.fromkeys(events, 1)
    # Ray puts the process before what it forwards from workers or patches into print.
    assert not [line for line in lines if "pid=" in line or "RayTrainWorker" in line]


def test_submitting_a_finished_job_from_anywhere_without_its_executable_bit_reports_it_and_changes_nothing(
    project: Project, uninterrupted, tmp_path: Path
) -> None:
    (folder,) = runs(project, "small")
    plain = project.root / "jobs" / "plain.yaml"
    plain.write_text((project.root / "jobs" / "small.yaml").read_text())
    plain.chmod(0o644)
    hook = {"RAY_JOB_SUBMIT_HOOK": "orchestrator.cluster.submit_hook.submit"}
    with assert_unchanged(folder):
        done = project.submit(str(plain), cwd=tmp_path, **hook)
    assert done.status == 0, done.text
    assert "is finished already" in done.text
    assert "version 1" in done.text


def test_a_killed_worker_costs_time_and_nothing_else_in_a_job_submitted_from_anywhere(
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
    (job,) = set(re.findall(r"raysubmit_\w+", project.submit(*command, cwd=tmp_path).text))
    project.wait_for(job, r"step [2-9]\d/160")
    workers = project.workers("RayTrainWorker")
    assert len(workers) == 2
    workers[-1].kill()
    done = project.wait_for_end(job)
    assert done.status == 0, done.text
    assert "resumed from checkpoint" in done.text
    (folder,) = runs(project, "killed")
    assert_same_weights(final_weights(folder), uninterrupted)


def test_a_stopped_job_leaves_a_checkpoint_and_a_folder_serves_as_well_as_a_bucket(
    project: Project, uninterrupted
) -> None:
    command = ("jobs/small.yaml", "--set", "storage=.mirage/folder", "--set", "name=stopped")
    job = project.start(*command)
    project.wait_for(job, r"step [2-9]\d/160")
    project.run(str(BIN / "ray"), "job", "stop", job)
    project.wait_for_status(job, "STOPPED")
    assert "with a checkpoint" in project.logs(job)
    assert "leaked 0" in leaked_groups(project)
    (folder,) = (project.root / ".mirage" / "folder" / "runs").glob("stopped-*")
    assert not (folder / "result.json").exists()
    newest = json.loads(max((folder / "checkpoints").iterdir()).read_bytes())
    assert newest["step"] >= 20

    done = project.finish(*command)
    assert done.status == 0, done.text
    assert f"at step {newest['step']}" in done.text
    assert_same_weights(final_weights(folder), uninterrupted)


def test_a_job_the_cluster_can_never_hold_is_refused_with_the_arithmetic(project: Project) -> None:
    done = project.finish(
        "jobs/small.yaml", "--set", "workers={min: 3, max: 3, cpus: 64}", "--set", "name=huge"
    )
    assert done.status != 0
    assert "3 x 64 CPU = 192 CPU" in done.text
