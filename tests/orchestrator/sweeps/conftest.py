"""A small sweep, and sweeps whose trials are given instead of trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from orchestrator.config.loader import job_from_mapping
from orchestrator.config.sweep_schema import SweepJob

MakeSweep = Callable[..., SweepJob]

BASE: Mapping[str, Any] = {
    "name": "mine",
    "kind": "sweep",
    "recipe": "fast",
    "setting": "5deg",
    "model": {"dim": 12, "blocks": [1, 1, 1, 1], "refinement_blocks": 0, "heads": [1, 1, 1, 1]},
    "data": {"manifests": "mine", "crop_pixels": 64},
    "train": {"steps": 90, "global_batch_size": 8, "warmup_steps": 5, "precision": "fp32"},
    "validation": {"every_steps": 10},
    "track": {"experiment": "tests"},
}

SPACE: Mapping[str, Any] = {
    "model.dim": {"choice": [6, 12, 18]},
    "model.branch_ratios": {"choice": [[1, 1, 1], [4, 1, 1], [1, 4, 1]]},
    "loss.spd_weight": {"log_range": [0.001, 0.1], "points": 3},
}


@pytest.fixture
def make_sweep() -> MakeSweep:
    """Make a sweep job: keys of `sweep`, and `job` for whole sections beside it."""

    def make(job: Mapping[str, Any] | None = None, **sweep: Any) -> SweepJob:
        made = job_from_mapping({**BASE, **(job or {}), "sweep": {"space": SPACE, **sweep}})
        assert isinstance(made, SweepJob)
        return made

    return make
