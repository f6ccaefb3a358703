"""A cluster that has no worker nodes until somebody asks: Ray's real autoscaler, whose cloud is this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from orchestrator.cluster.local.ports import free_port
from orchestrator.cluster.local.ray_head import make_temp_dir
from orchestrator.events import (
    CapacityAvailable,
    NodesDraining,
    Progress,
    Resumed,
    RunStopped,
    WorkersStarted,
    WorkersStarting,
)
from tests.claims import wait_until
from tests.orchestrator.conftest import SMALL
from tests.slow.driving import ENDLESS, RAY_ENVIRONMENT, Place, drain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.cluster]

NODES_AT_MOST = 2
NODES_THAT_COME = f"{'f' * 51}{{:05}}"
"""The ids that the provider gives its nodes, from 1."""
STORE_BYTES = 10**8


def autoscaling(address: str) -> dict[str, object]:
    """What `ray up` would hand its head; the provider, made for tests, starts real nodes as processes."""
    return {
        "cluster_name": "growing",
        "max_workers": NODES_AT_MOST,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1.0,
        "provider": {
            **{"type": "fake_multinode", "gcs_address": address},
            # Its nodes share an address and are ready when they are started.
            **{"use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True},
            **{"foreground_node_launch": True, "worker_liveness_check": False},
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "spot": {
                "resources": {"CPU": 1, "object_store_memory": STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": NODES_AT_MOST,
            },
        },
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("cluster_synced_files", "initialization_commands", "setup_commands")},
        **{f"{kind}_setup_commands": [] for kind in ("head", "worker")},
        **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
    }


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A head without CPUs whose autoscaler may add two nodes of one CPU."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    folder = make_temp_dir()
    config = tmp_path / "autoscaling.json"
    config.write_text(json.dumps(autoscaling(address)))
    fast = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", **RAY_ENVIRONMENT}
    with (tmp_path / "head.txt").open("wb") as output:
        head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *(f"--port={port}", "--node-ip-address=127.0.0.1", f"--dashboard-port={free_port()}"),
                f"--temp-dir={folder}",
                *("--num-cpus=0", f"--object-store-memory={STORE_BYTES}", f"--autoscaling-config={config}"),
            ],
            env={**os.environ, **fast},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        what = f"the head answers; see {tmp_path / 'head.txt'}"
        wait_until(lambda: answers(port) or head.poll() is not None, what, 120)
        assert head.poll() is None, (tmp_path / "head.txt").read_text()
        yield address
    finally:
        while left := psutil.Process(head.pid).children(recursive=True):  # some may be starting others
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, 5)
        head.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


HOLD = """
import pathlib, ray, sys, time
address, held = sys.argv[1:]
ray.init(address)
ray.get(ray.remote(num_cpus=1)(lambda: pathlib.Path(held).touch() or time.sleep(3600)).remote())
"""
"""Takes a CPU of a cluster, and makes a file when it has it."""


@contextmanager
def somebody_else_holds_a_cpu(address: str, folder: Path) -> Iterator[None]:
    """Another user's task on the cluster, which brings the first node and keeps it."""
    held, log = folder / "held", folder / "other.txt"
    with log.open("wb") as output:
        other = subprocess.Popen(
            [sys.executable, "-c", HOLD, address, str(held)],
            env={**os.environ, **RAY_ENVIRONMENT},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: held.exists() or other.poll() is not None, f"the CPU is held; see {log}", 200)
        assert held.exists(), log.read_text()
        yield
    finally:
        other.kill()
        other.wait()


def test_a_job_brings_the_nodes_it_needs_grows_as_there_is_more_room_and_heeds_a_notice(
    address: str, home: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    job = home.parent / "growing.yaml"
    values = {
        **SMALL,
        "name": "growing",
        "storage": str(home.parent / "store"),
        "train": {**SMALL["train"], "steps": ENDLESS},
        "workers": {"min": 1, "max": NODES_AT_MOST, "scale_up_delay_seconds": 1},
        "checkpoint": {"every_steps": 50},
        "validation": {"every_steps": ENDLESS, "photographs": 1, "crop_pixels": 32},
        "track": {"experiment": "tests", "every_steps": 20, "log": "json"},
    }
    job.write_text(yaml.safe_dump(values))
    place = Place(home, address, job)
    request.addfinalizer(place.end)
    with somebody_else_holds_a_cpu(address, tmp_path):
        driver = place.drive("growing")
        driver.emits(WorkersStarting, workers=1)
        driver.emits(WorkersStarted, workers=1)
        driver.emits(Progress, step=20)
        assert WorkersStarted(2) not in driver.events()
    driver.emits(CapacityAvailable, more_workers=1)
    driver.emits(WorkersStarted, workers=2)
    driver.emits(Resumed)

    drain(address, NODES_THAT_COME.format(NODES_AT_MOST))
    assert driver.emits(NodesDraining).seconds_left is not None
    driver.emits(WorkersStarted, workers=1)
    driver.emits(Resumed)
    driver.process.terminate()
    assert driver.process.wait(90) == 143, driver.output()
    assert driver.emits(RunStopped).step > 0

    # More than it can ever have: nobody knows how far it grows, so the wait ends it.
    values["workers"] = {"min": 1, "max": 1, "cpus": 64, "startup_timeout_seconds": 5}
    job.write_text(yaml.safe_dump(values))
    refused = place.drive("refused")
    assert refused.process.wait(120) not in (0, 143), refused.output()
    error = refused.errors.read_text()
    assert "after workers.startup_timeout_seconds (5 s) the autoscaling cluster" in error
    assert "has resources for 0 of at least 1 x (64 CPU, 0 GPU)" in error
