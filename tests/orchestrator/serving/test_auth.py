from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import ServiceError
from orchestrator.serving.auth import VARIABLE, allows, read_token


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ("Bearer secret", True),
        ("bearer secret", True),
        ("Bearer secre", False),
        ("Bearer secrets", False),
        ("Basic secret", False),
        ("secret", False),
        ("Bearer sécret", False),
        ("", False),
        (None, False),
    ],
)
def test_only_the_exact_token_is_accepted(given: str | None, allowed: bool) -> None:
    assert allows("secret", given) is allowed


def test_without_a_token_every_request_is_accepted() -> None:
    assert allows(None, None)


def test_a_token_file_takes_precedence_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "from-environment")
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert read_token(file) == "from-file"
    assert read_token(None) == "from-environment"
    monkeypatch.delenv(VARIABLE)
    assert read_token(None) is None


@pytest.mark.parametrize("content", ["", " \n", "two words", "sécret"])
def test_an_invalid_token_is_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(ServiceError, match="token"):
        read_token(file)


def test_a_missing_token_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="cannot be read"):
        read_token(tmp_path / "absent")
