"""The parts put together: a delivery of the webhook alone moves the model, and a bad first model is refused."""

from __future__ import annotations

import json
import threading
import time

import pytest

from orchestrator.errors import ServiceError
from orchestrator.serving import served_model
from orchestrator.serving.front_end import FrontEnd, Secrets, assemble
from orchestrator.serving.http_server import HttpServer, listen
from orchestrator.serving.served_model import ServedModel
from orchestrator.serving.webhook import PATH, sign
from tests.claims import wait_until
from tests.orchestrator.serving.inprocess import HOURLY, Managed, Running, served, small_model

ALIAS = "models:/small@champion"


def assembled(model: ServedModel, name: str = ALIAS, secret: str | None = "secret") -> FrontEnd:
    return assemble(name, "sqlite://", model, HOURLY, Managed(HOURLY), Secrets(webhook=secret))


def routes(front: FrontEnd) -> set[str]:
    return {getattr(route, "path", "") for route in front.service.app.routes}


def test_a_delivery_moves_the_model_long_before_the_next_poll(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = served(small_model(1), version="2")
    monkeypatch.setattr(served_model, "current_version", lambda name, uri: "2")
    monkeypatch.setattr(served_model, "load_model", lambda name, uri, trust: newer)
    front = assembled(model)
    body = json.dumps(
        {"entity": "model_version_alias", "action": "created", "data": {"name": "small"}}
    ).encode()
    now = str(int(time.time()))
    headers = {"X-MLflow-Delivery-Id": "1", "X-MLflow-Timestamp": now}
    headers["X-MLflow-Signature"] = sign("secret", "1", now, body)
    loop = threading.Thread(target=front.monitor.run)
    loop.start()
    try:
        with listen("127.0.0.1", 0) as listening, HttpServer(front.service.app, listening, 30):
            service = Running(
                listening.getsockname()[1], front.service, Managed(HOURLY), front.service.active
            )
            assert service.request("POST", PATH, body, headers).status == 200
            wait_until(lambda: service.get("/health").json()["model"] == "small/2", "the newer version")
    finally:
        front.monitor.stop()
        loop.join()


def test_a_first_model_that_fails_its_smoke_test_is_refused(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Managed, "problem", "it is black.")
    with pytest.raises(ServiceError, match=r"small/1 failed its smoke test: it is black\."):
        assembled(model)


def test_only_an_alias_has_a_webhook(model: ServedModel) -> None:
    assert PATH in routes(assembled(model))
    assert PATH not in routes(assembled(model, secret=None))
    assert PATH not in routes(assembled(model, name="weights.safetensors"))
