"""An evaluation on a real cluster: a worker dies, the job is stopped, and every image is judged once all the same."""

from __future__ import annotations

import pytest
import torch

from mirage import MIRAGE, ModelConfig, save
from orchestrator.evaluation.chunks import done_chunks, read_results
from orchestrator.evaluation.image_results import ImageResult, from_parquet
from orchestrator.evaluation.summary import SUMMARY
from shards.store import LocalStore
from tests.claims import modification_times, wait_until
from tests.slow.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.cluster]

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


def evaluated(project: Project) -> int:
    """Return how many images have a result in the bucket."""
    found = (project.root / ".mirage" / "store" / "mirage" / "evaluations").glob("judge-*")
    stores = [LocalStore(folder) for folder in found]
    return sum(len(read_results(store, chunk)) for store in stores for chunk in done_chunks(store))


def results(project: Project, storage: str) -> dict[tuple[str, str, str], ImageResult]:
    (file,) = (project.root / ".mirage" / storage / "evaluations").glob("judge-*/images.parquet")
    rows = from_parquet(file.read_bytes())
    found = {(row.degradation, row.image, row.protocol): row for row in rows}
    assert len(found) == len(rows) == 28
    return found


def test_a_dead_worker_and_a_stopped_job_lose_no_image_and_evaluate_none_twice(project: Project) -> None:
    torch.manual_seed(0)
    # Slow enough to be stopped on the way.
    config = ModelConfig(dim=18, blocks=(2, 2, 2, 2), heads=(1, 1, 2, 2))
    save(MIRAGE(config), project.root / "fresh.safetensors")
    project.write_job("judged", PACK_JOB)
    project.write_job("judge", JUDGE_JOB)
    packed = project.mirage("run", "jobs/judged.yaml")
    assert packed.status == 0, packed.text

    job = project.start("jobs/judge.yaml")
    wait_until(lambda: evaluated(project) >= 1, "an image is evaluated", 400, every=0.5)
    project.workers("EvaluationWorker")[0].kill()
    wait_until(lambda: evaluated(project) >= 6, "six images are evaluated", 400, every=0.5)
    project.stop(job)  # by HTTP: the command takes seconds, in which the last images may be evaluated
    project.wait_for_status(job, "STOPPED")
    assert 6 <= evaluated(project) < 28
    (folder,) = (project.root / ".mirage" / "store" / "mirage" / "evaluations").glob("judge-*")
    assert not (folder / SUMMARY).exists()
    before = modification_times(folder)

    again = project.finish("jobs/judge.yaml")
    assert again.status == 0, again.text
    after = modification_times(folder)
    assert {name: after[name] for name in before} == before, "written a second time"
    packed_here = f"data.manifests={project.root}/.mirage/store/mirage/judged"
    elsewhere = ("--set", "storage=.mirage/folder", "--set", packed_here)
    here = project.mirage("run", "--in-process", "jobs/judge.yaml", *elsewhere)
    assert here.status == 0, here.text
    ours, alone = results(project, "store/mirage"), results(project, "folder")
    assert ours.keys() == alone.keys()
    for key, one in ours.items():
        assert one.psnr == pytest.approx(alone[key].psnr, abs=1e-3)
