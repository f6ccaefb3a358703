"""`mirage ui` serves the page of a SQLite store and stops its server; for a server it prints the address."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import TrackingError
from orchestrator.tracking.page import open_page
from tests.claims import wait_until


def test_the_page_of_a_server_is_its_address_without_the_password() -> None:
    printed: list[str] = []
    open_page("http://me:secret@mlflow:5000/", None, printed.append, browser=False)
    assert printed == ["http://***@mlflow:5000/#/experiments?workflowType=machine_learning"]


def test_a_project_without_runs_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="nothing was tracked here yet"):
        open_page(f"sqlite:///{tmp_path}/mlflow.db", None, print, browser=False)


@pytest.mark.slow
def test_the_page_is_served_until_ctrl_c_and_no_process_is_left(
    store: str, closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    command = [sys.executable, "-m", "orchestrator", "ui", "--no-browser", "--port", str(closed_port)]
    with (tmp_path / "log").open("w") as log:
        page = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        printed = f"http://127.0.0.1:{closed_port}/#/experiments?workflowType=machine_learning"
        log_file = tmp_path / "log"
        wait_until(
            lambda: page.poll() is not None or printed in log_file.read_text(), "the address is printed", 200
        )
        assert page.poll() is None, log_file.read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{closed_port}/", timeout=60) as answer:
            assert b"MLflow" in answer.read()
        started = psutil.Process(page.pid).children(recursive=True)
        assert started
        page.send_signal(signal.SIGINT)
        assert page.wait(60) == 130
        _, left = psutil.wait_procs(started, timeout=30)
        assert not left
    finally:
        page.kill()
        page.wait()
