"""The submit hook takes job files to any cluster, and leaves every other submission alone."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import submit_hook
from tests.claims import BIN, ROOT, run_command


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "tiny.yaml").write_text("name: tiny\n")
    (tmp_path / ".rayignore").touch()
    return tmp_path


def after(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_the_project_root_travels_whatever_folder_the_command_is_given_in(project: Path) -> None:
    arguments = submit_hook.submission(project / "jobs", {"entrypoint": ("tiny.yaml", "--set", "seed=3")})
    assert after(arguments, "--working-dir") == str(project)
    command = arguments[arguments.index("--") + 1 :]
    assert command == ["python", "-m", "orchestrator", "run", "jobs/tiny.yaml", "--set", "seed=3"]


def test_a_stopped_job_has_time_for_its_checkpoint(project: Path) -> None:
    arguments = submit_hook.submission(project, {"entrypoint": ("jobs/tiny.yaml",)})
    runtime_env = json.loads(after(arguments, "--runtime-env-json"))
    assert runtime_env == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


def test_what_the_user_asked_for_stays(project: Path) -> None:
    runtime_env = {"env_vars": {"A": "1", "RAY_JOB_STOP_WAIT_TIME_S": "5"}, "pip": ["x"]}
    options = {
        "entrypoint": ("jobs/tiny.yaml",),
        "address": "http://head:8265",
        "submission_id": "mine",
        "metadata_json": {"who": "me"},
        "entrypoint_num_cpus": 0.5,
        "runtime_env_json": json.dumps(runtime_env),
        "verify": False,
        "no_wait": True,
    }
    arguments = submit_hook.submission(project, options)
    assert after(arguments, "--address") == "http://head:8265"
    assert after(arguments, "--submission-id") == "mine"
    metadata = {"job_name": "tiny", "job_file": "jobs/tiny.yaml", "who": "me"}
    assert json.loads(after(arguments, "--metadata-json")) == metadata
    assert after(arguments, "--entrypoint-num-cpus") == "0.5"
    assert after(arguments, "--verify") == "False"
    assert "--no-wait" in arguments[: arguments.index("--")]
    assert json.loads(after(arguments, "--runtime-env-json")) == runtime_env


def test_the_working_directory_of_a_runtime_env_file_is_kept(project: Path) -> None:
    (project / "env.yaml").write_text(f"working_dir: {project / 'jobs'}\nenv_vars: {{A: '1'}}\n")
    options = {"entrypoint": ("jobs/tiny.yaml",), "runtime_env": str(project / "env.yaml")}
    arguments = submit_hook.submission(project, options)
    assert after(arguments, "--working-dir") == str(project / "jobs")
    assert arguments[-1] == "tiny.yaml"
    assert json.loads(after(arguments, "--runtime-env-json"))["env_vars"]["A"] == "1"


@pytest.mark.parametrize("entrypoint", [(), ("python", "jobs/tiny.yaml"), ("jobs/absent.yaml",), ("jobs",)])
def test_only_a_command_that_begins_with_an_existing_yaml_file_is_a_job_file(
    project: Path, entrypoint: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    assert submit_hook.is_job_file(("jobs/tiny.yaml",))
    assert not submit_hook.is_job_file(entrypoint)


# --- the real `ray job submit` -------------------------------------------------------------------------------


class JobServer(ThreadingHTTPServer):
    """The HTTP interface of a cluster that `ray job submit --no-wait` uses; it keeps what arrives and runs nothing."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.packages: dict[str, bytes] = {}
        self.jobs: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.watched, self.ended = threading.Event(), threading.Event()

    daemon_threads = True


class Requests(BaseHTTPRequestHandler):
    server: JobServer

    def do_GET(self) -> None:
        if self.path == "/api/version":
            version = metadata.version("ray")
            self.reply(200, {"version": "4", "ray_version": version, "ray_commit": "", "session_name": ""})
        elif self.path.endswith("/logs/tail"):
            self.server.watched.set()
            self.server.ended.wait(60)
        else:
            self.reply(200 if self.path in self.server.packages else 404)

    def do_PUT(self) -> None:
        self.server.packages[self.path] = self.body()
        self.reply(200)

    def do_POST(self) -> None:
        self.server.jobs.append(json.loads(self.body()))
        self.server.tokens.append(self.headers["x-token"])
        name = self.server.jobs[-1].get("submission_id") or "raysubmit_1"
        self.reply(200, {"job_id": name, "submission_id": name})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["content-length"]))

    def reply(self, status: int, values: object = None) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def cluster() -> Iterator[JobServer]:
    with JobServer() as server:
        threading.Thread(target=server.serve_forever).start()
        yield server
        server.ended.set()
        server.shutdown()


def ray_job_submit(project: Path, cluster: JobServer, *words: str) -> dict[str, Any]:
    """Run `ray job submit` with the hook in jobs/ of a project; return the job that arrived on the cluster."""
    done = run_command(
        *(BIN / "ray", "job", "submit", "--no-wait", "--address", cluster.address, *words),
        cwd=project / "jobs",
        environment={**os.environ, "RAY_JOB_SUBMIT_HOOK": "orchestrator.cluster.submit_hook.submit"},
        timeout=120,
    )
    assert done.status == 0, done.text
    (job,) = cluster.jobs
    return job


def test_ray_submits_a_job_file_with_the_project_and_every_option(project: Path, cluster: JobServer) -> None:
    options = ("--headers", '{"x-token": "secret"}', "--verify", "false", "--submission-id", "mine")
    job = ray_job_submit(project, cluster, *options, "--", "tiny.yaml", "--set", "seed=3")
    assert job["entrypoint"] == "python -m orchestrator run jobs/tiny.yaml --set seed=3"
    assert job["submission_id"] == "mine"
    assert job["runtime_env"]["env_vars"] == submit_hook.STOP_WAIT
    assert cluster.tokens == ["secret"]
    (package,) = cluster.packages.values()
    assert "jobs/tiny.yaml" in zipfile.ZipFile(io.BytesIO(package)).namelist()


SECRETS = (
    *(
        ".env",
        ".env.prod",
        ".netrc",
        ".aws/credentials",
        "secrets/db.txt",
        "keys/server.pem",
        "keys/server.key",
    ),
    *("serve.token", "webhook.secret", "deep/er/.ssh/id_ed25519", "deep/er/id_rsa", "prod.tfvars", "x_token"),
)
"""Files that people have in a project and that no cluster needs."""


@pytest.mark.parametrize("job_file", [True, False], ids=["job file", "other command"])
def test_a_submission_uploads_no_file_that_holds_a_secret(
    project: Path, cluster: JobServer, job_file: bool
) -> None:
    for name in SECRETS:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("CANARY")
    (project / "jobs" / "secrets.py").write_text("tokens = 3")
    command = ("--", "tiny.yaml") if job_file else ("--working-dir", str(project), "--", "python", "-V")
    ray_job_submit(project, cluster, *command)
    (package,) = cluster.packages.values()
    archive = zipfile.ZipFile(io.BytesIO(package))
    assert {"jobs/tiny.yaml", "jobs/secrets.py"} <= set(archive.namelist())
    assert not [name for name in archive.namelist() if b"CANARY" in archive.read(name)]


def test_rayignore_lists_the_same_secrets_for_submissions_without_the_hook() -> None:
    assert set(submit_hook.NEVER_UPLOADED) <= set((ROOT / ".rayignore").read_text().splitlines())


def test_ray_submits_another_command_as_if_there_were_no_hook(project: Path, cluster: JobServer) -> None:
    job = ray_job_submit(project, cluster, "--", "python", "tiny.yaml")
    assert job["entrypoint"] == "python tiny.yaml"
    assert job["runtime_env"] == {}
    assert cluster.packages == {}


def test_ctrl_c_says_that_the_job_goes_on_and_how_to_stop_it(project: Path, cluster: JobServer) -> None:
    with subprocess.Popen(
        [BIN / "ray", "job", "submit", "--address", cluster.address, "tiny.yaml"],
        cwd=project / "jobs",
        env={**os.environ, "RAY_JOB_SUBMIT_HOOK": "orchestrator.cluster.submit_hook.submit"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as watching:
        assert cluster.watched.wait(60), "ray shows the log of the job"
        watching.send_signal(signal.SIGINT)
        text, _ = watching.communicate(timeout=60)
    (job,) = cluster.jobs
    assert f"job {job['submission_id']} still runs" in text
    assert f"ray job stop --address {cluster.address} {job['submission_id']}" in text
    assert "Traceback" not in text
    assert watching.returncode == 130
