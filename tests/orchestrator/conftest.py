"""A small packed dataset of real photographs, a small job on it, and a real MLflow."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from orchestrator.cluster.local.ports import free_port
from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schema import Job
from orchestrator.data import datasets
from orchestrator.tracking import runs
from shards.dataset import Dataset
from tests.orchestrator.mlflow_server import Server

SMALL = {
    "name": "small",
    "recipe": "fast",
    "setting": "5deg",
    "model": {"dim": 6, "blocks": [1, 1, 1, 1], "refinement_blocks": 0, "heads": [1, 1, 1, 1]},
    "data": {
        "manifests": "small",
        "pack": {"source": "synthetic", "root": "photographs", "held_out": ["coffee", "cat"], "variants": 1},
        "crop_pixels": 16,
    },
    "train": {
        "steps": 6,
        "global_batch_size": 6,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "precision": "fp32",
        "ema_decay": 0.9,
    },
    "checkpoint": {"every_steps": 2, "keep": 2},
    "validation": {"every_steps": 3, "photographs": 1, "crop_pixels": 32},
    "track": {"experiment": "tests", "register_as": "small", "every_steps": 2},
    "example": {"photograph": "coffee", "degradation": "haze"},
}


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with four photographs, cut small."""
    project = tmp_path_factory.mktemp("project")
    folder = project / "photographs"
    folder.mkdir()
    for name in ("astronaut", "rocket", "coffee", "cat"):
        picture = np.ascontiguousarray(getattr(photographs, name)()[100:196, 150:262])
        Image.fromarray(picture).save(folder / f"{name}.png")
    return project / ".mirage"


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIRAGE_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


MakeJob = Callable[..., Job]


@pytest.fixture
def small_job(at_home: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    """Make the small job, with sections replaced key by key.

    Its dataset is packed once; its runs are in a storage of the test's own.
    """
    dataset = str(at_home.parent / "store" / "small")
    storage = str(tmp_path_factory.mktemp("storage"))

    def make(**changes: object) -> Job:
        values = {**SMALL, "storage": storage, "data": {**SMALL["data"], "manifests": dataset}}
        for name, change in changes.items():
            old = values.get(name)
            values[name] = (
                {**old, **change} if isinstance(old, Mapping) and isinstance(change, Mapping) else change
            )
        return job_from_mapping(values)

    return make


@pytest.fixture
def small_data(small_job: MakeJob) -> Dataset:
    job = small_job()
    datasets.ensure_packed(job)
    return datasets.open_dataset(job)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite store with its schema, which takes seconds to create."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    runs.start_run(uri, "warm-up", "first", {}, {})
    return uri


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One MLflow server for all tests that need one; mark them `xdist_group("mlflow")`."""
    running = Server(tmp_path_factory.mktemp("mlflow"), free_port())
    running.start()
    yield running
    running.kill()
