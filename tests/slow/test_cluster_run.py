"""A job on a real cluster: however it is submitted and whatever dies, the same weights come out."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from mirage.weights import loads
from orchestrator.cluster.local import ray_head
from tests.slow.project import Done, Project, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("cluster")]


def runs(project: Project, name: str) -> list[Path]:
    return sorted((project.root / ".mirage" / "store" / "mirage" / "runs").glob(f"{name}-*"))


def weights(folder: Path) -> dict[str, Tensor]:
    result = json.loads((folder / "result.json").read_bytes())
    return loads((folder / result["weights"]).read_bytes()).state_dict()


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def leaked_groups(project: Project) -> str:
    script = (
        "import os; from pathlib import Path; from orchestrator.cluster.local import lifecycle\n"
        "os.environ.update(lifecycle.environment(Path.cwd()))\n"
        "import ray; ray.init(log_to_driver=False, logging_level='ERROR')\n"
        "from orchestrator.cluster.placement_groups import leaked_groups; print('leaked', len(leaked_groups()))"
    )
    return project.run(sys.executable, "-c", script).text


def train_workers(project: Project) -> list[psutil.Process]:
    """The training processes of this project's cluster; the machine may run others."""
    recorded = json.loads((project.root / ".mirage" / "up.json").read_text())["processes"]
    (raylet,) = (psutil.Process(p["pid"]) for p in recorded if p["name"] == ray_head.RAYLET)
    ours = {p.pid for p in raylet.children(recursive=True)}
    running = psutil.process_iter(["cmdline"])
    return [p for p in running if p.pid in ours and "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]


@pytest.fixture(scope="session")
def submitted(project: Project) -> Done:
    """The literal command, from the project root, in a shell where no environment is activated."""
    done = project.submit("jobs/small.yaml")
    assert done.status == 0, done.text
    assert "registered" in done.text or "alias candidate" in done.text
    return done


@pytest.fixture(scope="session")
def uninterrupted(project: Project, submitted: Done) -> dict[str, Tensor]:
    (folder,) = runs(project, "small")
    return weights(folder)


def test_the_literal_command_works_without_an_activated_environment(project: Project, uninterrupted) -> None:
    (folder,) = (project.root / ".mirage" / "runs").glob("small-*")
    assert {"restored.png", "sheet.png", "report.md"} <= {p.name for p in folder.iterdir()}


def test_every_line_of_the_run_is_in_the_jobs_log_once_and_as_the_driver_said_it(
    project: Project, submitted: Done
) -> None:
    (job,) = set(re.findall(r"raysubmit_\w+", submitted.text))
    lines = project.logs(job).splitlines()
    steps = [int(found[1]) for line in lines if (found := re.search(r"\bstep (\d+)/160\b", line))]
    assert steps == list(range(1, 161))
    events = ("2 workers train", "step 80: validation", "step 160: validation", "starting 2 workers")
    assert {event: sum(event in line for line in lines) for event in events} == dict.fromkeys(events, 1)
    # Ray puts the process before what it forwards from workers or patches into print.
    assert not [line for line in lines if "pid=" in line or "RayTrainWorker" in line]


def test_submitting_a_finished_job_from_anywhere_reports_it_and_changes_nothing(
    project: Project, uninterrupted, tmp_path: Path
) -> None:
    (folder,) = runs(project, "small")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    done = project.submit("--working-dir", str(project.root), "--", "jobs/small.yaml", cwd=tmp_path)
    assert done.status == 0, done.text
    assert "is finished already" in done.text
    assert "version 1" in done.text
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_the_submit_hook_needs_no_executable_bit(project: Project, uninterrupted) -> None:
    plain = project.root / "jobs" / "plain.yaml"
    plain.write_text((project.root / "jobs" / "small.yaml").read_text())
    plain.chmod(0o644)
    done = project.submit("jobs/plain.yaml", RAY_JOB_SUBMIT_HOOK="orchestrator.cluster.submit_hook.submit")
    assert done.status == 0, done.text
    assert "is finished already" in done.text


def test_a_killed_worker_costs_time_and_nothing_else(project: Project, uninterrupted) -> None:
    job = project.start("--", "jobs/small.yaml", "--set", "name=killed")
    project.wait_for(job, r"step [2-9]\d/160")
    workers = train_workers(project)
    assert len(workers) == 2
    os.kill(workers[-1].pid, signal.SIGKILL)
    text = project.wait_for(job, r"alias candidate|failed")
    assert "resumed from checkpoint" in text
    (folder,) = runs(project, "killed")
    assert same(weights(folder), uninterrupted)


def test_a_stopped_job_leaves_a_checkpoint_and_goes_on_exactly(project: Project, uninterrupted) -> None:
    job = project.start("--", "jobs/small.yaml", "--set", "name=stopped")
    project.wait_for(job, r"step [2-9]\d/160")
    project.run(str(Path(sys.executable).parent / "ray"), "job", "stop", job)
    wait_until(lambda: project.status(job) == "STOPPED" and "stopped", 90, "the job stops")
    assert "with a checkpoint" in project.logs(job)
    assert "leaked 0" in leaked_groups(project)
    (folder,) = runs(project, "stopped")
    assert not (folder / "result.json").exists()
    newest = json.loads(max((folder / "checkpoints").iterdir()).read_bytes())
    assert newest["step"] >= 20

    done = project.submit("--", "jobs/small.yaml", "--set", "name=stopped")
    assert done.status == 0, done.text
    assert f"at step {newest['step']}" in done.text
    assert same(weights(folder), uninterrupted)


def test_a_folder_serves_as_well_as_a_bucket(project: Project, uninterrupted) -> None:
    done = project.submit(
        "--", "jobs/small.yaml", "--set", "storage=.mirage/folder", "--set", "name=infolder"
    )
    assert done.status == 0, done.text
    (folder,) = (project.root / ".mirage" / "folder" / "runs").glob("infolder-*")
    assert same(weights(folder), uninterrupted)


def test_a_job_the_cluster_can_never_hold_is_refused_with_the_arithmetic(project: Project) -> None:
    done = project.submit(
        "--", "jobs/small.yaml", "--set", "workers={min: 3, max: 3, cpus: 64}", "--set", "name=huge"
    )
    assert done.status != 0
    assert "3 x 64 CPU = 192 CPU" in done.text
