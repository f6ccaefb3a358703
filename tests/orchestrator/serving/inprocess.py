"""A service without Ray: the real HTTP server, routes and replica code, with the replica in this process."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from mirage import MIRAGE, ModelConfig
from mirage.weights import dumps
from orchestrator.imaging.photos import Limits
from orchestrator.serving.active_model import ActiveModel
from orchestrator.serving.http_server import HttpServer, listen
from orchestrator.serving.replica import Replica, RestoredImage, RestoreFailure
from orchestrator.serving.served_model import DegradationPsnr, ServedModel
from orchestrator.serving.service import Service
from orchestrator.serving.settings import ServiceSettings
from orchestrator.serving.webhook import DeliveryVerifier

SMALL = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 1, 1), drop_path=0.0)


def small_model(seed: int = 0) -> MIRAGE:
    torch.manual_seed(seed)
    return MIRAGE(SMALL).eval()


def served(model: MIRAGE, version: str = "1", scores: tuple[DegradationPsnr, ...] = ()) -> ServedModel:
    weights = dumps(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ServedModel(
        "small", version, f"digest-{version}", weights, parameters, "fast", "rgb-crop16", scores
    )


def image_bytes(width: int = 40, height: int = 24, kind: str = "PNG", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


class InProcess:
    """A backend with one replica in this process; `hold` keeps every request in flight until it is set."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.replicas = 1
        self.retries = 0
        self.hold: asyncio.Event | None = None
        self._settings = settings
        self._replica: Replica | None = None

    async def restore(self, data: bytes, model: ServedModel) -> RestoredImage | RestoreFailure:
        if self._replica is None:  # its lock belongs to the server's event loop
            limits = Limits(self._settings.max_bytes, self._settings.max_pixels)
            self._replica = Replica(limits, self._settings.max_batch, "cpu", torch.get_num_threads())
        if self.hold is not None:
            await self.hold.wait()

        async def weights() -> bytes:
            return model.weights

        return await self._replica.restore(data, model.digest, weights)


class Managed(InProcess):
    """The same backend with the duties that a front end asks of one."""

    problem = ""
    """Why a model fails its smoke test."""

    def smoke_test(self, model: ServedModel) -> str:
        return self.problem

    def count_replicas(self) -> None:
        self.replicas = 1


HOURLY = ServiceSettings(port=0, poll_seconds=3600)
"""Settings of a service that learns of an alias by its webhook alone."""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Running:
    port: int
    service: Service
    backend: InProcess
    active: ActiveModel

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def restore(self, body: Any, **headers: str) -> Reply:
        return self.request("POST", "/restore", body, {k.replace("_", "-"): v for k, v in headers.items()})


@contextmanager
def running(
    model: ServedModel, token: str | None = None, webhook_secret: str | None = None, **settings: Any
) -> Iterator[Running]:
    chosen = ServiceSettings(port=0, **settings)
    with listen(chosen.host, 0) as listening:
        port = listening.getsockname()[1]
        backend, active = InProcess(chosen), ActiveModel(model)
        verifier = DeliveryVerifier(webhook_secret, model.name) if webhook_secret else None
        service = Service(chosen, active, backend, token, verifier)
        with HttpServer(service.app, listening, 30):
            yield Running(port, service, backend, active)
