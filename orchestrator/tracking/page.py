"""Open MLflow's page of a tracking URI."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
import webbrowser
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from orchestrator.errors import TrackingError
from orchestrator.masking import without_password
from orchestrator.tracking.uri import WITHOUT_JOBS, server_command, sqlite_file

_START_SECONDS = 180.0
_EXPERIMENTS = "/#/experiments?workflowType=machine_learning"  # MLflow opens in its GenAI mode otherwise


def open_page(uri: str, port: int | None, echo: Callable[[str], None], *, browser: bool) -> None:
    """Open the list of experiments of `uri`. For a SQLite store, serve it on loopback until the server ends.

    Raises TrackingError when the store does not exist or the server does not start.
    """
    database = sqlite_file(uri)
    if database is None:
        page = without_password(uri).rstrip("/") + _EXPERIMENTS
        echo(page)
        if browser:
            webbrowser.open(page)
        return
    if not database.exists():
        raise TrackingError(
            f"{database}: nothing was tracked here yet. Train a model first: mirage train JOB"
        )
    command, address = server_command(database, port)
    server = subprocess.Popen(command, env={**os.environ, **WITHOUT_JOBS})
    try:
        wait_until_up(server, command, address)
        echo(f"{address}{_EXPERIMENTS}   stop with Ctrl-C")
        if browser:
            webbrowser.open(address + _EXPERIMENTS)
        server.wait()
    finally:
        server.terminate()
        server.wait()


def wait_until_up(server: subprocess.Popen[bytes], command: Sequence[str], address: str) -> None:
    """Wait until MLflow's server answers at `address`, on loopback. Raises TrackingError."""
    # No proxy reaches this machine's loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise TrackingError(f"MLflow's server ended with status {server.returncode}: {' '.join(command)}")
        try:
            with opener.open(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise TrackingError(f"{urlsplit(address).netloc}: MLflow's server did not start in {_START_SECONDS:g} s.")
