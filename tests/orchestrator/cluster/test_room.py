"""Room on a cluster: whole workers on whole nodes."""

from __future__ import annotations

from orchestrator.cluster.room import fitting_workers, refusal
from orchestrator.config import Workers


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
