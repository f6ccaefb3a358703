"""No credential is printed or stored: canaries in a job's tracking URI reach no file, parameter or message."""

from __future__ import annotations

import logging

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.job_types import AnyJob
from orchestrator.config.loader import dump_job, job_from_mapping, load_job, show_job
from orchestrator.errors import OrchestratorError
from orchestrator.masking import MaskingFormatter, masked, print_traceback, unmasked, without_password
from orchestrator.tracking import runs
from orchestrator.tracking.uri import resolve_tracking_uri
from tests.claims import mirage

CANARY = "CANARY"
URI = f"http://me:{CANARY}@mlflow.example:5000"


def with_uri(job_file: str) -> AnyJob:
    return load_job(job_file, [f"track.uri={URI}"])


@given(
    scheme=st.sampled_from(["http", "https", "postgresql+psycopg2", "mysql", "s3"]),
    user=st.text("abcXYZ019._%-", max_size=8),
    before=st.text("abc/@:!$&'()*+,;=%~#?-", max_size=6),
    after=st.text("abc/@:!$&'()*+,;=%~#?-", max_size=6),
    around=st.sampled_from(["{}", "MLflow at {}: no answer.", "uri='{}', next", '{{"uri": "{}"}}']),
)
def test_no_password_of_a_uri_is_shown(scheme: str, user: str, before: str, after: str, around: str) -> None:
    uri = f"{scheme}://{user}:{before}{CANARY}{after}@host:5000/path"
    shown = without_password(around.format(uri))
    assert CANARY not in shown
    assert shown == around.format(f"{scheme}://***@host:5000/path")


@pytest.mark.parametrize(
    "name", ["password", "token", "sslpassword", "X-Amz-Signature", "AWSAccessKeyId", "api_key"]
)
def test_no_secret_in_the_query_of_a_uri_is_shown(name: str) -> None:
    shown = without_password(f"https://host/path?a=1&{name}={CANARY}&b=2 and more")
    assert shown == f"https://host/path?a=1&{name}=***&b=2 and more"


def test_what_holds_no_credential_is_shown_as_it_is() -> None:
    for text in (
        "models:/mirage@champion",
        "s3://bucket/a@b",
        "sqlite:////home/me@work/x.db",
        "a//b",
        "x?keys=",
        "1:40",
    ):
        assert without_password(text) == text
    assert masked({"a": [1, None, ("b",)], "c": {"d": 0.5}}) == {"a": [1, None, ("b",)], "c": {"d": 0.5}}


@pytest.mark.parametrize(
    "job_file",
    ["jobs/demo.yaml", "jobs/evaluate/demo.yaml", "jobs/sweeps/demo.yaml"],
    ids=["train", "evaluate", "sweep"],
)
def test_no_stored_or_shown_form_of_a_job_has_its_password(job_file: str) -> None:
    job = with_uri(job_file)
    assert job.track.uri == URI  # the process itself needs it
    for text in (dump_job(job), show_job(job), str(runs.flat_params(job.model_dump(mode="json")))):
        assert CANARY not in text
        assert "//***@mlflow.example:5000" in text


def test_what_ray_stores_of_a_run_or_sweep_has_no_password() -> None:
    from types import SimpleNamespace
    from typing import Any, cast

    from orchestrator.sweeps.trial_training import SweepTraining
    from orchestrator.training.assignment import worker_assignment

    data = cast(Any, SimpleNamespace(digests=[]))
    place = cast(Any, SimpleNamespace(uri="s3://bucket/runs/x"))
    made = [
        worker_assignment(cast(Any, with_uri("jobs/demo.yaml")), data, place),
        SweepTraining.of(cast(Any, with_uri("jobs/sweeps/demo.yaml")), "sweep", data),
    ]
    assert CANARY not in str(made)


def test_a_stored_job_connects_with_the_password_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = job_from_mapping(yaml.safe_load(dump_job(with_uri("jobs/demo.yaml"))))
    assert stored.track.uri == "http://***@mlflow.example:5000"
    assert resolve_tracking_uri(stored.track.uri) == "http://mlflow.example:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    assert resolve_tracking_uri(stored.track.uri) == URI
    assert unmasked("http://***@other", URI) == "http://other"
    assert unmasked("http://a:b@other", URI) == "http://a:b@other"


def test_the_command_line_prints_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.cli import app as cli

    def fails(*arguments: object, **options: object) -> None:
        raise OrchestratorError(f"no answer from {URI}")

    monkeypatch.setattr("orchestrator.config.loader.load_job", fails)
    assert cli
    done = mirage("plan", "jobs/demo.yaml")
    assert done.status == 2
    assert CANARY not in done.text
    record = logging.LogRecord("urllib3", logging.WARNING, "", 1, "retrying %s", (URI,), None)
    assert CANARY not in MaskingFormatter().format(record)


def test_a_traceback_has_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ConnectionError(f"no answer from {URI}")
    except ConnectionError as error:
        print_traceback(type(error), error, error.__traceback__)
    printed = capsys.readouterr().err
    assert "ConnectionError: no answer from http://***@mlflow.example:5000" in printed
    assert CANARY not in printed.replace("CANARY}", "")
