"""A run on a cluster of several nodes that come and go: it shrinks, grows, and consumes each sample exactly once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from orchestrator.cluster.local.ports import free_port
from orchestrator.events import (
    CapacityAvailable,
    NodesDraining,
    Progress,
    Resumed,
    RunStopped,
    WorkersLost,
    WorkersRestarting,
    WorkersStarted,
    WorkerTerminated,
)
from orchestrator.maintenance.sample_ledger import consumed
from tests.claims import wait_until
from tests.orchestrator.conftest import SMALL
from tests.slow.driving import ENDLESS, NOTICE_SECONDS, RAY_ENVIRONMENT, Place, drain

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.cluster,
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, and no nodes yet."""
    for name, value in RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # an earlier test may have imported Ray

    Path("/tmp/ray").mkdir(exist_ok=True)
    # A lost node is noticed after 5 seconds.
    health = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    head = {"num_cpus": 0, "node_ip_address": "127.0.0.1", "object_store_memory": 10**8}
    head["dashboard_port"] = free_port()  # another cluster of this machine may have the usual one
    made = Cluster(initialize_head=True, head_node_args={**head, "_system_config": health})
    yield made
    made.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=10**8, wait=True)


def elastic_job(home: Path) -> Mapping[str, Any]:
    return {
        **SMALL,
        "name": "elastic",
        "storage": str(home.parent / "store"),
        "data": {**SMALL["data"], "ledger": True},
        # Three images in a micro-batch: two workers share them as 2 + 1.
        "train": {**SMALL["train"], "steps": ENDLESS, "global_batch_size": 3},
        "workers": {"min": 1, "max": 2, "scale_up_delay_seconds": 2},
        "checkpoint": {"every_steps": 50, "keep": 2},
        "validation": {"every_steps": ENDLESS, "photographs": 1, "crop_pixels": 32},
        "track": {"experiment": "tests", "every_steps": 20, "log": "json"},
    }


def train_workers() -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]


def newest(folder: Path) -> dict[str, Any]:
    return dict(json.loads(max((folder / "checkpoints").iterdir()).read_bytes()))


def test_nodes_come_and_go_and_each_sample_is_consumed_once(
    cluster, home: Path, request: pytest.FixtureRequest
) -> None:
    add_node(cluster)
    second = add_node(cluster)
    job = home.parent / "elastic.yaml"
    job.write_text(yaml.safe_dump(elastic_job(home)))
    place = Place(home, cluster.address, job)
    request.addfinalizer(place.end)
    driver = place.drive("driver")
    driver.emits(WorkersStarted, workers=2)
    driver.emits(Progress, step=60)

    drain(cluster.address, second.node_id)
    draining = driver.emits(NodesDraining, nodes=(second.node_id,))
    assert 0 < draining.seconds_left <= NOTICE_SECONDS
    restarting = driver.emits(WorkersRestarting)  # the checkpoint is written while the node is there
    driver.emits(WorkersStarted, workers=1)
    driver.emits(Resumed, step=restarting.step)
    cluster.remove_node(second, allow_graceful=False)

    third = add_node(cluster)
    driver.emits(CapacityAvailable, more_workers=1)
    driver.emits(WorkersStarted, workers=2)
    driver.emits(Resumed)

    cluster.remove_node(third, allow_graceful=False)
    driver.emits(WorkersLost, nodes=(third.node_id,))
    driver.emits(WorkersStarted, workers=1)
    driver.emits(Resumed)

    (worker,) = train_workers()
    os.kill(worker.pid, signal.SIGTERM)
    driver.emits(WorkerTerminated)
    driver.emits(WorkersRestarting)
    driver.emits(WorkersStarted, workers=1)

    os.kill(driver.process.pid, signal.SIGKILL)
    driver.process.wait()
    wait_until(lambda: not train_workers(), "workers end with their driver")
    again = place.drive("again")
    again.emits(Resumed)
    again.process.send_signal(signal.SIGTERM)
    assert again.process.wait(90) == 143, again.output()
    stop = again.emits(RunStopped)

    stopped = newest(place.folder())
    assert stop.step == stopped["step"]
    found = consumed(str(place.folder()))
    assert found.positions == stopped["position"] == 3 * stopped["step"]
    # Six starts, of which two were killed, perhaps before they wrote anything; where Ray hears of a new node late, the
    # group begins once more without it.
    assert 4 <= found.attempts <= 8
