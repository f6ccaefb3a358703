"""A pack job on a real cluster: shards are Ray tasks, and the dataset is the one that a single process makes."""

from __future__ import annotations

import re

import pytest

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


def test_shards_are_packed_by_tasks_and_the_bytes_do_not_tell(project: Project):
    project.write_job("many", JOB)
    done = project.finish("jobs/many.yaml")
    assert done.status == 0, done.text
    assert "each shard is packed by a Ray task" in done.text
    assert re.search(r"train rain +240", done.text), done.text
    store = project.root / ".mirage" / "store" / "mirage" / "many"
    clustered = {path.name for path in (store / "shards").iterdir()}
    assert len(clustered) > 2
    assert not list((store / "packing").glob("*"))

    words = ("pack", "synthetic", "--root", "photographs", "--degradation", "rain", "--variants", "60")
    alone = project.mirage(*words, "--shard-mib", "1", "--jobs", "1", "--out", "alone")
    assert alone.status == 0, alone.text
    assert {path.name for path in (project.root / "alone" / "shards").iterdir()} == clustered
    again = project.finish("jobs/many.yaml")
    assert "already packed" in again.text
