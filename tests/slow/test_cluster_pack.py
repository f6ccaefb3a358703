"""A pack job on a real cluster: shards are Ray tasks, and the dataset is the one that a single process makes."""

from __future__ import annotations

import pytest

from shards.manifest import load_manifest
from shards.store import LocalStore
from tests.claims import assert_unchanged, wait_until
from tests.slow.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.cluster]

JOB = """#!/usr/bin/env -S python -m orchestrator run
name: many
kind: pack
storage: s3://mirage
data:
  manifests: many
  pack: {source: synthetic, root: photographs, degradations: [rain], variants: 60, shard_mib: 1}
"""


def finished_tasks() -> set[str]:
    """Return the ids of the cluster's tasks of `orchestrator.data.ray_tasks` that have finished."""
    from ray.util.state import list_tasks  # takes a second

    tasks = list_tasks("http://127.0.0.1:8265", filters=[("name", "=", "_do")], limit=10_000)
    return {task.task_id for task in tasks if task.state == "FINISHED"}


def test_shards_are_packed_by_tasks_and_have_the_bytes_that_one_process_gives_them(project: Project) -> None:
    project.write_job("many", JOB)
    earlier = finished_tasks()
    done = project.finish("jobs/many.yaml")
    assert done.status == 0, done.text
    store = project.root / ".mirage" / "store" / "mirage" / "many"
    assert load_manifest(LocalStore(store)).counts()["train"] == {"rain": 240}
    clustered = {path.name for path in (store / "shards").iterdir()}
    assert len(clustered) > 2
    # Ray hears of finished tasks a second later.
    wait_until(lambda: len(finished_tasks() - earlier) >= len(clustered), "a task packs each shard", 30)
    assert not list((store / "packing").glob("*"))

    words = ("pack", "synthetic", "--root", "photographs", "--degradation", "rain", "--variants", "60")
    alone = project.mirage(*words, "--shard-mib", "1", "--processes", "1", "--out", "alone")
    assert alone.status == 0, alone.text
    assert {path.name for path in (project.root / "alone" / "shards").iterdir()} == clustered
    with assert_unchanged(store):
        again = project.finish("jobs/many.yaml")
    assert again.status == 0, again.text
