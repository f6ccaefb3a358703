"""`scripts/demo` around its job: one clear error before anything starts, and nothing left when it is broken off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cluster.local import lifecycle, ports, processes

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in ("orchestrator", "mirage", "shards", "scripts", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def demo(project: Path, flags: str = "", venv: Path = Path(sys.prefix)) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [project / "scripts" / "demo"],
        env={**os.environ, "VENV": str(venv), "MIRAGE_UP_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def free_ports() -> str:
    return f"--ray-port {ports.free_port()} --dashboard-port {ports.free_port()}"


def test_a_broken_job_file_stops_it_before_anything_starts(project: Path) -> None:
    job = project / "jobs" / "demo.yaml"
    job.write_text(job.read_text().replace("recipe: fast", "recipee: fast"))
    with demo(project) as run:
        output, _ = run.communicate(timeout=60)
    assert run.returncode == 2
    (line,) = (n for n, text in enumerate(job.read_text().splitlines(), 1) if text.startswith("recipee"))
    assert f"jobs/demo.yaml:{line} " in output
    assert "Traceback" not in output
    assert not (project / ".mirage").exists()


@pytest.mark.slow
def test_a_taken_port_stops_it_with_one_error(project: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with demo(project, f"--dashboard-port {port} --ray-port {ports.free_port()}") as run:
            output, _ = run.communicate(timeout=60)
    assert run.returncode == 2
    assert f"port {port} is taken by" in output
    assert "mirage down" not in output
    assert "Traceback" not in output
    assert lifecycle.status(project).state == "down"


def test_a_machine_that_is_not_set_up_is_told_the_command(project: Path) -> None:
    environment = {**os.environ, "VENV": ".venv"}
    done = subprocess.run(
        [project / "scripts" / "demo"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "make setup" in done.stderr


def test_ctrl_c_stops_the_job_on_a_cluster_that_was_up_already(project: Path, tmp_path: Path) -> None:
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    told = tmp_path / "told"
    line = "2026-01-01 00:00:00,000\\tSUCC cli.py:71 -- Job 'raysubmit_abc' submitted successfully"
    for name, script in {
        "python": 'case "$*" in *status*) echo up;; *environment*) echo http://127.0.0.1:1;; esac',
        "ray": f'echo "$@" >>{told}; [ "$2" != submit ] || {{ printf "{line}\\n"; exec sleep 60; }}',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    with demo(project, venv=tmp_path / "venv") as run:
        assert run.stdout is not None
        assert any("raysubmit_abc" in line for line in run.stdout)
        os.killpg(run.pid, signal.SIGINT)
        rest, _ = run.communicate(timeout=30)
    assert run.returncode == 130, rest
    assert "mirage down" not in rest
    assert told.read_text().splitlines() == ["job submit jobs/demo.yaml", "job stop raysubmit_abc"]


@pytest.mark.slow
def test_ctrl_c_takes_the_job_and_the_cluster_down(project: Path) -> None:
    with demo(project, free_ports()) as run:
        assert run.stdout is not None
        seen = []
        for line in run.stdout:
            seen.append(line)
            if "Running entrypoint" in line:
                break
        time.sleep(3)
        tag = json.loads((project / ".mirage" / "up.json").read_text())["tag"]
        os.killpg(run.pid, signal.SIGINT)
        rest, _ = run.communicate(timeout=120)
    output = "".join(seen) + rest
    assert run.returncode == 130, output
    assert "stopped job " in output
    assert "Ray head on port" in output
    assert processes.tagged(tag) == []
    assert lifecycle.status(project).state == "down"
