"""An evaluation on a real cluster: a worker dies, the job is stopped, and every image is judged once all the same."""

from __future__ import annotations

import json
import os
import signal
import sys

import psutil
import pytest
import torch

from mirage import MIRAGE, ModelConfig, save
from orchestrator.cluster.local import ray_head
from orchestrator.evaluation.image_results import ImageResult, from_parquet
from tests.slow.project import Project, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("cluster")]

PACK_JOB = """#!/usr/bin/env -S python -m orchestrator run
name: judged
kind: pack
storage: s3://mirage
data: {manifests: judged, pack: {source: synthetic, root: photographs, held_out: [coffee, cat], variants: 1}}
"""

JUDGE_JOB = """#!/usr/bin/env -S python -m orchestrator run
name: judge
kind: evaluate
storage: s3://mirage
model: {weights: fresh.safetensors}
data: {manifests: judged}
evaluate: {protocols: [rgb-crop16, y8]}
workers: {min: 2, max: 2}
track: {experiment: slow}
"""


def workers(project: Project) -> list[int]:
    """Process ids of the evaluation workers of this project's cluster; the machine may run others."""
    recorded = json.loads((project.root / ".mirage" / "up.json").read_text())["processes"]
    (raylet,) = (psutil.Process(p["pid"]) for p in recorded if p["name"] == ray_head.RAYLET)
    running = [(p.pid, " ".join(p.cmdline())) for p in raylet.children(recursive=True)]
    return [pid for pid, words in running if "EvaluationWorker" in words]


def results(project: Project, storage: str) -> dict[tuple[str, str, str], ImageResult]:
    (file,) = (project.root / ".mirage" / storage / "evaluations").glob("judge-*/images.parquet")
    rows = from_parquet(file.read_bytes())
    found = {(row.degradation, row.image, row.protocol): row for row in rows}
    assert len(found) == len(rows) == 28
    return found


def test_a_dead_worker_and_a_stopped_job_lose_no_image_and_evaluate_none_twice(project: Project) -> None:
    torch.manual_seed(0)
    save(MIRAGE(ModelConfig.tiny()), project.root / "fresh.safetensors")
    for name, text in (("judged", PACK_JOB), ("judge", JUDGE_JOB)):
        file = project.root / "jobs" / f"{name}.yaml"
        file.write_text(text)
        file.chmod(0o755)
    packed = project.run(sys.executable, "-m", "orchestrator", "run", "jobs/judged.yaml")
    assert packed.status == 0, packed.text

    job = project.start("--", "jobs/judge.yaml")
    project.wait_for(job, r"evaluated \d+/28")
    (first, *_) = workers(project)
    os.kill(first, signal.SIGKILL)
    project.wait_for(job, r"evaluated ([6-9]|1\d)/28")
    project.stop(
        job
    )  # by HTTP: the command takes seconds to start, in which the last images may be evaluated
    wait_until(lambda: project.status(job) == "STOPPED" and "stopped", 90, "the job stops")
    assert "of 28 images. Submit" in project.logs(job)

    again = project.submit("--", "jobs/judge.yaml")
    assert again.status == 0, again.text
    assert " continues: " in again.text
    here = project.run(
        *(sys.executable, "-m", "orchestrator", "run", "--in-process", "jobs/judge.yaml"),
        *(
            "--set",
            "storage=.mirage/folder",
            "--set",
            f"data.manifests={project.root}/.mirage/store/mirage/judged",
        ),
    )
    assert here.status == 0, here.text
    ours, alone = results(project, "store/mirage"), results(project, "folder")
    assert ours.keys() == alone.keys()
    for key, one in ours.items():
        assert one.psnr == pytest.approx(alone[key].psnr, abs=1e-3)
