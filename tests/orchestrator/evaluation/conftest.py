"""A new model, and a job that evaluates it on the small dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mirage import MIRAGE, ModelConfig, save
from orchestrator.config.job_schemas import EvaluateJob
from orchestrator.config.loader import job_from_mapping
from shards.dataset import Dataset

MakeEvaluation = Callable[..., EvaluateJob]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = MIRAGE(ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 1, 1)))
    path = tmp_path_factory.mktemp("weights") / "fresh.safetensors"
    save(model, path, {"recipe": "fast", "weights": "EMA"})
    return path


@pytest.fixture
def evaluation_job(small_data: Dataset, at_home: Path, weights: Path, tmp_path: Path) -> MakeEvaluation:
    """Return a function that makes a job that evaluates a new model on the small dataset, in a folder of its own."""

    def make(**changes: object) -> EvaluateJob:
        job = job_from_mapping(
            {
                "name": "evaluate",
                "kind": "evaluate",
                "storage": str(tmp_path),
                "model": {"weights": str(weights)},
                "data": {"manifests": small_data.uris[0]},
                "evaluate": {"degradations": ["rain", "noise25"]},
                "track": {"experiment": "evaluation"},
                **changes,
            }
        )
        assert isinstance(job, EvaluateJob)
        return job

    return make
