"""What we read of Ray without a public interface is true of a real cluster.

Draining nodes are in test_elastic.py, an autoscaling cluster in test_growing.py.
"""

from __future__ import annotations

import json
import sys

import pytest

from tests.slow.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SCRIPT = """
import json, os
from pathlib import Path
from orchestrator.cluster.local import lifecycle
os.environ.update(lifecycle.environment(Path.cwd()))
import ray
from orchestrator.cluster import ray_internals_autoscaler as autoscaler, ray_internals_nodes as nodes
ray.init(log_to_driver=False, logging_level="ERROR")
free = {node: dict(resources) for node, resources in nodes.available_resources_per_node().items()}
print(json.dumps({
    "ray": ray.__version__,
    "alive": [node["NodeID"] for node in ray.nodes() if node["Alive"]],
    "sum": ray.available_resources(),
    "free": free,
    "draining": nodes.draining_nodes(),
    "autoscaling": autoscaler.is_autoscaling(),
    "limits": autoscaler.max_cluster_resources(),
}))
"""


def test_free_resources_per_node_are_the_clusters_and_a_single_head_neither_drains_nor_grows(
    project: Project,
) -> None:
    done = project.run(sys.executable, "-c", SCRIPT)
    assert done.status == 0, f"an upgrade of Ray broke orchestrator/cluster/ray_internals_*.py:\n{done.text}"
    found = json.loads(done.text.splitlines()[-1])
    version = f"Ray {found['ray']}"
    assert list(found["free"]) == found["alive"], version
    assert found["free"][found["alive"][0]] == found["sum"], version
    assert found["draining"] == {}, version
    assert found["autoscaling"] is False, version
    assert found["limits"] is None, version
