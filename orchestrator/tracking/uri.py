"""Resolve and display tracking URIs."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import TrackingError
from orchestrator.masking import unmasked, without_password
from orchestrator.paths import home

WITHOUT_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""The environment of an MLflow server that starts no queues of jobs and none of their seven worker processes."""


def resolve_tracking_uri(configured: str | None = None) -> str:
    """Return the absolute URI of the store: `configured`, else MLFLOW_TRACKING_URI, else SQLite at home.

    A relative SQLite path is relative to the project, because Ray runs a job in another working directory. The URI of
    a stored job has no password: MLFLOW_TRACKING_URI of the same server, or MLFLOW_TRACKING_PASSWORD, has it.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    uri = unmasked(configured, given) if configured else given or f"sqlite:///{home() / 'mlflow.db'}"
    database = sqlite_file(uri)
    return f"sqlite:///{home().parent / database}" if database else uri


def sqlite_file(uri: str) -> Path | None:
    """Return the database file of a SQLite URI, None for any other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def page_command(uri: str) -> str:
    """Return the command that starts MLflow's page for a SQLite store, or the address of a server."""
    database = sqlite_file(uri)
    if database is None:
        return without_password(uri)
    program = Path(sys.executable).with_name("mlflow")
    on_path = shutil.which("mlflow")
    name = "mlflow" if on_path and Path(on_path) == program else _short(program)
    options = _server_options(_short(database), _short(artifact_folder(database)), _free_port(5000))
    return shlex.join([name, *options])


def server_command(database: Path, port: int | None = None) -> tuple[list[str], str]:
    """Return the command that serves a SQLite store on loopback, and the address. `port` None takes a free one."""
    number = port or _free_port(5000)
    options = _server_options(str(database), str(artifact_folder(database)), number)
    return [sys.executable, "-m", "mlflow", *options], f"http://127.0.0.1:{number}"


def _server_options(database: str, artifacts: str, port: int) -> list[str]:
    return [
        *("server", "--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", artifacts),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]


def artifact_folder(database: Path) -> Path:
    """Return the folder with the artifacts of a SQLite store."""
    return database.parent / "mlartifacts"


def _short(path: Path) -> str:
    working = Path.cwd()
    return str(path.relative_to(working)) if path.is_relative_to(working) else str(path)


def _free_port(first: int) -> int:
    for port in range(first, first + 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise TrackingError(f"no free port on 127.0.0.1 between {first} and {first + 99} for the MLflow page")
