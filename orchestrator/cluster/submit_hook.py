"""Submit a job file to any cluster: `RAY_JOB_SUBMIT_HOOK=orchestrator.cluster.submit_hook.submit`.

Without the hook `ray job submit JOB.yaml` works only if the head was started in the project root and the file is
executable. The hook replaces it by a command that always works: it uploads the project as the working directory and
runs the job file by the cluster's Python.

With the hook no submission uploads files whose names say that they hold secrets. `.rayignore` has the same list, for
submissions without the hook.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any

from shards.filesystem import read_regular

STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""Time for a stopped job to write its checkpoint [s]; Ray's default is 3."""
_SECRET_FILES = """
    .mirage/ .env .env.* *.env .envrc
    .netrc _netrc .pgpass .my.cnf .pypirc .npmrc .git-credentials .htpasswd .databrickscfg .boto .s3cfg
    rclone.conf kaggle.json credentials credentials.* *-credentials.json *_credentials.json
    client_secret*.json service-account*.json service_account*.json
    .aws/ .ssh/ .gnupg/ .kube/ .docker/ .azure/ .oci/ .config/ .ray/ .huggingface/
    secret/ secrets/ .secret/ .secrets/ secrets.env secrets.json secrets.toml secrets.txt secrets.yaml secrets.yml
    *.secret *.secrets *.pem *.PEM *.key *.KEY *.p12 *.pfx *.jks *.keystore *.kdbx *.ppk *.gpg
    *.token *_token token.txt id_rsa* id_dsa* id_ecdsa* id_ed25519* *.tfstate *.tfvars *.kubeconfig kubeconfig
"""
NEVER_UPLOADED = tuple(_SECRET_FILES.split())
"""Files and folders, as patterns of .gitignore, that no working directory takes to a cluster."""
_RAY_EXCLUDES = "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"
_RAYS_OWN_EXCLUDES = (".git", ".venv", "venv", "__pycache__")
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
    """Submit a job file in place of Ray; return if the entry point is not one, and Ray submits it.

    `options` are those of `ray job submit`, under Ray's names.
    """
    os.environ.setdefault(_RAY_EXCLUDES, ",".join((*_RAYS_OWN_EXCLUDES, *NEVER_UPLOADED)))
    entrypoint: Sequence[str] = options["entrypoint"]
    if not is_job_file(entrypoint):
        return
    options["submission_id"] = options.get("submission_id") or f"raysubmit_{secrets.token_hex(8)}"
    arguments = submission(Path.cwd(), {**_options_not_passed_to_hooks(), **options})
    del os.environ[_HOOK]
    sys.argv = [sys.argv[0], *arguments]
    (ray,) = entry_points(group="console_scripts", name="ray")
    with _told_on_interrupt(options["submission_id"], options.get("address")):
        ray.load()()


@contextmanager
def _told_on_interrupt(submission_id: str, address: str | None) -> Iterator[None]:
    """Print on Ctrl-C that the job still runs and how to stop it: Ray only stops watching it."""
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except SystemExit:
        if not interrupted:
            raise
        where = f" --address {address}" if address else ""
        print(
            f"Ctrl-C only stops watching: job {submission_id} still runs, if it was submitted.\n"
            f"  to watch it again:               ray job logs{where} {submission_id} --follow\n"
            f"  to stop it, with a checkpoint:   ray job stop{where} {submission_id}",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


def is_job_file(entrypoint: Sequence[str]) -> bool:
    """Return whether the command begins with an existing YAML file."""
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
        value = _metadata(options, path, inside) if name == "metadata_json" else options.get(name)
        if value is not None:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            arguments += [f"--{name.replace('_', '-')}", text]
    if options.get("no_wait"):
        arguments.append("--no-wait")
    return [*arguments, "--", "python", "-m", "orchestrator", "run", inside, *rest]


def _metadata(options: Mapping[str, Any], path: Path, shown: str) -> dict[str, str]:
    """Return the metadata of the submission: the job's name and file, which Ray's pages show, and what was given."""
    from orchestrator.config.yaml_text import MAX_BYTES, read_yaml

    try:
        values = read_yaml(read_regular(path, MAX_BYTES).decode()).value
    except (OSError, ValueError):
        values = None  # the job itself reports what is wrong with its file
    name = values.get("name") if isinstance(values, dict) else None
    given = options.get("metadata_json") or {}
    given = json.loads(given) if isinstance(given, str) else given
    return {"job_name": str(name or path.stem), "job_file": shown, **given}


def project_root(path: Path) -> Path | None:
    """Return the nearest folder above a job file that looks like a project root, or None."""
    marked = (folder for folder in path.parents if any((folder / mark).exists() for mark in _ROOT_MARKS))
    return next(marked, None)


def _runtime_env(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the requested runtime environment, with STOP_WAIT added."""
    runtime_env: dict[str, Any] = {}
    if options.get("runtime_env"):
        import yaml

        runtime_env = yaml.safe_load(Path(options["runtime_env"]).read_text()) or {}
    elif options.get("runtime_env_json"):
        runtime_env = json.loads(options["runtime_env_json"])
    runtime_env["env_vars"] = {**STOP_WAIT, **runtime_env.get("env_vars", {})}
    return runtime_env


def _options_not_passed_to_hooks() -> dict[str, Any]:
    """Return the given options of `ray job submit` that Ray does not pass to a hook."""
    import click

    context = click.get_current_context()
    given = context.params
    return {
        name: given[name]
        for name in ("headers", "verify", "log_style", "log_color")
        if name in given and context.get_parameter_source(name) != click.core.ParameterSource.DEFAULT
    }
