"""Deliveries of MLflow's webhook: only an authentic, fresh one about the service's model makes it look."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.errors import ServiceError
from orchestrator.serving.served_model import ServedModel
from orchestrator.serving.webhook import (
    MAX_AGE_SECONDS,
    MAX_BYTES,
    PATH,
    VARIABLE,
    Delivery,
    DeliveryError,
    DeliveryVerifier,
    read_webhook_secret,
    sign,
)
from tests.orchestrator.serving.inprocess import Running, running

SECRET = "hook-secret"
NOW = 1_800_000_000


def event(entity: str = "model_version_alias", action: str = "created", name: str = "small") -> bytes:
    data = {"name": name, "alias": "champion", "version": "2"}
    return json.dumps({"entity": entity, "action": action, "timestamp": "-", "data": data}).encode()


def headers(
    body: bytes, delivery_id: str = "d1", timestamp: Any = NOW, secret: str = SECRET
) -> dict[str, str]:
    return {
        "x-mlflow-delivery-id": delivery_id,
        "x-mlflow-timestamp": str(timestamp),
        "x-mlflow-signature": sign(secret, delivery_id, str(timestamp), body),
    }


class Clock:
    now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(clock: Clock) -> DeliveryVerifier:
    return DeliveryVerifier(SECRET, "small", clock)


def test_the_signature_is_the_one_that_mlflow_computes() -> None:
    from mlflow.webhooks import delivery

    body = event()
    expected = delivery._generate_hmac_signature(SECRET, "d1", str(NOW), body.decode())
    assert sign(SECRET, "d1", str(NOW), body) == expected


@pytest.mark.parametrize(
    ("body", "meaning"),
    [
        (event(), Delivery.ALIAS_MOVED),
        (event(name="another"), Delivery.UNRELATED),
        (event(action="deleted"), Delivery.UNRELATED),
        (event(entity="model_version"), Delivery.UNRELATED),
    ],
)
def test_only_a_moved_alias_of_the_model_counts(
    verifier: DeliveryVerifier, body: bytes, meaning: Delivery
) -> None:
    assert verifier.verify(headers(body), body) is meaning


@pytest.mark.parametrize(
    "changed",
    [
        {"x-mlflow-signature": ""},
        {"x-mlflow-signature": "v1,AAAA"},
        {"x-mlflow-signature": "v1,é"},
        {"x-mlflow-delivery-id": "d2"},
        {"x-mlflow-timestamp": str(NOW + 1)},
        headers(event(), secret="another"),
        headers(event(name="another")),
    ],
)
def test_a_delivery_that_was_signed_otherwise_is_refused(
    verifier: DeliveryVerifier, changed: dict[str, str]
) -> None:
    with pytest.raises(DeliveryError, match="signature") as refused:
        verifier.verify({**headers(event()), **changed}, event())
    assert refused.value.status == 401


def test_a_request_without_headers_is_refused(verifier: DeliveryVerifier) -> None:
    with pytest.raises(DeliveryError, match="signature"):
        verifier.verify({}, event())


@pytest.mark.parametrize("timestamp", [NOW - MAX_AGE_SECONDS - 1, NOW + MAX_AGE_SECONDS + 1, "", "now", "-5"])
def test_a_delivery_of_another_time_is_refused(verifier: DeliveryVerifier, timestamp: Any) -> None:
    with pytest.raises(DeliveryError, match="300 s") as refused:
        verifier.verify(headers(event(), timestamp=timestamp), event())
    assert refused.value.status == 401


def test_a_repeated_delivery_does_nothing_as_long_as_its_time_is_accepted(
    verifier: DeliveryVerifier, clock: Clock
) -> None:
    body = event()
    for age in (-MAX_AGE_SECONDS, 0, MAX_AGE_SECONDS):
        clock.now = NOW + age
        expected = Delivery.ALIAS_MOVED if age < 0 else Delivery.REPEATED
        assert verifier.verify(headers(body), body) is expected
    clock.now += 1
    with pytest.raises(DeliveryError):
        verifier.verify(headers(body), body)
    assert verifier.verify(headers(body, "d2", int(clock.now)), body) is Delivery.ALIAS_MOVED


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"{}", b'{"entity": "model_version_alias"}', b"1"])
def test_a_signed_body_that_is_no_event_is_refused(verifier: DeliveryVerifier, body: bytes) -> None:
    with pytest.raises(DeliveryError, match="not an event") as refused:
        verifier.verify(headers(body), body)
    assert refused.value.status == 400


def test_the_secret_comes_from_a_file_or_the_environment(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_webhook_secret(None) is None
    monkeypatch.setenv(VARIABLE, "from-environment")
    assert read_webhook_secret(None) == "from-environment"
    file = tmp_path / "secret"
    file.write_text("from-file\n")
    assert read_webhook_secret(file) == "from-file"
    file.write_text("")
    with pytest.raises(ServiceError, match="--webhook-secret-file"):
        read_webhook_secret(file)


# --- over HTTP -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooked(model: ServedModel) -> Iterator[Running]:
    with running(model, token="bearer", webhook_secret=SECRET) as found:
        yield found


def deliver(service: Running, body: bytes, **changed: str) -> Any:
    import time

    sent = {**headers(body, f"d{time.monotonic_ns()}", int(time.time())), **changed}
    return service.request("POST", PATH, body, sent)


def test_an_authentic_delivery_needs_no_token_and_is_reported(
    hooked: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    monkeypatch.setattr(hooked.service, "alias_moved", lambda: looked.append(True))
    reply = deliver(hooked, event())
    assert (reply.status, reply.json()["result"]) == (200, Delivery.ALIAS_MOVED.value)
    assert deliver(hooked, event(name="another")).json()["result"] == Delivery.UNRELATED.value
    assert looked == [True]


@pytest.mark.parametrize(
    ("body", "changed", "status"),
    [
        (event(), {"x-mlflow-signature": "v1,no"}, 401),
        (b"{}", {}, 400),
        (b" " * (MAX_BYTES + 1), {}, 413),
    ],
)
def test_a_refused_delivery_gets_one_error_and_is_counted(
    hooked: Running, monkeypatch: pytest.MonkeyPatch, body: bytes, changed: dict[str, str], status: int
) -> None:
    monkeypatch.setattr(hooked.service, "alias_moved", lambda: pytest.fail("it must not look"))
    reply = deliver(hooked, body, **changed)
    assert (reply.status, reply.json()["status"]) == (status, status)
    assert SECRET not in reply.body.decode()
    text = hooked.request("GET", "/metrics", headers={"Authorization": "Bearer bearer"}).body.decode()
    assert f'mirage_webhook_deliveries_total{{status="{status}"}}' in text


def test_openapi_describes_the_route(hooked: Running) -> None:
    assert PATH in hooked.get("/openapi.json").json()["paths"]


def test_without_a_secret_there_is_no_such_route(service: Running) -> None:
    assert deliver(service, event()).status == 404
