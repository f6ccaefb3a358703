"""`mirage run` as `ray job submit` would start it, on a cluster that a test made of several nodes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.slow.project import plain_environment, wait_until

ENDLESS = 10**6
NOTICE_SECONDS = 30
ON_LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""Ray's only switch that keeps 127.0.0.1 as a node's address, where the machine has another one too."""


@dataclass
class Driver:
    """`mirage run` in a process of its own, as `ray job submit` would start it."""

    process: subprocess.Popen[bytes]
    output: Path
    _read: int = 0

    def text(self) -> str:
        return self.output.read_text()

    def says(self, what: str, timeout: float = 300) -> None:
        """Wait until it says so, after what was waited for before."""

        def told() -> str | None:
            text = self.text()
            found = text.find(what, self._read)
            assert found >= 0 or self.process.poll() is None, text
            if found < 0:
                return None
            self._read = found + len(what)
            return "yes"

        wait_until(told, timeout, f"{what!r}, in {self.text()}")


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
        output = self.home.parent / f"{name}.txt"
        environment = {
            **plain_environment(),
            ON_LOOPBACK[0]: ON_LOOPBACK[1],
            "MIRAGE_HOME": str(self.home),
            "RAY_ADDRESS": self.address,
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "orchestrator", "run", str(self.job)]
        with output.open("wb") as file:
            process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=self.home.parent
            )
        self.driven.append(process)
        return Driver(process, output)

    def folder(self) -> Path:
        (folder,) = (self.home.parent / "store" / "runs").iterdir()
        return folder


def drain(address: str, node: str) -> None:
    """What a cloud's agent does when a spot instance is about to be taken away."""
    subprocess.run(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address),
            *("--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"),
            *("--deadline-remaining-seconds", str(NOTICE_SECONDS)),
        ],
        env={**os.environ, ON_LOOPBACK[0]: ON_LOOPBACK[1]},
        check=True,
        capture_output=True,
    )
