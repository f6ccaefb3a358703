"""Start and stop a Ray head and an S3 server on loopback, together.

    .mirage/                 in the project root; ignored by git
    ├── up.json              what runs: process ids with start times, ports, credentials; mode 600
    ├── store/               the S3 server's folder; its folders are buckets; kept by `down`
    ├── mlflow.db            the default MLflow store; kept by `down`
    └── logs/                rclone.log, ray-start.log; ray/ holds Ray's own logs, also after `down`

`up.json` is written before anything starts, so that the next `up` or `down` finds what an interrupted `up` left.
Ray 2.60 asks for no token by default, so it and the store listen on 127.0.0.1 only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from orchestrator.cluster.local import ports, processes, ray_head, s3_server
from orchestrator.cluster.local.processes import Process
from orchestrator.cluster.local.s3_server import S3Server
from orchestrator.cluster.local.state import ClusterState, locked, project_home, read, write
from orchestrator.cluster.local.users import users
from orchestrator.errors import ClusterError
from orchestrator.masking import without_password

logger = logging.getLogger(__name__)

DEFAULT_DASHBOARD_PORT = 8265
DEFAULT_RAY_PORT = 6379
SUBMIT_HOOK = "orchestrator.cluster.submit_hook.submit"
_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class RunningCluster:
    """A running cluster, as shown on the command line."""

    already: bool
    """It ran before this `up`."""
    dashboard_url: str
    ray_address: str
    s3_endpoint: str | None
    store: Path
    tracking_uri: str
    notes: tuple[str, ...]

    def render(self) -> str:
        """Return its addresses as lines of text."""
        store = (
            f"S3 at {self.s3_endpoint}, kept in {self.store}" if self.s3_endpoint else "this shell's AWS_*"
        )
        lines = [
            "already up, nothing changed" if self.already and not self.notes else "up",
            f"  Ray       dashboard {self.dashboard_url}, address {self.ray_address}",
            f"  store     {store}",
            f"  tracking  {without_password(self.tracking_uri)}",
            *(f"  note      {note}" for note in self.notes),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class ClusterStatus:
    """Whether the cluster of a project runs."""

    state: Literal["up", "down", "broken"]
    detail: str
    """One sentence: what runs, or what is broken."""


def up(
    project: Path,
    *,
    s3: bool = True,
    s3_port: int | None = None,
    dashboard_port: int = DEFAULT_DASHBOARD_PORT,
    ray_port: int = DEFAULT_RAY_PORT,
    cpus: int | None = None,
) -> RunningCluster:
    """Start the cluster of this project if it does not run, and return its addresses.

    `s3=False` starts no store: jobs then use the AWS variables of this shell. `cpus` is the number that Ray may use;
    None means all. Raises `ClusterError`, after which nothing that this call started still runs.
    """
    home = project_home(project)
    with locked(home):
        state = read(home)
        notes: list[str] = []
        if state is not None:
            problem = _problem(state)
            if problem is None:
                return _describe(home, state, already=True, notes=())
            if problem == s3_server.NOT_ANSWERING and state.s3 is not None:
                restarted = _with_s3(home, state, state.s3)
                write(home, restarted)
                return _describe(
                    home, restarted, already=True, notes=("the S3 server did not answer: restarted",)
                )
            notes.append(f"replaced an earlier cluster: {problem}")
            _stop(home, state)
        wanted = {"--dashboard-port": dashboard_port, "--ray-port": ray_port}
        ports.require_free(wanted if s3_port is None else {**wanted, "--s3-port": s3_port})
        server = s3_server.new(s3_port) if s3 else None
        state = ClusterState(
            tag=secrets.token_hex(8),
            ray_port=ray_port,
            dashboard_port=dashboard_port,
            temp_dir=ray_head.make_temp_dir(),
            s3=server,
            environment=_environment(home, server),
        )
        write(home, state)
        try:
            if server is not None:
                state = _with_s3(home, state, server)
            members = ray_head.start(state, project.resolve(), home / "logs" / "ray-start.log", cpus)
            state = replace(state, processes=(*state.processes, *members), ready=True)
            write(home, state)
            _show_logs(home, state)
        except BaseException:  # also Ctrl-C
            _stop(home, state)
            raise
        return _describe(home, state, already=False, notes=(*notes, *_notes(state)))


def down(project: Path, *, job_grace_seconds: float = 60.0) -> list[str]:
    """Stop what `up` started, and nothing else; return what was stopped, one phrase each.

    Running jobs are stopped first and have `job_grace_seconds` to write their checkpoint.
    """
    home = project / ".mirage"
    if not os.path.lexists(home / "up.json"):
        return []
    with locked(home):
        try:
            state = read(home)
        except ClusterError as error:
            logger.warning("%s", error)
            return _stop_unrecorded(home)
        if state is None:
            return []
        stopped = []
        if state.ready and ray_head.dashboard_answers(state.dashboard_port):
            try:
                jobs = ray_head.stop_jobs(state.dashboard_port, state.environment, job_grace_seconds)
            except (OSError, RuntimeError) as error:  # a broken head must not prevent `down`
                logger.warning("cannot stop the jobs one by one (%s): they end with the cluster", error)
            else:
                stopped += [f"job {job}" for job in jobs]
        alive = _members(state)
        _stop(home, state)
        names = {process.name for process in alive}
        if names - {s3_server.NAME}:
            stopped.append(f"Ray head on port {state.ray_port}")
        if s3_server.NAME in names and state.s3 is not None:
            stopped.append(f"S3 server on port {state.s3.port}")
        return stopped


def uses(project: Path) -> list[str]:
    """Return what uses the cluster of this project now, one line each: commands, and other jobs of its Ray head."""
    home = project / ".mirage"
    found = users(home)
    lines = [str(user) for user in found]
    try:
        state = read(home)
    except ClusterError:
        return lines
    if state is None:
        return []
    if state.ready and ray_head.dashboard_answers(state.dashboard_port):
        with contextlib.suppress(OSError, RuntimeError):  # a broken head must not prevent `down`
            known = {user.process.submission for user in found}
            running = ray_head.running_jobs(state.dashboard_port, state.environment)
            lines += [f"job {job}. Stop it: ray job stop {job}" for job in running if job not in known]
    return lines


def status(project: Path) -> ClusterStatus:
    """Return whether the cluster of this project runs, and whether all of it answers."""
    try:
        state = read(project / ".mirage")
    except ClusterError as error:
        return ClusterStatus("broken", str(error))
    if state is None:
        return ClusterStatus("down", "nothing runs; `mirage up` starts it")
    problem = _problem(state)
    if problem is not None:
        return ClusterStatus("broken", f"{problem}; `mirage up` repairs it, `mirage down` removes it")
    store = f", S3 at {state.s3.endpoint}" if state.s3 else ""
    return ClusterStatus("up", f"Ray dashboard at {_dashboard(state)}{store}")


def environment(project: Path) -> dict[str, str]:
    """Return the variables that a shell needs to use the running cluster, with the store's credentials.

    PATH has this interpreter's folder first. Raises `ClusterError` if a process of the cluster does not run; sends no
    request.
    """
    state = read(project / ".mirage")
    if state is None or not state.ready:
        raise ClusterError("no cluster of this project is running: start it with `mirage up`")
    if gone := _gone(state):
        raise ClusterError(
            f"the cluster of this project is broken, {' and '.join(gone)} no longer runs: "
            "`mirage up` repairs it"
        )
    return {
        **state.environment,
        "RAY_ADDRESS": f"127.0.0.1:{state.ray_port}",
        "RAY_API_SERVER_ADDRESS": _dashboard(state),
        "RAY_JOB_SUBMIT_HOOK": SUBMIT_HOOK,
        "PATH": ray_head.path_with_this_python(),
    }


def _environment(home: Path, server: S3Server | None) -> dict[str, str]:
    tracking = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home}/mlflow.db"
    return {
        **(server.environment() if server else {}),
        **ray_head.ENVIRONMENT,
        **ray_head.auth_environment(),
        "MLFLOW_TRACKING_URI": tracking,
        "MIRAGE_HOME": str(home),
        "NO_PROXY": _no_proxy(),
        "no_proxy": _no_proxy(),
    }


def _no_proxy() -> str:
    """Return NO_PROXY of this shell with loopback added."""
    own = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = [host for host in own.split(",") if host]
    return ",".join([*hosts, *(host for host in ("127.0.0.1", "localhost") if host not in hosts)])


def _problem(state: ClusterState) -> str | None:
    """Return why this cluster is not up, or None if all of it answers."""
    if not state.ready:
        return "an earlier start was interrupted"
    gone = _gone(state)
    if [name for name in gone if name != s3_server.NAME]:
        return f"{' and '.join(gone)} no longer runs"
    if not ray_head.dashboard_answers(state.dashboard_port):
        return f"the Ray dashboard does not answer on port {state.dashboard_port}"
    if state.s3 is not None and (gone or s3_server.probe_error(state.s3) is not None):
        return s3_server.NOT_ANSWERING
    return None


def _gone(state: ClusterState) -> list[str]:
    """Return the names of the recorded processes that have ended, for example by a reboot."""
    return sorted({process.name for process in state.processes if not processes.is_alive(process)})


def _with_s3(home: Path, state: ClusterState, server: S3Server) -> ClusterState:
    others = tuple(process for process in state.processes if process.name != s3_server.NAME)
    processes.stop([p for p in state.processes if p.name == s3_server.NAME], s3_server.NAME, _GRACE_SECONDS)
    started = s3_server.start(server, home / "store", home / "logs" / "rclone.log", state.tag)
    return replace(state, processes=(*others, started))


def _members(state: ClusterState) -> list[Process]:
    recorded = [process for process in state.processes if processes.is_alive(process)]
    return list({process.pid: process for process in (*recorded, *processes.tagged(state.tag))}.values())


def _stop(home: Path, state: ClusterState) -> None:
    """Stop every process of this cluster, keep Ray's logs, and remove `up.json`."""
    deadline = time.monotonic() + 3 * _GRACE_SECONDS
    while members := _members(state):  # again: a process may have started another meanwhile
        left = processes.stop(members, ray_head.RAYLET, _GRACE_SECONDS)
        if left and time.monotonic() > deadline:
            names = ", ".join(f"{process.name} ({process.pid})" for process in left)
            raise ClusterError(
                f"these processes do not stop: {names}. Kill them, then run `mirage down` again"
            )
    try:
        _keep_logs(home, state)
    except OSError as error:  # shutil.Error too; a full disk must not prevent `down`
        logger.warning("Ray's logs could not be kept in %s: %s", home / "logs" / "ray", error)
    if Path(state.temp_dir).name.startswith(ray_head.TEMPORARY):  # up.json may come from a stranger
        shutil.rmtree(state.temp_dir, ignore_errors=True)
    (home / "up.json").unlink(missing_ok=True)


def _stop_unrecorded(home: Path) -> list[str]:
    """Stop the clusters of a folder whose `up.json` cannot be read, and remove that file."""
    members = processes.of_folder(home)
    left = processes.stop(members, ray_head.RAYLET, _GRACE_SECONDS)
    if left:
        names = ", ".join(f"{process.name} ({process.pid})" for process in left)
        raise ClusterError(f"these processes do not stop: {names}. Kill them, then run `mirage down` again")
    file = home / "up.json"
    if file.is_dir() and not file.is_symlink():
        raise ClusterError(f"{file} is a folder: remove it")
    file.unlink(missing_ok=True)
    return [f"{process.name} ({process.pid})" for process in members] or ["nothing ran; up.json is removed"]


def _keep_logs(home: Path, state: ClusterState) -> None:
    logs = home / "logs" / "ray"
    session = ray_head.session_logs(Path(state.temp_dir))
    if session.is_dir():
        _remove(logs)
        shutil.copytree(session, logs, symlinks=True, ignore_dangling_symlinks=True)


def _show_logs(home: Path, state: ClusterState) -> None:
    logs = home / "logs" / "ray"
    _remove(logs)
    logs.symlink_to(ray_head.session_logs(Path(state.temp_dir)))


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _describe(home: Path, state: ClusterState, *, already: bool, notes: tuple[str, ...]) -> RunningCluster:
    return RunningCluster(
        already=already,
        dashboard_url=_dashboard(state),
        ray_address=f"127.0.0.1:{state.ray_port}",
        s3_endpoint=state.s3.endpoint if state.s3 else None,
        store=home / "store",
        tracking_uri=state.environment.get("MLFLOW_TRACKING_URI", ""),
        notes=notes,
    )


def _dashboard(state: ClusterState) -> str:
    return f"http://127.0.0.1:{state.dashboard_port}"


def _notes(state: ClusterState) -> list[str]:
    """Return what would make `ray job submit` use another cluster, and what of this shell is ignored."""
    notes = []
    export = f"export RAY_API_SERVER_ADDRESS={_dashboard(state)}"
    own = {process.pid for process in state.processes}
    elsewhere = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if elsewhere and elsewhere != _dashboard(state):
        notes.append(f"this shell submits to {elsewhere}; for this cluster: {export}")
    elif foreign := [pid for pid in processes.named("gcs_server") if pid not in own]:
        notes.append(f"another Ray cluster runs here (process {foreign[0]}); to submit to this one: {export}")
    elif ray_head.stale_address_file().exists():
        notes.append(
            f"{ray_head.stale_address_file()} names another cluster; to submit to this one: {export}"
        )
    elif state.dashboard_port != DEFAULT_DASHBOARD_PORT:
        notes.append(f"the dashboard is not on its default port; to submit to it: {export}")
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    if state.s3 and endpoint and "127.0.0.1" not in endpoint:
        notes.append(
            f"jobs use the store here, not {endpoint}; `mirage up --no-s3` keeps this shell's AWS variables"
        )
    return notes
