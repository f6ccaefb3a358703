"""Room on a cluster: whole workers on whole nodes."""

from __future__ import annotations

import json

import pytest

from orchestrator.cluster import capacity
from orchestrator.cluster.capacity import fitting_workers, refusal
from orchestrator.config.schema import Workers
from orchestrator.sweeps import ray_trials


def test_a_worker_never_spans_two_nodes() -> None:
    four_small = [{"CPU": 2.0}] * 4
    assert fitting_workers(Workers(min=2, max=2, cpus=4), four_small) == 0
    assert fitting_workers(Workers(min=2, max=8, cpus=1), four_small) == 8


def test_gpus_bound_as_well_as_cpus() -> None:
    node = {"CPU": 16.0, "GPU": 2.0}
    assert fitting_workers(Workers(min=1, max=8, cpus=1, gpus=1), [node]) == 2
    assert fitting_workers(Workers(min=1, max=8, cpus=8, gpus=0.5), [node]) == 2


def test_a_refusal_shows_the_arithmetic_and_a_fit_none() -> None:
    told = refusal(Workers(min=2, max=2, cpus=4), [{"CPU": 2.0}] * 4)
    assert "2 x 4 CPU = 8 CPU" in told
    assert "8 CPU on 4 nodes (2, 2, 2, 2)" in told
    assert refusal(Workers(min=2, max=2, cpus=1), [{"CPU": 2.0}]) == ""


# What the monitors of Ray 2.60 wrote on a head alone: started by hand, and with an autoscaler's configuration. The
# cluster that grows for real is in tests/slow/test_growing.py.
HEAD = "f" * 51 + "00000"


@pytest.mark.parametrize(
    ("kinds", "grows"),
    [
        ({HEAD: f"node_{HEAD}"}, False),
        ({HEAD: "ray.head.default"}, True),
        ({HEAD: "node_gpu"}, True),
        (None, False),
    ],
)
def test_a_monitor_tells_whether_nodes_are_added_by_somebody(
    kinds: dict[str, str] | None, grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.dumps({"autoscaler_report": {"node_type_mapping": kinds}})
    monkeypatch.setattr(capacity, "largest_cluster", lambda: None)
    monkeypatch.setattr(capacity, "is_autoscaler_v2", lambda fetch_from_server: False)
    monkeypatch.setattr(capacity, "_internal_kv_get", lambda key: report.encode())
    assert capacity.grows() is grows


def test_a_sweep_on_a_cluster_that_grows_runs_one_trial_at_a_time_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_trials, "largest_cluster", lambda: None)
    monkeypatch.setattr(ray_trials, "grows", lambda: True)
    monkeypatch.setattr(ray_trials.ray, "nodes", lambda: [{"Alive": True, "Resources": {"memory": 1e9}}])
    said: list[str] = []
    assert ray_trials.room(Workers(min=2, max=2), None, said.append) == 1
    assert ray_trials.room(Workers(min=2, max=2), 4, said.append) == 4
    assert "sweep.max_concurrent says how far" in said[0]
    assert said[1] == "trials at a time: 4"
