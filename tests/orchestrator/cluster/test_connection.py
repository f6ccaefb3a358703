"""What travels to workers, and when a process starts a Ray of its own; with Ray in tests/slow/test_secrets.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import cloudpickle
import pytest

from orchestrator.cluster import private_ray
from orchestrator.cluster.connection import _runtime_env
from orchestrator.cluster.local import ray_head

SECRETS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MIRAGE_ANYTHING"),
)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Path]:
    """An environment without Ray's variables and an empty folder for its address; changes are undone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", *SECRETS))}
    not_imported = {name: module for name, module in sys.modules.items() if name != "ray"}
    with (
        mock.patch.dict(os.environ, {**kept, "RAY_TMPDIR": str(tmp_path)}, clear=True),
        mock.patch.dict(sys.modules, not_imported, clear=True),
    ):
        (tmp_path / "ray").mkdir()
        yield tmp_path / "ray" / "ray_current_cluster"


def test_workers_get_credentials_and_what_ray_shows_of_them_has_none(environment: Path) -> None:
    secrets = dict.fromkeys(SECRETS, "CANARY")
    runtime_env = _runtime_env(
        {**secrets, "MIRAGE_SERVE_TOKEN": "CANARY", "RAY_TRAIN_X": "1", "HOME": "/root"}
    )
    hook = runtime_env.pop("worker_process_setup_hook")
    assert "CANARY" not in str(runtime_env)
    assert "CANARY" not in str(hook)
    assert runtime_env["env_vars"]["RAY_TRAIN_X"] == "1"
    before = dict(os.environ)
    cloudpickle.loads(cloudpickle.dumps(hook))()  # as Ray sends it
    assert dict(os.environ) == before | secrets


def test_a_process_starts_a_ray_of_its_own_unless_a_cluster_is_named(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert private_ray.is_needed()
    environment.write_text("10.0.0.1:6379")
    assert not private_ray.is_needed()
    monkeypatch.setattr(os, "getuid", lambda: environment.stat().st_uid + 1)  # another account wrote the file
    assert private_ray.is_needed()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not private_ray.is_needed()


def test_a_ray_of_its_own_asks_for_a_token_unless_the_user_says_otherwise(environment: Path) -> None:
    private_ray.prepare()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(token := os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ.items() >= ray_head.ENVIRONMENT.items()
    private_ray.prepare()
    assert os.environ["RAY_AUTH_TOKEN"] == token
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        del os.environ[name]
    os.environ["RAY_AUTH_MODE"] = "disabled"
    private_ray.prepare()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_after_ray_was_imported_it_is_too_late_for_its_settings(environment: Path) -> None:
    sys.modules["ray"] = mock.Mock()
    before = dict(os.environ)
    private_ray.prepare()
    assert dict(os.environ) == before


def test_with_a_cluster_nothing_is_prepared(environment: Path) -> None:
    os.environ["RAY_ADDRESS"] = "10.0.0.1:6379"
    before = dict(os.environ)
    private_ray.prepare()
    assert dict(os.environ) == before


def test_the_session_is_in_a_folder_that_others_cannot_open_and_goes_at_the_end() -> None:
    with private_ray.session() as arguments:
        private = Path(arguments["_temp_dir"]).parent
        assert private.stat().st_mode & 0o777 == 0o700
    assert not private.exists()
