"""A copy of this checkout and the commands that a user would type in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]

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
train: {steps: 160, global_batch_size: 6, learning_rate: 1.0e-3, warmup_steps: 5, precision: fp32, ema_decay: 0.9}
workers: {min: 2, max: 2}
checkpoint: {every_steps: 10}
validation: {every_steps: 80, photographs: 1, crop_pixels: 64}
track: {experiment: slow, register_as: small, every_steps: 1}
example: {photograph: coffee, degradation: haze}
"""


@dataclass
class Done:
    """A finished command: its status and everything it printed."""

    status: int
    text: str


@dataclass
class Project:
    """A checkout with a running cluster."""

    root: Path
    environment: dict[str, str]

    def run(self, *words: str, cwd: Path | None = None, timeout: float = 400, **extra: str) -> Done:
        """Run a command to its end."""
        done = subprocess.run(
            words,
            cwd=cwd or self.root,
            env={**self.environment, **extra},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Done(done.returncode, done.stdout)

    def submit(self, *words: str, cwd: Path | None = None, **extra: str) -> Done:
        """Run `ray job submit ...` by the path of its program, and wait for the job."""
        return self.run(str(BIN / "ray"), "job", "submit", *words, cwd=cwd, **extra)

    def start(self, *words: str) -> str:
        """Submit without waiting; return the submission id."""
        done = self.submit("--no-wait", *words)
        found = re.search(r"raysubmit_\w+", done.text)
        assert found, done.text
        return found.group()

    def logs(self, job: str) -> str:
        """Return what the job has printed so far."""
        return str(self._ask(f"{job}/logs")["logs"])

    def stop(self, job: str) -> None:
        """Ask Ray to stop the job, as `ray job stop` does, but at once."""
        self._ask(f"{job}/stop", "POST")

    def _ask(self, what: str, method: str = "GET") -> dict[str, object]:
        # Ray's own HTTP interface: its command line takes seconds of CPU per question.
        request = urllib.request.Request(f"http://127.0.0.1:8265/api/jobs/{what}", method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.load(answer))

    def wait_for(self, job: str, says: str, timeout: float = 400) -> str:
        """Wait until the job has printed a line that matches; return all it printed."""
        return wait_until(lambda: (text := self.logs(job)) and re.search(says, text) and text, timeout, says)

    def status(self, job: str) -> str:
        """Return the job's state as Ray names it."""
        return str(self._ask(job)["status"])


def wait_until(condition: Callable[[], str | None], timeout: float, what: str) -> str:
    """Return the first true value of `condition`."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(1)
    raise AssertionError(f"did not happen within {timeout:.0f} s: {what}")


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
