"""As many groups run at a time as fit a cluster together, so that none waits for what another half holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster import concurrency
from orchestrator.cluster.concurrency import concurrent_groups, fitting_groups
from orchestrator.config.schema import Workers
from orchestrator.errors import PlanError


def test_two_cores_hold_two_groups_of_one_worker_and_one_of_two() -> None:
    node = [{"CPU": 2.0}]
    assert fitting_groups(Workers(min=1, max=1, cpus=1), node) == 2
    assert fitting_groups(Workers(min=2, max=2, cpus=1), node) == 1


def test_sixty_four_gpus_on_eight_nodes() -> None:
    nodes = [{"CPU": 96.0, "GPU": 8.0}] * 8
    assert fitting_groups(Workers(min=1, max=8, gpus=1, cpus=8), nodes) == 64
    assert fitting_groups(Workers(min=4, max=4, gpus=1, cpus=8), nodes) == 16
    assert fitting_groups(Workers(min=1, max=1, gpus=1, cpus=24), nodes) == 32


@given(
    st.lists(st.tuples(st.integers(0, 16), st.integers(0, 8)), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 2),
)
def test_all_groups_together_fit_and_one_more_would_not(
    nodes: list[tuple[int, int]], workers: int, cpus: int, gpus: int
) -> None:
    resources = [{"CPU": float(c), "GPU": float(g)} for c, g in nodes]
    groups = fitting_groups(Workers(min=workers, max=workers, cpus=cpus, gpus=gpus), resources)
    places = sum(min(c // cpus, g // gpus if gpus else c // cpus) for c, g in nodes)
    assert groups * workers <= places < (groups + 1) * workers


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster with one node of two CPUs."""
    monkeypatch.setattr(concurrency, "max_cluster_resources", lambda: None)
    monkeypatch.setattr(concurrency, "is_autoscaling", lambda: False)
    monkeypatch.setattr(concurrency.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])


def test_a_limit_bounds_what_fits(cluster: None) -> None:
    one = Workers(min=1, max=1, cpus=1)
    assert [concurrent_groups(one, limit) for limit in (None, 1, 9)] == [2, 1, 2]


def test_a_group_that_never_fits_is_refused(cluster: None) -> None:
    with pytest.raises(PlanError, match="the whole cluster has"):
        concurrent_groups(Workers(min=3, max=3, cpus=1), None)


def test_an_autoscaling_cluster_runs_what_fits_now_or_one_unless_a_limit_is_given(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrency, "is_autoscaling", lambda: True)
    assert concurrent_groups(Workers(min=2, max=2), None) == 1
    assert concurrent_groups(Workers(min=3, max=3), None) == 1
    assert concurrent_groups(Workers(min=3, max=3), 4) == 4
