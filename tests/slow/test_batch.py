"""A restoring job on a real cluster, from bucket to bucket: its driver is killed, the next one goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import mirage
from mirage import MIRAGE, ModelConfig
from orchestrator.restoration.result_index import FOLDER
from tests.slow.project import Project, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("cluster")]

PHOTOGRAPHS = 96
JOB = """#!/usr/bin/env -S python -m orchestrator run
name: batch
kind: restore
restore: {model: tiny.safetensors, inputs: s3://mirage/raw, out: s3://mirage/restored}
workers: {min: 2, max: 2, cpus: 1}
"""


@pytest.fixture(scope="module")
def raw(project: Project) -> Path:
    """Photographs in the bucket, a model and a job; returns the folder that the bucket is served from."""
    torch.manual_seed(0)
    config = ModelConfig(dim=6, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), refinement_blocks=0)
    mirage.weights.save(MIRAGE(config).eval(), project.root / "tiny.safetensors")
    bucket = project.root / ".mirage" / "store" / "mirage"
    (bucket / "raw" / "trip").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for index in range(PHOTOGRAPHS):
        place = bucket / "raw" / ("trip" if index % 2 else ".") / f"{index:03}.png"
        Image.fromarray(noise.integers(0, 256, (184, 200, 3), np.uint8)).save(place)
    job = project.root / "jobs" / "batch.yaml"
    job.write_text(JOB)
    job.chmod(0o755)
    return bucket


def results(bucket: Path) -> dict[str, int]:
    """The restored files and when each was written."""
    folder = bucket / "restored"
    found = (path for path in folder.rglob("*.png") if FOLDER not in path.parts)
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in found}


def drivers() -> list[psutil.Process]:
    running = psutil.process_iter(["cmdline"])
    return [p for p in running if (p.info["cmdline"] or [])[-2:] == ["run", "jobs/batch.yaml"]]


def test_a_killed_job_is_finished_by_the_next_and_nothing_is_written_twice(
    project: Project, raw: Path, tmp_path: Path
) -> None:
    job = project.start("--", "python", "-m", "orchestrator", "run", "jobs/batch.yaml")
    wait_until(lambda: (len(results(raw)) >= 16 and "some") or None, 300, "16 photographs are restored")
    (driver,) = drivers()
    driver.kill()
    wait_until(
        lambda: (project.status(job) == "FAILED" and "failed") or None, 90, "the job is seen to have failed"
    )
    before = results(raw)
    assert 16 <= len(before) < PHOTOGRAPHS
    done = project.submit("--", "jobs/batch.yaml")
    assert done.status == 0, done.text
    assert " done already" in done.text
    after = results(raw)
    assert len(after) == PHOTOGRAPHS
    late = {name for name, at in before.items() if after[name] != at}
    assert late == set(), "written a second time"
    # The command, with as many threads as a worker has, makes the same file.
    told = project.run(
        sys.executable, "-m", "orchestrator", "restore", str(raw / "raw" / "000.png"), "-m", "tiny.safetensors",
        "-o", str(tmp_path / "000.png"), "--threads", "1",
    )  # fmt: skip
    assert told.status == 0, told.text
    assert (tmp_path / "000.png").read_bytes() == (raw / "restored" / "000.png").read_bytes()
