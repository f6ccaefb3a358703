"""The submit hook takes job files to any cluster, and leaves every other submission alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cluster import submit_hook


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
    assert json.loads(after(arguments, "--metadata-json")) == {"who": "me"}
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


@pytest.mark.parametrize("entrypoint", [(), ("python", "jobs/tiny.yaml"), ("jobs/absent.yaml",)])
def test_anything_but_a_job_file_is_left_to_ray(
    project: Path, entrypoint: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    submit_hook.submit(entrypoint=entrypoint)  # returns; a job file would replace this process


def test_ray_itself_calls_the_hook_and_every_option_arrives(project: Path) -> None:
    # The second `ray`, which the hook starts, is a script here that tells what it got.
    told = project / "ray"
    told.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\" hook=$RAY_JOB_SUBMIT_HOOK\n")
    told.chmod(0o755)
    code = f"import sys; sys.argv[0] = {str(told)!r}; from ray.scripts.scripts import main; main()"
    command = [sys.executable, "-c", code, "job", "submit", "--headers", '{"a": "b"}', "--verify", "false"]
    done = subprocess.run(
        [*command, "--no-wait", "--address", "http://nowhere:1", "jobs/tiny.yaml"],
        env={**os.environ, "RAY_JOB_SUBMIT_HOOK": "orchestrator.cluster.submit_hook.submit"},
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[:2] == ["job", "submit"]
    assert after(lines, "--headers") == '{"a": "b"}'
    assert after(lines, "--verify") == "False"
    assert after(lines, "--address") == "http://nowhere:1"
    assert lines[-3:] == ["run", "jobs/tiny.yaml", "hook="]
