"""Ask a cluster that grows for workers: placement groups that wait are what its autoscaler answers with nodes."""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from orchestrator.config.schema import WorkerResources


class Asking:
    """Room for single workers, each a placement group of its own; what has come is held until `release`."""

    def __init__(self, workers: WorkerResources) -> None:
        self.bundle = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
        self._groups: list[PlacementGroup] = []

    def ask(self, count: int) -> None:
        """Ask for room for `count` workers in all."""
        while len(self._groups) < count:
            self._groups.append(placement_group([self.bundle]))

    def come(self, going: Iterable[str] = ()) -> int:
        """Return for how many there is room by now. Room on nodes that are `going` is given back and asked for anew."""
        if not self._groups:
            return 0
        table, leaving, count = placement_group_table(), set(going), len(self._groups)
        come = 0
        for group in list(self._groups):
            told = table.get(group.id.hex(), {})
            if told.get("state") != "CREATED":
                continue
            if leaving.intersection(told["bundles_to_node_id"].values()):
                remove_placement_group(group)
                self._groups.remove(group)
            else:
                come += 1
        self.ask(count)
        return come

    def release(self) -> None:
        """Give back what has come, and ask for nothing more."""
        for group in self._groups:
            remove_placement_group(group)
        self._groups.clear()
