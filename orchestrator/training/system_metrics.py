"""Measure the load of a node: processor, memory, disk, network and GPU.

MLflow's own monitor (`mlflow.system_metrics`, tried in 3.17) cannot replace this:

- It ends for good at the first request that fails, and what it measured in an outage is lost. These metrics go through
  the journal like all others.
- Every node would send to MLflow itself, which a SQLite file on the driver's machine does not allow.
- It counts its own steps, so its charts have another x axis than the losses.
- It imports MLflow into a worker: 2 s of CPU and 125 MiB on each node.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import psutil  # type: ignore[import-untyped]
import torch

_MIB = 2**20


class NodeMetrics:
    """The load of this node; only the first worker of each node measures it."""

    def __init__(self, node: int, device: torch.device) -> None:
        self._prefix = f"system/node-{node}"
        self._device = device
        psutil.cpu_percent()  # the first value is meaningless
        self._then = time.monotonic()
        self._totals = _totals()

    @classmethod
    def of_this_worker(cls, device: torch.device) -> NodeMetrics | None:
        """Return the metrics of this worker's node, or None if another worker measures it."""
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return None
        return cls(int(os.environ.get("NODE_RANK", "0")), device)

    def read(self) -> dict[str, float]:
        """Return current values, and rates since the previous call."""
        now, totals = time.monotonic(), _totals()
        passed = max(now - self._then, 1e-9)
        values = {
            "cpu_percent": psutil.cpu_percent(),
            "memory_gib": psutil.virtual_memory().used / 2**30,
            "memory_percent": psutil.virtual_memory().percent,
            **{name: (totals[name] - self._totals[name]) / passed / _MIB for name in totals},
        }
        self._then, self._totals = now, totals
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            values["gpu_memory_gib"] = (total - free) / 2**30
            values["gpu_peak_allocated_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        return {f"{self._prefix}/{name}": value for name, value in values.items()}


def _totals() -> Mapping[str, int]:
    """Return the bytes read, written, received and sent since the node was started."""
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
    return {
        "disk_read_mib_per_second": disk.read_bytes if disk else 0,
        "disk_write_mib_per_second": disk.write_bytes if disk else 0,
        "network_received_mib_per_second": network.bytes_recv if network else 0,
        "network_sent_mib_per_second": network.bytes_sent if network else 0,
    }
