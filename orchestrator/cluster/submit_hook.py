"""`RAY_JOB_SUBMIT_HOOK=orchestrator.cluster.submit_hook.submit`: `ray job submit JOB.yaml` to any cluster.

The literal command needs a head that was started in the project root and a file with its executable bit.
Where either is missing, this hook turns it into the command that always works: the project travels as the
working directory, and the cluster's own Python runs the job file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STOP_WAIT = {
    "RAY_JOB_STOP_WAIT_TIME_S": "60"
}  # a stopped job writes its checkpoint; Ray's own patience is 3 s
_HOOK = "RAY_JOB_SUBMIT_HOOK"
_ROOT_MARKS = (".rayignore", "pyproject.toml", ".git")
_VALUE_OPTIONS = (
    "address",
    "submission_id",
    "metadata_json",
    "entrypoint_num_cpus",
    "entrypoint_num_gpus",
    "entrypoint_memory",
    "entrypoint_resources",
    "entrypoint_label_selector",
    "headers",
    "verify",
    "log_style",
    "log_color",
)


def submit(**options: Any) -> None:
    """Take over the submission of a job file; any other entry point returns, and Ray goes on by itself.

    `options` are those of `ray job submit`, by its own names.
    """
    entrypoint: Sequence[str] = options["entrypoint"]
    if not is_job_file(entrypoint):
        return
    arguments = submission(Path.cwd(), {**_options_that_ray_keeps_back(), **options})
    environment = {name: value for name, value in os.environ.items() if name != _HOOK}
    sys.stdout.flush()
    os.execve(sys.argv[0], [sys.argv[0], *arguments], environment)


def is_job_file(entrypoint: Sequence[str]) -> bool:
    """Whether the command begins with a YAML file that exists here."""
    return bool(entrypoint) and entrypoint[0].endswith((".yaml", ".yml")) and Path(entrypoint[0]).is_file()


def submission(cwd: Path, options: Mapping[str, Any]) -> list[str]:
    """Return the arguments after `ray` that submit this job file from the folder `cwd`."""
    job_file, *rest = options["entrypoint"]
    path = (cwd / job_file).resolve()
    runtime_env = _runtime_env(options)
    given = options.get("working_dir") or runtime_env.pop("working_dir", None)
    root = Path(cwd, given).resolve() if given else project_root(path) or cwd.resolve()
    inside = path.relative_to(root).as_posix() if path.is_relative_to(root) else job_file
    working_dir = given if given and "://" in given else str(root)  # a remote archive stays as it is
    arguments = ["job", "submit", "--working-dir", working_dir]
    arguments += ["--runtime-env-json", json.dumps(runtime_env)]
    for name in _VALUE_OPTIONS:
        value = options.get(name)
        if value is not None:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            arguments += [f"--{name.replace('_', '-')}", text]
    if options.get("no_wait"):
        arguments.append("--no-wait")
    return [*arguments, "--", "python", "-m", "orchestrator", "run", inside, *rest]


def project_root(path: Path) -> Path | None:
    """Return the nearest folder above a job file that looks like a project's root."""
    marked = (folder for folder in path.parents if any((folder / mark).exists() for mark in _ROOT_MARKS))
    return next(marked, None)


def _runtime_env(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runtime environment that was asked for, with a stopped job's patience added."""
    runtime_env: dict[str, Any] = {}
    if options.get("runtime_env"):
        import yaml

        runtime_env = yaml.safe_load(Path(options["runtime_env"]).read_text()) or {}
    elif options.get("runtime_env_json"):
        runtime_env = json.loads(options["runtime_env_json"])
    runtime_env["env_vars"] = {**STOP_WAIT, **runtime_env.get("env_vars", {})}
    return runtime_env


def _options_that_ray_keeps_back() -> dict[str, Any]:
    """Return what `ray job submit` was given but does not pass to a hook."""
    import click

    context = click.get_current_context()
    given = context.params
    return {
        name: given[name]
        for name in ("headers", "verify", "log_style", "log_color")
        if name in given and context.get_parameter_source(name) != click.core.ParameterSource.DEFAULT
    }
