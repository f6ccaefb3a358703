"""Find and stop the processes of one local cluster, and no others.

Every process of a cluster inherits one random tag in its environment. A recorded process is identified by its id
and its start time, since the system reuses ids.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

ENDED = (psutil.NoSuchProcess, ProcessLookupError)
TAG = "MIRAGE_CLUSTER_TAG"
_START_TOLERANCE_SECONDS = 2.0  # a clock correction moves the boot time, and with it every start time


@dataclass(frozen=True)
class Process:
    """A process as it was when it was recorded."""

    name: str
    pid: int
    started: float
    """Seconds since the epoch."""


def identify(pid: int, name: str) -> Process:
    """Return the record of a running process."""
    return Process(name, pid, psutil.Process(pid).create_time())


def is_alive(process: Process) -> bool:
    """Return whether exactly this process runs and is no zombie."""
    return _find(process) is not None


def tagged(tag: str) -> list[Process]:
    """Return every process of the cluster with this tag, children included.

    A Ray worker overwrites its environment with its title, so workers are found as children of the raylet.
    """
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or belongs to another user
            if process.environ().get(TAG) == tag:
                for member in (process, *process.children(recursive=True)):
                    found[member.pid] = member
    return list(_running(found.values()))


def of_folder(home: Path) -> list[Process]:
    """Return every process of clusters whose `.mirage` folder is `home`, without any record of them."""
    tags = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or belongs to another user
            environment = process.environ()
            ours = environment.get("MIRAGE_HOME") == str(home) or str(home / "store") in process.cmdline()
            if ours and TAG in environment:
                tags.add(environment[TAG])
    return [process for tag in sorted(tags) for process in tagged(tag)]


def stop(processes: list[Process], first: str, grace_seconds: float) -> list[Process]:
    """Terminate the processes, those named `first` before the others; return those that still run.

    A process that has not ended `grace_seconds` after SIGTERM is killed.
    """
    leaders = [process for process in processes if process.name == first]
    others = [process for process in processes if process.name != first]
    for group in (leaders, others):
        members = [member for process in group if (member := _find(process)) is not None]
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        _, alive = psutil.wait_procs(members, timeout=grace_seconds)
        for member in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(alive, timeout=grace_seconds)
    return [process for process in processes if is_alive(process)]


@dataclass(frozen=True)
class PortOwner:
    """The process that listens on a port."""

    name: str
    pid: int
    home: str | None
    """The `.mirage` folder of its cluster, or None if it belongs to none or cannot be inspected."""


def port_owner(port: int) -> PortOwner | None:
    """Return the process that listens on a TCP port of this machine, or None if the system does not show it."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                home = None
                with contextlib.suppress(psutil.Error):
                    environment = process.environ()
                    home = environment.get("MIRAGE_HOME") if TAG in environment else None
                return PortOwner(process.name(), process.pid, home)
    return None


@contextlib.contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process for the time of the block."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def named(name: str) -> list[int]:
    """Return the ids of all processes with this executable name."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == name:
                found.append(process.pid)
    return found


def _find(process: Process) -> psutil.Process | None:
    try:
        candidate = psutil.Process(process.pid)
        same = abs(candidate.create_time() - process.started) < _START_TOLERANCE_SECONDS
        return candidate if same and candidate.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, ValueError, OverflowError):  # also an id that no process can have
        return None


def _running(candidates: Iterable[psutil.Process]) -> Iterator[Process]:
    for candidate in candidates:
        with contextlib.suppress(psutil.Error):
            if candidate.status() != psutil.STATUS_ZOMBIE:
                yield Process(candidate.name(), candidate.pid, candidate.create_time())
