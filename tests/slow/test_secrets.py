"""Credentials reach workers, and neither Ray's logs nor its state API; a private Ray is this user's alone."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.claims import ROOT, run_command
from tests.slow.project import Project, plain_environment

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "CANARY-aws",
    "AWS_SESSION_TOKEN": "CANARY-session",
    "MLFLOW_TRACKING_URI": "http://me:CANARY-mlflow@127.0.0.1:1",
    "MLFLOW_TRACKING_PASSWORD": "CANARY-password",
    "MIRAGE_SERVE_TOKEN": "CANARY-serve",
}

WORKERS = """
import json, os, urllib.request
from pathlib import Path
from orchestrator.cluster.local import lifecycle
os.environ.update(lifecycle.environment(Path.cwd()))
os.environ.update(json.loads(os.environ.pop("SECRETS")))
import ray
from orchestrator.cluster.connection import connected

def environment():
    return {name: value for name, value in os.environ.items() if "CANARY" in value}

class Actor:
    def environment(self):
        return environment()

def ask(kind):
    url = f"{os.environ['RAY_API_SERVER_ADDRESS']}/api/v0/{kind}?detail=1&limit=1000"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()

with connected():
    actor = ray.remote(num_cpus=0.1)(Actor).remote()
    found = [ray.get(ray.remote(num_cpus=0.1)(environment).remote()), ray.get(actor.environment.remote())]
    state = {kind: ask(kind) for kind in ("runtime_envs", "actors", "tasks", "workers", "jobs")}
print(json.dumps({"found": found, "state": state}))
"""


def test_credentials_reach_workers_and_neither_the_state_api_nor_the_logs(project: Project) -> None:
    done = project.run(sys.executable, "-c", WORKERS, SECRETS=json.dumps(SECRETS))
    assert done.status == 0, done.text
    printed = json.loads(done.text.splitlines()[-1])
    passed = {name: value for name, value in SECRETS.items() if name != "MIRAGE_SERVE_TOKEN"}
    assert printed["found"] == [passed, passed]
    assert "MALLOC_TOP_PAD_" in printed["state"]["runtime_envs"]  # the state API has this job
    # "CANARY" itself is in the script, which Ray shows as the job's command.
    assert [kind for kind, text in printed["state"].items() if "CANARY-" in text] == []
    logs = [file for file in (project.root / ".mirage" / "logs" / "ray").rglob("*") if file.is_file()]
    assert any(file.name.startswith("runtime_env_agent") for file in logs)
    assert [file.name for file in logs if b"CANARY-" in file.read_bytes()] == []


PRIVATE = """
import json, os, sys
from orchestrator.cluster import private_ray
private_ray.prepare()
from orchestrator.cluster.connection import connected
import psutil, ray, subprocess

def listening():
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sorted({c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN})

with connected():
    ray.get(ray.remote(num_cpus=0.1)(lambda: 1).remote())
    session = ray.get_runtime_context().get_session_name()
    address = ray.get_runtime_context().gcs_address
    folder = ray._private.worker.global_worker.node.get_session_dir_path()
    private = os.path.dirname(os.path.dirname(folder))
    stranger = subprocess.run(
        [sys.executable, "-c", "import ray, sys; ray.init(sys.argv[1]); print('inside')", address],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True, text=True, timeout=120,
    )
    print(json.dumps({
        "listening": listening(), "folder": private, "mode": os.stat(private).st_mode,
        "stranger": stranger.stdout, "refused": "oken" in stranger.stderr,
    }))
"""


def test_a_ray_of_ones_own_is_on_loopback_in_a_private_folder_and_asks_for_a_token(tmp_path: Path) -> None:
    environment = {**plain_environment(), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = run_command(sys.executable, "-c", PRIVATE, cwd=tmp_path, environment=environment)
    assert done.status == 0, done.text
    found: dict[str, Any] = json.loads(done.text.splitlines()[-1])
    assert set(found["listening"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert stat.S_IMODE(found["mode"]) == 0o700
    assert not os.path.exists(found["folder"])  # it went with the process
    assert found["stranger"] == ""
    assert found["refused"]
