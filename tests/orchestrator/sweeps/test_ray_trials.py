"""As many trials run at a time as a cluster can hold whole, so none waits for what another half holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.schema import Workers
from orchestrator.sweeps.ray_trials import concurrency


def test_two_cores_hold_two_trials_of_one_worker_and_one_of_two() -> None:
    node = [{"CPU": 2.0}]
    assert concurrency(Workers(min=1, max=1, cpus=1), node) == 2
    assert concurrency(Workers(min=2, max=2, cpus=1), node) == 1


def test_sixty_four_gpus_on_eight_nodes() -> None:
    nodes = [{"CPU": 96.0, "GPU": 8.0}] * 8
    assert concurrency(Workers(min=1, max=8, gpus=1, cpus=8), nodes) == 64
    assert concurrency(Workers(min=4, max=4, gpus=1, cpus=8), nodes) == 16
    assert concurrency(Workers(min=1, max=1, gpus=1, cpus=24), nodes) == 32


@given(
    st.lists(st.tuples(st.integers(0, 16), st.integers(0, 8)), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 2),
)
def test_all_trials_together_fit_and_one_more_would_not(
    nodes: list[tuple[int, int]], workers: int, cpus: int, gpus: int
) -> None:
    resources = [{"CPU": float(c), "GPU": float(g)} for c, g in nodes]
    trials = concurrency(Workers(min=workers, max=workers, cpus=cpus, gpus=gpus), resources)
    places = sum(min(c // cpus, g // gpus if gpus else c // cpus) for c, g in nodes)
    assert trials * workers <= places < (trials + 1) * workers
