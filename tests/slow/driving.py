"""`mirage run` as `ray job submit` would start it, on a cluster that a test made of several nodes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.events import Event, read_log
from tests.claims import wait_until
from tests.slow.project import QUICK_RAY, find_event, plain_environment

ENDLESS = 10**6
NOTICE_SECONDS = 30
RAY_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's only switch that keeps 127.0.0.1 as a node's address
    "RAY_AUTH_MODE": "disabled",  # by default Ray asks for a token once an earlier test has made ~/.ray/auth_token
}
"""The environment of every process of a test's own cluster."""


@dataclass
class Driver:
    """`mirage run` in a process of its own, as `ray job submit` would start it, with `track.log: json`."""

    process: subprocess.Popen[bytes]
    log: Path
    """Its standard output: the JSON log."""
    errors: Path
    """Its standard error."""
    _read: int = 0

    def events(self) -> list[Event]:
        return read_log(self.log.read_text())

    def output(self) -> str:
        return self.log.read_text() + self.errors.read_text()

    def emits(self, kind: type[Event], timeout: float = 300, **values: object) -> Event:
        """Wait for an event of this kind and these values, behind the one that was waited for before."""

        def emitted() -> tuple[int, Event] | None:
            ended = self.process.poll() is not None
            found = find_event(self.events(), kind, self._read, **values)
            assert found or not ended, self.output()
            return found

        what = f"{kind.__name__} {values}, in {self.log} and {self.errors}"
        index, event = wait_until(emitted, what, timeout, every=0.3)
        self._read = index + 1
        return event


@dataclass
class Place:
    home: Path
    address: str
    job: Path
    """What `drive` runs."""
    driven: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def end(self) -> None:
        """Kill the drivers that a failed test left."""
        for process in self.driven:
            process.kill()
            process.wait()

    def drive(self, name: str) -> Driver:
        log, errors = self.home.parent / f"{name}.jsonl", self.home.parent / f"{name}.txt"
        environment = {
            **plain_environment(),
            **RAY_ENVIRONMENT,
            **QUICK_RAY,
            "MIRAGE_HOME": str(self.home),
            "RAY_ADDRESS": self.address,
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "orchestrator", "run", str(self.job)]
        with log.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=err, cwd=self.home.parent)
        self.driven.append(process)
        return Driver(process, log, errors)

    def folder(self) -> Path:
        (folder,) = (self.home.parent / "store" / "runs").glob(f"{self.job.stem}-*")
        return folder


def drain(address: str, node: str) -> None:
    """What a cloud's agent does when a spot instance is about to be taken away."""
    subprocess.run(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address),
            *("--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"),
            *("--deadline-remaining-seconds", str(NOTICE_SECONDS)),
        ],
        env={**os.environ, **RAY_ENVIRONMENT},
        check=True,
        capture_output=True,
    )
