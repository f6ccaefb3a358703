"""State of single nodes, which no public interface of Ray 2.60 returns to a driver."""

from __future__ import annotations

from collections.abc import Mapping

import ray._private.state


def draining_nodes() -> dict[str, float]:
    """Return the nodes being drained, such as after a spot notice: node id -> deadline, Unix time [s].

    The deadline is 0 where none was given. `ray.train.get_preemption_info` returns this to training workers only.
    """
    draining: Mapping[str, int] = ray._private.state.state.get_draining_nodes()
    return {node: milliseconds / 1000 for node, milliseconds in draining.items()}


def available_resources_per_node() -> Mapping[str, Mapping[str, float]]:
    """Return the free resources of each live node: node id -> resource -> amount.

    `ray.available_resources` returns their sum over the cluster only.
    """
    available: Mapping[str, Mapping[str, float]] = ray._private.state.available_resources_per_node()
    return available
