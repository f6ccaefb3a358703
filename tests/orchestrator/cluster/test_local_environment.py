"""Which commands of a plain shell reach what `mirage up` runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from orchestrator.cli.app import use_local_cluster
from orchestrator.cluster.local import lifecycle, ray_head
from orchestrator.errors import ClusterError

OFFERED = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "RAY_ADDRESS": "127.0.0.1:1",
}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith(("AWS_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in OFFERED:  # so that what the function sets is taken back too
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(lifecycle, "environment", lambda project: dict(OFFERED))
    return monkeypatch


@pytest.mark.parametrize("harmless", ["AWS_CA_BUNDLE", "AWS_REGION", "AWS_DEFAULT_REGION"])
def test_a_region_or_a_certificate_bundle_is_no_store_of_ones_own(
    shell: pytest.MonkeyPatch, harmless: str
) -> None:
    shell.setenv(harmless, "x")
    use_local_cluster()
    assert {name: os.environ[name] for name in OFFERED} == OFFERED


@pytest.mark.parametrize("own", ["AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ROLE_ARN"])
def test_a_shell_with_a_store_of_its_own_keeps_it(shell: pytest.MonkeyPatch, own: str) -> None:
    shell.setenv(own, "mine")
    use_local_cluster()
    assert {name for name in os.environ if name.startswith("AWS_")} == {own}
    assert os.environ[own] == "mine"
    assert os.environ["RAY_ADDRESS"] == OFFERED["RAY_ADDRESS"]


@pytest.mark.parametrize(
    ("ray_version", "chosen", "mode"),
    [
        ("2.60.0", None, "disabled"),  # `ray job submit` of this version sends no token by itself
        ("2.61.0", None, "token"),
        ("3.0.0", None, "token"),
        ("2.60.0", "token", "token"),
        ("2.61.0", "disabled", "disabled"),
    ],
)
def test_a_head_asks_for_a_token_if_the_shell_says_so_or_else_if_rays_clients_send_one(
    shell: pytest.MonkeyPatch, ray_version: str, chosen: str | None, mode: str
) -> None:
    shell.setattr(ray_head, "version", lambda name: {"ray": ray_version}[name])
    shell.setenv("RAY_AUTH_TOKEN_PATH", "mine")
    if chosen is not None:
        shell.setenv("RAY_AUTH_MODE", chosen)
    where = {"RAY_AUTH_TOKEN_PATH": "mine"} if mode == "token" else {}
    assert ray_head.auth_environment() == {"RAY_AUTH_MODE": mode, **where}


def test_a_token_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    ray = str(Path(sys.executable).with_name("ray"))
    environment = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    ray_head.make_token_if_missing(ray, environment)
    token = tmp_path / ".ray" / "auth_token"
    made = token.read_text()
    assert len(made) >= 32
    assert token.stat().st_mode & 0o077 == 0
    ray_head.make_token_if_missing(ray, environment)
    assert token.read_text() == made
    with pytest.raises(ClusterError, match="token"):
        ray_head.make_token_if_missing(ray, {**environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})
