"""A restoring job on a real cluster, from bucket to bucket: its driver is killed, the next one goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mirage.weights
from mirage import MIRAGE, ModelConfig
from orchestrator.restoration.result_index import FOLDER
from tests.claims import wait_until
from tests.slow.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.cluster]

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
    project.write_job("batch", JOB)
    return bucket


def results(bucket: Path) -> dict[str, int]:
    """The restored files and when each was written."""
    folder = bucket / "restored"
    found = (path for path in folder.rglob("*.png") if FOLDER not in path.parts)
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in found}


def test_a_killed_job_is_finished_by_the_next_and_nothing_is_written_twice(
    project: Project, raw: Path, tmp_path: Path
) -> None:
    job = project.start("jobs/batch.yaml")
    wait_until(lambda: len(results(raw)) >= 16, "16 photographs are restored", 300)
    project.driver("batch").kill()
    project.wait_for_status(job, "FAILED")
    before = results(raw)
    assert 16 <= len(before) < PHOTOGRAPHS
    done = project.finish("jobs/batch.yaml")
    assert done.status == 0, done.text
    assert "core_worker" not in done.text, "a line of Ray's core that means nothing to a user"
    after = results(raw)
    assert len(after) == PHOTOGRAPHS
    late = {name for name, at in before.items() if after[name] != at}
    assert late == set(), "written a second time"
    # The command, with as many threads as a worker has, makes the same file.
    restored = str(tmp_path / "000.png")
    photograph = str(raw / "raw" / "000.png")
    told = project.mirage("restore", photograph, "-m", "tiny.safetensors", "-o", restored, "--threads", "1")
    assert told.status == 0, told.text
    assert (tmp_path / "000.png").read_bytes() == (raw / "restored" / "000.png").read_bytes()
