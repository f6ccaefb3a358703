"""Start a Ray head on loopback, and stop its jobs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version

from orchestrator.cluster.local import processes
from orchestrator.cluster.local.ports import free_port, url_opener
from orchestrator.cluster.local.processes import Process
from orchestrator.cluster.local.state import ClusterState
from orchestrator.errors import ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

RAYLET = "raylet"
"""Stopped first: otherwise Ray's agents log the loss of the head."""
ENVIRONMENT = {
    "RAY_JOB_STOP_WAIT_TIME_S": "60",  # time of a stopped job to write its checkpoint; Ray's default is 3
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # delay until a reported checkpoint is committed
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # workers would print everything twice
    "RAY_task_events_max_num_task_in_gcs": "10000",  # 3.4 kB each; by default 100,000
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's only switch that keeps 127.0.0.1 as a node's address
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_NOT_INHERITED = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_SUBMIT_HOOK", "OMP_NUM_THREADS")
_AWS_NOT_INHERITED = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_ENDPOINT_URL_S3")
_TOKEN_SOURCES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Where Ray looks for a token, before `~/.ray/auth_token`."""
_RECORDED = ("gcs_server", RAYLET)
_START_SECONDS = 120.0
OBJECT_STORE_BYTES = 300 * 2**20  # batches travel through files, not through Ray's object store
_UNIX_SOCKET_BUDGET = 40  # Ray appends 63 characters, and the path of a socket may have 107


TEMPORARY = "mirage-"
"""Prefix of the name of Ray's folder."""


def make_temp_dir() -> str:
    """Make a private folder whose path is short enough for Ray's unix sockets.

    Ray also needs its default folder to exist, whatever its temp dir is.
    """
    system = tempfile.gettempdir()
    short = tempfile.mkdtemp(
        prefix=TEMPORARY, dir=system if len(system) < _UNIX_SOCKET_BUDGET - 20 else "/tmp"
    )
    stale_address_file().parent.mkdir(exist_ok=True)
    return short


def start(state: ClusterState, project: Path, log: Path, cpus: int | None) -> list[Process]:
    """Start the head of `state`, whose jobs run in `project`; return its processes once it accepts jobs.

    Raises `ClusterError` with Ray's error and the path of the log.
    """
    ray = shutil.which("ray", path=str(Path(sys.executable).parent))
    if ray is None:
        raise ClusterError(
            "no `ray` beside this Python: install the project (`make setup`) and use its .venv"
        )
    # The agent starts jobs. On its fixed default port the agent of a head that has just died may still listen;
    # the new head would then run without accepting jobs.
    agent_port = free_port()
    command = [
        *(ray, "start", "--head", "--disable-usage-stats"),
        *("--node-ip-address", "127.0.0.1", "--port", str(state.ray_port)),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(state.dashboard_port)),
        *("--dashboard-agent-listen-port", str(agent_port)),
        *("--ray-client-server-port", str(free_port())),  # cannot be disabled, and 10001 may be taken
        # Any port for workers; Ray's default range may contain ours.
        *("--min-worker-port", "0", "--max-worker-port", "0"),
        *("--object-store-memory", str(OBJECT_STORE_BYTES)),
        *("--temp-dir", f"{state.temp_dir}/ray"),  # Ray makes it world-readable; its parent stays private
        *(("--num-cpus", str(cpus)) if cpus is not None else ()),
    ]
    dropped = {*_NOT_INHERITED, *(_AWS_NOT_INHERITED if state.s3 is not None else ())}
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    own = {**state.environment, "PATH": path_with_this_python(), processes.TAG: state.tag}
    if state.environment["RAY_AUTH_MODE"] == "token":
        make_token_if_missing(ray, {**inherited, **own})
    with open(log, "wb") as output:
        try:
            ended = subprocess.run(
                command,
                cwd=project,  # a job submitted without a working directory runs where its head was started
                env={**inherited, **own},
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
        raise ClusterError(f"Ray did not start: {_error_in(log)} (log: {log})")
    deadline = time.monotonic() + _START_SECONDS
    for name, port, ready in (
        ("dashboard", state.dashboard_port, dashboard_answers),
        ("dashboard_agent", agent_port, _accepts_jobs),
    ):
        while not ready(port):
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"Ray's {name} did not answer within {_START_SECONDS:.0f} s: "
                    f"see {log.parent / 'ray' / f'{name}.log'}"
                )
            time.sleep(0.2)
    return [process for process in processes.tagged(state.tag) if process.name in _RECORDED]


def make_token_if_missing(ray: str, environment: Mapping[str, str]) -> None:
    """Write `~/.ray/auth_token` unless Ray finds a token. Raises `ClusterError` with Ray's error."""
    made = subprocess.run(
        [ray, "get-auth-token", "--generate"],
        env=environment,
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        reason = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ClusterError(f"Ray cannot read or make a token: {reason}")


def dashboard_answers(port: int) -> bool:
    """Return whether Ray's dashboard, which is also its job server, answers on this port of loopback."""
    url = f"http://127.0.0.1:{port}/api/version"
    try:
        with url_opener(url).open(url, timeout=10) as reply:
            return "ray_version" in json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code == 401  # it wants a token
    except (OSError, ValueError):
        return False


def _accepts_jobs(agent_port: int) -> bool:
    """Return whether the head's agent, which starts jobs, answers on this port of loopback."""
    url = f"http://127.0.0.1:{agent_port}/api/local_raylet_healthz"
    try:
        with url_opener(url).open(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def _job_client(dashboard_port: int, environment: Mapping[str, str]) -> Iterator[JobSubmissionClient]:
    """Yield the client of this head; `environment` is that of the cluster. Raises RuntimeError if it refuses us."""
    url = f"http://127.0.0.1:{dashboard_port}"
    # Ray prefers this variable to the address that its client is given: without it, jobs of another cluster would stop.
    with processes.environment_variables({**environment, "RAY_API_SERVER_ADDRESS": url}):
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        try:
            yield JobSubmissionClient(url)
        except AuthenticationError as error:  # another cluster, with a token, has the port of this one
            raise RuntimeError(f"the head on port {dashboard_port} refuses this cluster's token") from error


def _running(client: JobSubmissionClient) -> list[str]:
    jobs = ((job.submission_id, job.status) for job in client.list_jobs())
    return [submission for submission, status in jobs if submission and not status.is_terminal()]


def running_jobs(dashboard_port: int, environment: Mapping[str, str]) -> list[str]:
    """Return the submission ids of running jobs. Raises OSError or RuntimeError as `stop_jobs` does."""
    with _job_client(dashboard_port, environment) as client:
        return _running(client)


def stop_jobs(dashboard_port: int, environment: Mapping[str, str], grace_seconds: float) -> list[str]:
    """Stop every running job, wait until they have ended, and return their submission ids.

    `environment` is that of the cluster. Raises OSError or RuntimeError when the head does not answer as it should.
    """
    with _job_client(dashboard_port, environment) as client:
        stopped = _running(client)
        for submission in stopped:
            client.stop_job(submission)
        deadline = time.monotonic() + grace_seconds
        while _running(client) and time.monotonic() < deadline:
            time.sleep(0.3)
    return stopped


def auth_environment() -> dict[str, str]:
    """Return the variables by which the head asks for a token, and clients find it.

    RAY_AUTH_MODE of the shell decides, else the default of Ray's clients: a token from Ray 2.61 on, none before. An
    earlier client sends a token only if that variable says so, and `ray job submit` must work in any shell. A head of
    such a version asks for one by default if `~/.ray/auth_token` exists: the same command would work on one machine and
    fail on the next.
    """
    default = "token" if Version(version("ray")) >= Version("2.61") else "disabled"
    mode = os.environ.get("RAY_AUTH_MODE", default)
    sources = _TOKEN_SOURCES if mode == "token" else ()
    return {"RAY_AUTH_MODE": mode, **{name: os.environ[name] for name in sources if name in os.environ}}


def session_logs(temp_dir: Path) -> Path:
    """Return the folder in which the head with this temp dir writes its logs."""
    return temp_dir / "ray" / "session_latest" / "logs"


def stale_address_file() -> Path:
    """Return the file in which Ray looks for a cluster's address first; our heads never write it."""
    return Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"


def path_with_this_python() -> str:
    """Return PATH with this interpreter's folder first, so that `python` in a job file is this one."""
    own = str(Path(sys.executable).parent)
    rest = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder != own]
    return os.pathsep.join([own, *rest])


def _error_in(log: Path) -> str:
    """Return the exception's line of a log that ends in a traceback, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors or lines or ["the log is empty"])[-1]
