"""A registry of small models, a running service, and clients that count what became of every request."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from mirage import MIRAGE, ModelConfig
from mirage.weights import dumps
from orchestrator.cluster.local import lifecycle
from orchestrator.cluster.local.ports import free_port
from orchestrator.registry import registration, versions
from orchestrator.serving.webhook import PATH, sign
from orchestrator.tracking import runs
from orchestrator.tracking.client import connect
from tests.claims import BIN, wait_until
from tests.slow.project import Project

NAME = "served"
TOKEN, SECRET = "token-of-the-clients", "secret-of-the-webhook"
SMALL = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 1, 1), drop_path=0.0)
GOOD, BETTER, NOT_A_NUMBER, CORRUPT = "1", "2", "3", "4"


def image(width: int = 160, height: int = 120, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Registry:
    """Four versions: two that are good, one that gives no numbers, one whose file was damaged."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        with pytest.MonkeyPatch.context() as patch:
            # As an older release registered models: this one refuses weights that are no numbers.
            patch.setattr(registration, "not_finite", lambda model: [])
            self._register(uri)

    def _register(self, uri: str) -> None:
        run = runs.start_run(uri, NAME, "run", {}, {})
        for version in (GOOD, BETTER, NOT_A_NUMBER, CORRUPT):
            torch.manual_seed(int(version))
            model = MIRAGE(SMALL)
            if version == NOT_A_NUMBER:
                with torch.no_grad():
                    model.output.weight.fill_(float("nan"))
            made = registration.register(
                uri, NAME, run_id=run, weights=dumps(model), card="# Card", tags={"recipe": "fast"},
                metrics={"test/rain/psnr": 24.0, "test/rain/input_psnr": 22.0}, idempotency_key=version,
            )  # fmt: skip
            assert str(made.version) == version
            if version == CORRUPT:
                file = versions.weights_file(made.uri, uri)
                file.write_bytes(file.read_bytes()[:-8] + bytes(8))
        runs.end_run(uri, run, "FINISHED")

    def promote(self, version: str) -> None:
        connect(self._uri).set_registered_model_alias(NAME, "champion", version)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Serving:
    """A running service, over HTTP."""

    port: int
    application: str
    """Name of the Serve application that the replicas belong to."""
    token: str = ""
    process: subprocess.Popen[bytes] = field(init=False)
    log: Path = field(init=False)
    """Everything that it printed."""

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            authorization = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            connection.request(method, path, body, {**authorization, **(headers or {})})
            got = connection.getresponse()
            return Reply(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        finally:
            connection.close()

    def restore(self, data: bytes) -> Reply:
        return self.request("POST", "/restore", data)

    def deliver(self, alias: str) -> Reply:
        """Send what MLflow's webhook sends when `alias` moves."""
        data = {"name": NAME, "alias": alias, "version": "-"}
        body = json.dumps({"entity": "model_version_alias", "action": "created", "data": data}).encode()
        identity, now = f"d{time.monotonic_ns()}", str(int(time.time()))
        headers = {
            "X-MLflow-Delivery-Id": identity,
            "X-MLflow-Timestamp": now,
            "X-MLflow-Signature": sign(SECRET, identity, now, body),
        }
        return self.request("POST", PATH, body, headers)

    def health(self) -> dict[str, Any]:
        return dict(self.request("GET", "/health").json())

    def metric(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(self.request("GET", "/metrics").body.decode())
        samples = (sample for family in families for sample in family.samples)
        return sum(sample.value for sample in samples if (sample.name, sample.labels) == (name, labels))

    def answers(self) -> bool:
        """Return whether the service answers; fail if its process has ended."""
        try:
            return self.request("GET", "/health").status == 200
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            return False

    def replicas(self) -> list[psutil.Process]:
        """Return the replica processes of this service."""
        title = f"ServeReplica:{self.application}:"
        return [p for p in psutil.process_iter(["cmdline"]) if title in " ".join(p.info["cmdline"] or ())]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


@contextmanager
def serving(project: Project, *flags: str, environment: dict[str, str] | None = None) -> Iterator[Serving]:
    """Run `mirage serve models:/served@champion` on a free port until the block ends."""
    port = free_port()
    program = [sys.executable, "-m", "orchestrator", "serve", f"models:/{NAME}@champion", "--port", str(port)]
    token = TOKEN if "--token-file" in flags else ""
    command = [*program, *flags]
    environment = environment or project.environment
    with started(project, command, environment, Serving(port, f"mirage-{port}", token)) as running:
        yield running


@contextmanager
def application(project: Project, *arguments: str) -> Iterator[Serving]:
    """Run `serve run orchestrator.serving.app:build model=models:/served@champion` until the block ends."""
    program = [str(BIN / "serve"), "run", "--name", "restoring", "orchestrator.serving.app:build"]
    command = [*program, f"model=models:/{NAME}@champion", *arguments]
    environment = {**project.environment, **lifecycle.environment(project.root)}
    with started(project, command, environment, Serving(8000, "restoring", TOKEN)) as running:
        yield running


@contextmanager
def started(
    project: Project, command: list[str], environment: dict[str, str], running: Serving
) -> Iterator[Serving]:
    """Start a service and wait until it answers; end it after the block."""
    running.log = project.root / f"serve-{running.port}.txt"
    with running.log.open("wb") as output:
        running.process = process = subprocess.Popen(
            command,
            cwd=project.root,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(running.answers, f"the service answers; see {running.log}", 240, every=0.2)
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def load(serving: Serving, clients: int, data: bytes) -> Iterator[list[Reply]]:
    """Let `clients` send `data` again and again during the block; the list holds every reply, errors as status 0."""
    stop = threading.Event()
    replies: list[Reply] = []

    def send() -> None:
        while not stop.is_set():
            try:
                replies.append(serving.restore(data))
            except OSError as error:
                replies.append(Reply(0, {}, repr(error).encode()))

    threads = [threading.Thread(target=send) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield replies
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def failed(replies: list[Reply]) -> list[tuple[int, bytes]]:
    return [(reply.status, reply.body[:200]) for reply in replies if reply.status != 200]


def registry_of(project: Project) -> Registry:
    return Registry(f"sqlite:///{Path(project.root) / '.mirage' / 'mlflow.db'}")
