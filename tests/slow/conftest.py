"""One cluster for all slow tests, as a user has it: `mirage up`, `ray job submit`, `mirage down`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from tests.orchestrator.conftest import home
from tests.slow.project import QUICK_RAY, SMALL_JOB, Project, copy_project, plain_environment

__all__ = ["home"]  # a fixture: tests with clusters of their own share its data and its MLflow


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = copy_project(tmp_path_factory.mktemp("checkout"))
    small = root / "jobs" / "small.yaml"
    small.write_text(SMALL_JOB)
    small.chmod(0o755)
    (root / "photographs").mkdir()
    for name in ("astronaut", "rocket", "coffee", "cat"):
        picture = np.ascontiguousarray(getattr(photographs, name)()[100:228, 150:294])
        Image.fromarray(picture).save(root / "photographs" / f"{name}.png")
    # A token that Ray finds by itself, as on a machine where somebody has used Ray before.
    user = tmp_path_factory.mktemp("user")
    (user / ".ray").mkdir()
    (user / ".ray" / "auth_token").write_text("0" * 64)
    made = Project(root, {**plain_environment(), **QUICK_RAY, "HOME": str(user)})
    up = made.run(sys.executable, "-m", "orchestrator", "up")
    assert up.status == 0, up.text
    yield made
    down = made.run(sys.executable, "-m", "orchestrator", "down", "--force")
    assert down.status == 0, down.text
