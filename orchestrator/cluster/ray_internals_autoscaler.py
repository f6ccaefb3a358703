"""Whether the cluster has an autoscaler, and its limits; no public interface of Ray 2.60 says either."""

from __future__ import annotations

import json
from collections.abc import Mapping

import ray._private.state
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get


def is_autoscaling() -> bool:
    """Return whether an autoscaler may add nodes to this cluster on demand.

    Also True for a KubeRay cluster whose autoscaler is switched off: its head looks the same.
    """
    if max_cluster_resources() is not None or is_autoscaler_v2(fetch_from_server=True):
        return True
    status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)  # autoscaler v1 leaves its report here
    report = (json.loads(status) if status else {}).get("autoscaler_report") or {}
    # On a cluster started by hand the monitor reports too, with a node type `node_<id>` for each node.
    node_types = report.get("node_type_mapping") or {}
    return any(node_type != f"node_{node}" for node, node_type in node_types.items())


def max_cluster_resources() -> Mapping[str, float] | None:
    """Return the most that an autoscaling cluster can hold, or None if unknown, as with Ray's own launchers."""
    limits: Mapping[str, float] | None = ray._private.state.state.get_max_resources_from_cluster_config()
    return limits or None
