"""What we use of Ray without a public interface is still there; tests/slow/test_ray_internals.py uses it."""

from __future__ import annotations

import importlib

import pytest
import ray


@pytest.mark.parametrize(
    ("module", "name", "ours"),
    [
        ("ray._private.state", "state.get_draining_nodes", "cluster/ray_internals_nodes.py"),
        ("ray._private.state", "available_resources_per_node", "cluster/ray_internals_nodes.py"),
        (
            "ray._private.state",
            "state.get_max_resources_from_cluster_config",
            "cluster/ray_internals_autoscaler.py",
        ),
        ("ray._private.ray_constants", "DEBUG_AUTOSCALING_STATUS", "cluster/ray_internals_autoscaler.py"),
        ("ray.experimental.internal_kv", "_internal_kv_get", "cluster/ray_internals_autoscaler.py"),
        ("ray.autoscaler.v2.utils", "is_autoscaler_v2", "cluster/ray_internals_autoscaler.py"),
    ],
)
def test_ray_still_has_it(module: str, name: str, ours: str) -> None:
    message = f"Ray {ray.__version__} has no {module}.{name}: adapt orchestrator/{ours}"
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{message} ({error})")
    assert found is not None, message
