"""Capacity of a cluster: a worker fits on one node, or not at all."""

from __future__ import annotations

import json

import pytest

from orchestrator.cluster import ray_internals_autoscaler
from orchestrator.cluster.capacity import fitting_workers, shortage
from orchestrator.config.schema import Workers


def test_a_worker_never_spans_two_nodes() -> None:
    four_small = [{"CPU": 2.0}] * 4
    assert fitting_workers(Workers(min=2, max=2, cpus=4), four_small) == 0
    assert fitting_workers(Workers(min=2, max=8, cpus=1), four_small) == 8


def test_gpus_limit_the_number_of_workers_as_cpus_do() -> None:
    node = {"CPU": 16.0, "GPU": 2.0}
    assert fitting_workers(Workers(min=1, max=8, cpus=1, gpus=1), [node]) == 2
    assert fitting_workers(Workers(min=1, max=8, cpus=8, gpus=0.5), [node]) == 2


def test_a_shortage_shows_the_arithmetic_and_enough_resources_show_nothing() -> None:
    message = shortage(Workers(min=2, max=2, cpus=4), [{"CPU": 2.0}] * 4)
    assert "2 x 4 CPU = 8 CPU" in message
    assert "8 CPU on 4 nodes (2, 2, 2, 2)" in message
    assert shortage(Workers(min=2, max=2, cpus=1), [{"CPU": 2.0}]) == ""


# As written by the monitor of Ray 2.60 on a head node: started by hand, and with an autoscaler's configuration.
# tests/slow/test_growing.py runs a real autoscaling cluster.
HEAD = "f" * 51 + "00000"


@pytest.mark.parametrize(
    ("node_types", "autoscaling"),
    [
        ({HEAD: f"node_{HEAD}"}, False),
        ({HEAD: "ray.head.default"}, True),
        ({HEAD: "node_gpu"}, True),
        (None, False),
    ],
)
def test_a_cluster_is_autoscaling_if_its_monitor_reports_node_types_of_a_configuration(
    node_types: dict[str, str] | None, autoscaling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.dumps({"autoscaler_report": {"node_type_mapping": node_types}})
    monkeypatch.setattr(ray_internals_autoscaler, "max_cluster_resources", lambda: None)
    monkeypatch.setattr(ray_internals_autoscaler, "is_autoscaler_v2", lambda fetch_from_server: False)
    monkeypatch.setattr(ray_internals_autoscaler, "_internal_kv_get", lambda key: report.encode())
    assert ray_internals_autoscaler.is_autoscaling() is autoscaling
