"""Request nodes from an autoscaler, which starts nodes for placement groups that are pending."""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from orchestrator.config.schema import WorkerResources


class NodeRequest:
    """Resources for single workers, one placement group each; they stay reserved until `release`."""

    def __init__(self, workers: WorkerResources) -> None:
        self.bundle = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
        self._groups: list[PlacementGroup] = []

    def request(self, count: int) -> None:
        """Raise the request to `count` workers in total."""
        while len(self._groups) < count:
            self._groups.append(placement_group([self.bundle]))

    def ready(self, draining: Iterable[str] = ()) -> int:
        """Return for how many workers resources are reserved.

        What is reserved on `draining` nodes is released and requested again.
        """
        if not self._groups:
            return 0
        table, leaving, count = placement_group_table(), set(draining), len(self._groups)
        ready = 0
        for group in list(self._groups):
            entry = table.get(group.id.hex(), {})
            if entry.get("state") != "CREATED":
                continue
            if leaving.intersection(entry["bundles_to_node_id"].values()):
                remove_placement_group(group)
                self._groups.remove(group)
            else:
                ready += 1
        self.request(count)
        return ready

    def release(self) -> None:
        """Release what is reserved and cancel what is pending."""
        for group in self._groups:
            remove_placement_group(group)
        self._groups.clear()
