"""`up.json`: what one `mirage up` started, written before it starts, so that nothing is lost track of."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from orchestrator.cluster.local.processes import Process
from orchestrator.cluster.local.s3_server import S3Server
from orchestrator.errors import ClusterError
from orchestrator.records import RecordError, Text, read_record
from shards.filesystem import read_regular

MAX_BYTES = 1 << 20
Port = Annotated[int, Field(ge=1, le=65535)]


@dataclass(frozen=True)
class ClusterState:
    """The content of `up.json`."""

    tag: str
    """In the environment of every process of the cluster."""
    ray_port: Port
    dashboard_port: Port
    temp_dir: Text
    s3: S3Server | None
    environment: dict[Text, Text]
    """What the cluster's processes get besides the variables of the shell."""
    processes: tuple[Process, ...] = ()
    ready: bool = False


def project_home(project: Path) -> Path:
    """Make the project's `.mirage` folder, check that it is writable, and return it; raises `ClusterError`."""
    if not (project / "pyproject.toml").exists():
        raise ClusterError(f"{project} is not a project root (it has no pyproject.toml): run it from there")
    home = project.resolve() / ".mirage"
    try:
        for folder in (home, home / "store", home / "logs"):
            folder.mkdir(exist_ok=True)
        (home / "logs").chmod(0o700)  # Ray logs the environment of its jobs, credentials included
        probe = home / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ClusterError(
            f"cannot write into {error.filename} ({error.strerror}): "
            "work in a copy of the project that belongs to you"
        ) from error
    return home


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Run one `up` or `down` of a project at a time; a second one waits."""
    with open(home / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read(home: Path) -> ClusterState | None:
    """Return the content of `up.json`, or None if there is none; raises `ClusterError` if it is not readable.

    Fields that this version does not know are ignored.
    """
    file = home / "up.json"
    try:
        return read_record(ClusterState, read_regular(file, MAX_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, RecordError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ClusterError(
            f"{file} is damaged, or of another version ({reason}): run `mirage down`, which stops what it started, "
            "then `mirage up`"
        ) from error


def write(home: Path, state: ClusterState) -> None:
    """Replace `up.json` atomically, readable by its owner only."""
    raw = {
        **vars(state),
        "s3": vars(state.s3) if state.s3 else None,
        "processes": [vars(process) for process in state.processes],
    }
    temporary = home / "up.json.new"
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(raw, file, indent=1)
    temporary.replace(home / "up.json")
