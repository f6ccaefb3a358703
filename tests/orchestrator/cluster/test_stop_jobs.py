"""Stopping the jobs of a head through Ray's own client, against a server that answers as Ray's dashboard does."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from orchestrator.cluster.local import ports, ray_head


class Dashboard(http.server.ThreadingHTTPServer):
    """A dashboard with one running job, one driver and one job that has ended."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = {"running": "RUNNING", "ended": "FAILED"}
        self.stopped: list[str] = []
        self.token_needed = False


class Handler(http.server.BaseHTTPRequestHandler):
    server: Dashboard

    def reply(self, answer: Any, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def do_GET(self) -> None:
        if self.server.token_needed:
            self.reply({}, 401)
        elif self.path == "/api/version":
            self.reply({"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})
        else:
            job = {"entrypoint": "python", "metadata": {}, "runtime_env": {}}
            submitted = [
                {**job, "type": "SUBMISSION", "submission_id": name, "status": status}
                for name, status in self.server.status.items()
            ]
            driver = {**job, "type": "DRIVER", "job_id": "01000000", "status": "RUNNING"}
            self.reply([*submitted, driver])

    def do_POST(self) -> None:
        name = self.path.split("/")[-2]
        self.server.stopped.append(name)
        self.server.status[name] = "STOPPED"
        self.reply({"stopped": True})

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    with Dashboard() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_running_jobs_of_this_head_are_stopped_whatever_cluster_the_shell_names(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = f"http://127.0.0.1:{ports.free_port()}"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", another)
    environment = {"RAY_AUTH_MODE": "disabled", "NO_PROXY": "127.0.0.1"}
    assert ray_head.stop_jobs(dashboard.server_port, environment, 10) == ["running"]
    assert dashboard.stopped == ["running"]
    assert os.environ["RAY_API_SERVER_ADDRESS"] == another
    assert ray_head.stop_jobs(dashboard.server_port, environment, 10) == []


def test_a_dashboard_that_wants_a_token_answers(dashboard: Dashboard) -> None:
    assert ray_head.dashboard_answers(dashboard.server_port)
    dashboard.token_needed = True
    assert ray_head.dashboard_answers(dashboard.server_port)
    assert not ray_head.dashboard_answers(ports.free_port())


def test_a_head_that_refuses_the_token_is_an_error_that_the_caller_expects(dashboard: Dashboard) -> None:
    dashboard.token_needed = True
    environment = {"RAY_AUTH_MODE": "disabled", "NO_PROXY": "127.0.0.1"}
    with pytest.raises(RuntimeError, match=f"port {dashboard.server_port} refuses"):
        ray_head.running_jobs(dashboard.server_port, environment)
