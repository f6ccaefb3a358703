"""A copy of this checkout and the commands that a user would type in it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.cluster.local import ray_head
from orchestrator.events import Event, read_log
from tests.claims import BIN, ROOT, Finished, run_command, wait_until

SMALL_JOB = """#!/usr/bin/env -S python -m orchestrator run
name: small
recipe: fast
setting: 5deg
storage: s3://mirage
model: {dim: 6, blocks: [1, 1, 1, 1], refinement_blocks: 0, heads: [1, 1, 1, 1]}
data:
  manifests: small
  pack: {source: synthetic, root: photographs, held_out: [coffee, cat], variants: 1}
  crop_pixels: 48
  mixture: {noise25: 3, rain: 20, haze: 1, blur: 5, lowlight: 20, blind: 20}
degradations:
  once:
    - shuffle:
        - gaussian_blur: {sigma: {log_range: [0.2, 3]}}
        - resize: {scale: {range: [0.5, 1]}}
        - gaussian_noise: {sigma: {range: [1, 25]}}
    - jpeg: {quality: {range: [30, 95]}}
  blind: [repeat: {times: {range: [1, 2]}, steps: [use: once]}]
evaluate: {degradations: [haze, rain, noise25, blur, lowlight, blind]}
train: {steps: 60, global_batch_size: 6, learning_rate: 1.0e-3, warmup_steps: 5, precision: fp32, ema_decay: 0.9}
workers: {min: 2, max: 2}
checkpoint: {every_steps: 10}
validation: {every_steps: 30, photographs: 1, crop_pixels: 64}
track: {experiment: slow, register_as: small, every_steps: 1, log: json}
example: {photograph: coffee, degradation: haze}
"""

QUICK_RAY = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
"""Ray Train looks every 2 s by default whether workers have started or ended, and every 5 s for nodes that leave."""

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""Ray's names for the states of a job that has ended."""


@dataclass
class Project:
    """A checkout with a running cluster."""

    root: Path
    environment: dict[str, str]

    def run(self, *words: str, cwd: Path | None = None, timeout: float = 400, **extra: str) -> Finished:
        """Run a command to its end."""
        return run_command(
            *words, cwd=cwd or self.root, environment={**self.environment, **extra}, timeout=timeout
        )

    def mirage(self, *words: str) -> Finished:
        """Run `mirage WORDS` to its end."""
        return self.run(sys.executable, "-m", "orchestrator", *words)

    def submit(self, *words: str, cwd: Path | None = None, **extra: str) -> Finished:
        """Run `ray job submit ...` by the path of its program, and wait for the job."""
        return self.run(str(BIN / "ray"), "job", "submit", *words, cwd=cwd, **extra)

    def start(self, *words: str, cpus: float = 0) -> str:
        """Submit a command as `ray job submit --no-wait -- WORDS` does, but at once; return the job's id."""
        values = {"entrypoint": shlex.join(words), "entrypoint_num_cpus": cpus}
        return str(self._ask("", "POST", values)["submission_id"])

    def finish(self, *words: str) -> Finished:
        """Submit a command and wait for the end of its job."""
        return self.wait_for_end(self.start(*words))

    def wait_for_end(self, job: str) -> Finished:
        """Wait until a job has ended; its status is 0 where it succeeded."""
        status = wait_until(lambda: (s := self.status(job)) in ENDED and s, f"{job} ends", 400, every=0.5)
        return Finished(ENDED.index(status), self.logs(job))

    def write_job(self, name: str, text: str) -> None:
        """Write an executable job file, jobs/NAME.yaml."""
        file = self.root / "jobs" / f"{name}.yaml"
        file.write_text(text)
        file.chmod(0o755)

    def logs(self, job: str) -> str:
        """Return what the job has printed so far."""
        return str(self._ask(f"/{job}/logs")["logs"])

    def events(self, job: str) -> list[Event]:
        """Return the events in the log of a job with `track.log: json`."""
        return read_log(self.logs(job))

    def wait_for_event(self, job: str, kind: type[Event], timeout: float = 400, **values: object) -> Event:
        """Wait until the job has emitted an event of this kind and these values; return the first one."""

        def emitted() -> Event | None:
            ended = self.status(job) in ENDED
            found = find_event(self.events(job), kind, **values)
            assert found or not ended, f"{job} ended without {kind.__name__} {values}:\n{self.logs(job)}"
            return found[1] if found else None

        return wait_until(emitted, f"{job} emits {kind.__name__} {values}", timeout, every=0.5)

    def stop(self, job: str) -> None:
        """Ask Ray to stop the job, as `ray job stop` does, but at once."""
        self._ask(f"/{job}/stop", "POST")

    def workers(self, title: str) -> list[psutil.Process]:
        """Return the processes of this cluster whose command line has `title` in it; the machine may run others."""
        recorded = json.loads((self.root / ".mirage" / "up.json").read_text())["processes"]
        (raylet,) = (psutil.Process(p["pid"]) for p in recorded if p["name"] == ray_head.RAYLET)
        return [p for p in raylet.children(recursive=True) if title in command_line(p)]

    def driver(self, job_name: str) -> psutil.Process:
        """Return the process that drives jobs/NAME.yaml."""
        (found,) = self.workers(f"orchestrator run jobs/{job_name}.yaml")
        return found

    def _ask(self, path: str, method: str = "GET", values: object = None) -> dict[str, object]:
        # Ray's own HTTP interface: its command line takes seconds of CPU per question.
        request = urllib.request.Request(
            f"http://127.0.0.1:8265/api/jobs{path or '/'}",
            data=None if values is None else json.dumps(values).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.load(answer))

    def wait_for(self, job: str, says: str, timeout: float = 400) -> str:
        """Wait until the job has printed a line that matches; return all it printed."""
        return wait_until(
            lambda: (text := self.logs(job)) and re.search(says, text) and text, says, timeout, every=0.5
        )

    def status(self, job: str) -> str:
        """Return the job's state as Ray names it."""
        return str(self._ask(f"/{job}")["status"])

    def wait_for_status(self, job: str, status: str, timeout: float = 90) -> None:
        """Wait until Ray gives this state of the job."""
        wait_until(lambda: self.status(job) == status, f"the job is {status}", timeout, every=0.5)


def find_event(
    events: Sequence[Event], kind: type[Event], start: int = 0, **values: object
) -> tuple[int, Event] | None:
    """Return the index and the first event, from `start` on, of this kind and these values; None if there is none."""
    for index, event in enumerate(events[start:], start):
        if isinstance(event, kind) and all(getattr(event, name) == value for name, value in values.items()):
            return index, event
    return None


def command_line(process: psutil.Process) -> str:
    """Return a process's command line; empty where the process has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def copy_project(folder: Path) -> Path:
    """Copy the tracked and new files of this checkout, as a clone would have them."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def plain_environment() -> dict[str, str]:
    """Return the environment of a shell in which nothing was activated."""
    keep = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("RAY_", "AWS_", "MLFLOW_", "MIRAGE_", "VIRTUAL_ENV"))
    }
    path = [p for p in keep.get("PATH", "").split(os.pathsep) if Path(p).resolve() != BIN.resolve()]
    return {**keep, "PATH": os.pathsep.join(path)}
