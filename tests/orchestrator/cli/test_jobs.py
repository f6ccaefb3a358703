"""Commands that run a job: how they end when they are asked to stop."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from orchestrator import runner
from orchestrator.config.job_types import AnyJob, JobOutcome
from orchestrator.console import Echo
from orchestrator.signals import on_stop
from tests.claims import Finished, mirage

DEMO = Path(__file__).resolve().parents[3] / "jobs" / "demo.yaml"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path))


def stopped_by(number: int, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """Return how `mirage train` ended after a job that this signal stopped."""

    def run_any(job: AnyJob, echo: Echo, *, in_process: bool, wait: bool) -> JobOutcome:
        with on_stop(lambda: None):
            os.kill(os.getpid(), number)
        return JobOutcome("stopped", 3, 20)

    monkeypatch.setattr(runner, "run_any", run_any)
    return mirage("train", DEMO, "--set", "storage=my photos", "--in-process")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stopped_job_names_the_command_that_continues_it(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = stopped_by(number, monkeypatch)
    assert done.status == status
    assert f"to continue: mirage train {DEMO} --set 'storage=my photos' --in-process" in done.text


def test_a_submitted_job_names_no_command_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = {"metadata": {"job_submission_id": "raysubmit_1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    done = stopped_by(signal.SIGTERM, monkeypatch)
    assert done.status == 143
    assert "to continue" not in done.text
