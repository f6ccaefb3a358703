"""`ray start --head` on loopback: which options and variables it gets, and how its jobs are ended."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from orchestrator.cluster.local import processes
from orchestrator.cluster.local.ports import free_port
from orchestrator.cluster.local.processes import Process
from orchestrator.cluster.local.s3_probe import opener
from orchestrator.errors import ClusterError

logger = logging.getLogger(__name__)

LEADER = "raylet"  # ends first; its agents complain about a loss otherwise
ENVIRONMENT = {
    "RAY_JOB_STOP_WAIT_TIME_S": "60",  # a stopped job has this long to write its checkpoint; Ray's own is 3
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a reported checkpoint is committed
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # workers would print everything twice
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's only switch that keeps 127.0.0.1 as a node's address
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_NOT_INHERITED = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_SUBMIT_HOOK", "OMP_NUM_THREADS")
_AWS_NOT_INHERITED = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_ENDPOINT_URL_S3")
_CORE = ("gcs_server", "raylet")
_START_SECONDS = 120.0
_MEBIBYTE = 1 << 20
OBJECT_STORE_BYTES = 300 * _MEBIBYTE  # batches travel through files, not through Ray's object store
_UNIX_SOCKET_BUDGET = 40  # Ray adds 63 characters, and a socket's path may have 107


def make_temp_dir() -> str:
    """Make a private folder whose path is short enough for Ray's unix sockets.

    Ray also expects its own default folder to exist, whichever it is told to use.
    """
    system = tempfile.gettempdir()
    short = tempfile.mkdtemp(
        prefix="mirage-", dir=system if len(system) < _UNIX_SOCKET_BUDGET - 20 else "/tmp"
    )
    stale_address_file().parent.mkdir(exist_ok=True)
    return short


def start(
    *,
    tag: str,
    project: Path,
    log: Path,
    temp_dir: Path,
    environment: dict[str, str],
    replaces_aws: bool,
    ray_port: int,
    dashboard_port: int,
    cpus: int | None,
) -> list[Process]:
    """Start a head whose jobs run in `project`, and return its processes once it takes jobs.

    Raises `ClusterError` with Ray's last words and the path of the log.
    """
    ray = shutil.which("ray", path=str(Path(sys.executable).parent))
    if ray is None:
        raise ClusterError(
            "no `ray` beside this Python: install the project (`make setup`) and use its .venv"
        )
    # The agent is what starts jobs. On its fixed default port the agent of a head that has just died may still
    # sit; the new one would then run without taking any job.
    agent_port = free_port()
    command = [
        *(ray, "start", "--head", "--disable-usage-stats"),
        *("--node-ip-address", "127.0.0.1", "--port", str(ray_port)),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)),
        *("--dashboard-agent-listen-port", str(agent_port)),
        *("--ray-client-server-port", str(free_port())),  # it cannot be turned off, and 10001 may be taken
        *("--min-worker-port", "0", "--max-worker-port", "0"),  # any; Ray's fixed range may hold our ports
        *("--object-store-memory", str(OBJECT_STORE_BYTES)),
        *(
            "--temp-dir",
            str(temp_dir / "ray"),
        ),  # Ray opens its own folder to everyone; the outer one stays private
        *(("--num-cpus", str(cpus)) if cpus is not None else ()),
    ]
    dropped = {*_NOT_INHERITED, *(_AWS_NOT_INHERITED if replaces_aws else ())}
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    with open(log, "wb") as output:
        try:
            ended = subprocess.run(
                command,
                cwd=project,  # a job submitted without a working directory runs where its head was started
                env={**inherited, **environment, "PATH": path_with_this_python(), processes.TAG: tag},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                timeout=_START_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"Ray did not start within {_START_SECONDS:.0f} s (log: {log})") from error
    if ended.returncode != 0:
        raise ClusterError(f"Ray did not start: {_reason(log)} (log: {log})")
    deadline = time.monotonic() + _START_SECONDS
    for name, port, ready in (
        ("dashboard", dashboard_port, answers),
        ("dashboard_agent", agent_port, _takes_jobs),
    ):
        while not ready(port):
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"Ray's {name} did not answer within {_START_SECONDS:.0f} s: "
                    f"see {log.parent / 'ray' / f'{name}.log'}"
                )
            time.sleep(0.2)
    return [process for process in processes.tagged(tag) if process.name in _CORE]


def answers(dashboard_port: int) -> bool:
    """Whether Ray's job server answers on this port of loopback."""
    try:
        return "ray_version" in _request(dashboard_port, "/api/version")
    except (OSError, ValueError):
        return False


def _takes_jobs(agent_port: int) -> bool:
    """Whether the head's agent, through which jobs are started, answers on this port of loopback."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{agent_port}/api/local_raylet_healthz", timeout=5
        ) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def stop_jobs(dashboard_port: int, grace_seconds: float) -> list[str]:
    """Ask every running job to stop, wait until they have, and return their submission ids."""
    jobs = _running_jobs(dashboard_port)
    for job in jobs:
        _request(dashboard_port, f"/api/jobs/{job}/stop", method="POST")
    deadline = time.monotonic() + grace_seconds
    while _running_jobs(dashboard_port) and time.monotonic() < deadline:
        time.sleep(0.3)
    return jobs


def auth_mode() -> str:
    """Return whether the head asks for a token: only if the user says so.

    Left to itself, Ray asks for one as soon as `~/.ray/auth_token` exists, which any earlier `ray.init()` may have
    made; the same command would then work on one machine and be refused on the next.
    """
    return os.environ.get("RAY_AUTH_MODE", "disabled")


def _authorization() -> dict[str, str]:
    """Return the header that a head with token authentication wants; Ray's own places of the token."""
    if auth_mode().lower() != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and file.is_file():
        token = file.read_text().strip()
    return {"Authorization": f"Bearer {token}"}


def session_logs(temp_dir: Path) -> Path:
    """Return where the head with this temp dir writes its logs."""
    return temp_dir / "ray" / "session_latest" / "logs"


def stale_address_file() -> Path:
    """Return the file by which Ray finds a cluster before it looks for processes; ours never writes it."""
    return Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"


def path_with_this_python() -> str:
    """Return PATH with this interpreter's folder first, so that a job file's `python` is this one."""
    own = str(Path(sys.executable).parent)
    rest = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder != own]
    return os.pathsep.join([own, *rest])


def _running_jobs(dashboard_port: int) -> list[str]:
    jobs = _request(dashboard_port, "/api/jobs/")
    return [
        job["submission_id"]
        for job in jobs
        if job["type"] == "SUBMISSION" and job["status"] in ("PENDING", "RUNNING")
    ]


def _request(dashboard_port: int, path: str, *, method: str = "GET") -> Any:
    url = f"http://127.0.0.1:{dashboard_port}{path}"
    request = urllib.request.Request(url, method=method, headers=_authorization())
    with opener(url).open(request, timeout=10) as response:
        return json.load(response)


def _reason(log: Path) -> str:
    """Return the exception's line of a log that ends in a traceback, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors or lines or ["it wrote no message"])[-1]
