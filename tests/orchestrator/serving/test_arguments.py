"""The arguments of the Serve application are the flags of `mirage serve`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.serve import serve as command
from orchestrator.errors import ServiceError
from orchestrator.serving import auth, webhook
from orchestrator.serving.arguments import ApplicationArguments
from orchestrator.serving.front_end import Secrets
from orchestrator.serving.ray_app import build, read_secrets
from orchestrator.serving.settings import ServiceSettings

MODEL = "models:/served@champion"


def test_names_and_defaults_are_those_of_the_command() -> None:
    flags = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    for name in ("model", "host", "port", "device"):  # Serve's options say where it listens
        del flags[name]
    arguments = ApplicationArguments(model=MODEL).model_dump(exclude={"model", "tracking_uri", "device"})
    assert arguments == flags


def test_text_of_serve_run_and_values_of_a_config_file_give_the_same_settings() -> None:
    text = {"model": MODEL, "max_in_flight": "8", "max_megabytes": "1.5", "timeout": "30", "poll": "5"}
    values = {"model": MODEL, "max_in_flight": 8, "max_megabytes": 1.5, "timeout": 30, "poll": 5}
    settings = ApplicationArguments.parse(text).settings()
    assert settings == ApplicationArguments.parse(values).settings()
    expected = ServiceSettings(max_in_flight=8, max_bytes=1_500_000, timeout_seconds=30, poll_seconds=5)
    assert settings == expected


def test_more_least_than_most_replicas_raise_the_most_as_the_command_does() -> None:
    assert ApplicationArguments.parse({"model": MODEL, "min_replicas": "3"}).settings().max_replicas == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "model: is missing"),
        ({"model": MODEL, "port": "1"}, "port: there is no such argument. There are model, tracking_uri"),
        ({"model": MODEL, "max_batch": "many"}, "max_batch: many: "),
        ({"model": MODEL, "device": "auto"}, "device: auto: "),
        ({"model": MODEL, "max_in_flight": "0"}, "--max-in-flight 0"),
    ],
)
def test_a_wrong_argument_is_one_clear_error_before_anything_starts(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ServiceError, match=message) as refused:
        build(given)
    assert "\n" not in str(refused.value)


def test_a_secret_that_only_the_builder_has_stops_the_front_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (auth.VARIABLE, webhook.VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    arguments = ApplicationArguments(model=MODEL)
    assert read_secrets(arguments, frozenset()) == Secrets()
    with pytest.raises(ServiceError, match=r"MIRAGE_SERVE_TOKEN: .* not on this node.*token_file=FILE"):
        read_secrets(arguments, frozenset({auth.VARIABLE}))
    file = tmp_path / "token"
    file.write_text("from-file")
    with_file = ApplicationArguments(model=MODEL, token_file=file)
    assert read_secrets(with_file, frozenset({auth.VARIABLE})) == Secrets(token="from-file")
    monkeypatch.setenv(webhook.VARIABLE, "hook")
    assert read_secrets(arguments, frozenset({webhook.VARIABLE})) == Secrets(webhook="hook")


def test_secrets_are_in_no_text_of_their_object() -> None:
    assert repr(Secrets("abc", "def")) == "Secrets(token, webhook)"


def test_no_secret_is_in_what_ray_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    import cloudpickle

    monkeypatch.setenv(auth.VARIABLE, "token-in-environment")
    monkeypatch.setenv(webhook.VARIABLE, "secret-in-environment")
    pickled = cloudpickle.dumps(build({"model": MODEL}))
    assert b"in-environment" not in pickled
    assert auth.VARIABLE.encode() in pickled
