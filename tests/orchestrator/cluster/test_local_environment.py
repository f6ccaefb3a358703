"""Which commands of a plain shell reach what `mirage up` runs."""

from __future__ import annotations

import os

import pytest

from orchestrator.cli.app import use_local_cluster
from orchestrator.cluster.local import lifecycle

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
