"""Deliveries of an MLflow webhook: verify signature and age, and tell whether an alias of the model moved.

MLflow signs a delivery as Standard Webhooks do: HMAC-SHA256 over `ID.TIMESTAMP.BODY`. A delivery carries no command:
it makes the service look at the registry, which alone says where the alias points.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from orchestrator.records import read_record
from orchestrator.serving.auth import read_secret

VARIABLE = "MIRAGE_WEBHOOK_SECRET"
PATH = "/webhooks/mlflow"
MAX_BYTES = 64 * 1024
MAX_AGE_SECONDS = 300
"""Age of a delivery, and of the clocks' difference; a repeated delivery is recognised for as long."""
UPLOAD_SECONDS = 10.0

_ID, _TIMESTAMP, _SIGNATURE = "x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature"
_VERSION = "v1"
_EVENT = ("model_version_alias", "created")


class DeliveryError(Exception):
    """A delivery that is refused; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Delivery(Enum):
    """What an authentic delivery means for the service; the value is the response's text."""

    ALIAS_MOVED = "The service looks at its alias now."
    REPEATED = "This delivery arrived before."
    UNRELATED = "No alias of this service's model moved."


class DeliveryVerifier:
    """Verifier of the deliveries for one registered model; used from one event loop, so it needs no lock."""

    def __init__(self, secret: str, model_name: str, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._model_name = model_name
        self._clock = clock
        self._seen: dict[str, float] = {}

    def verify(self, headers: Mapping[str, str], body: bytes) -> Delivery:
        """Return what a delivery means. `headers` are looked up in lower case. Raises DeliveryError."""
        delivery_id, timestamp = headers.get(_ID, ""), headers.get(_TIMESTAMP, "")
        expected = sign(self._secret, delivery_id, timestamp, body)
        if not hmac.compare_digest(headers.get(_SIGNATURE, "").encode(), expected.encode()):
            raise DeliveryError(
                401, "The signature is missing or wrong. The webhook's secret must be the service's."
            )
        now = self._clock()
        if not timestamp.isdecimal() or abs(now - int(timestamp)) > MAX_AGE_SECONDS:
            raise DeliveryError(
                401, f"The delivery's time differs from the service's by more than {MAX_AGE_SECONDS} s."
            )
        moved = self._moved(body)
        self._seen = {key: until for key, until in self._seen.items() if until >= now}
        if delivery_id in self._seen:
            return Delivery.REPEATED
        self._seen[delivery_id] = int(timestamp) + MAX_AGE_SECONDS
        return Delivery.ALIAS_MOVED if moved else Delivery.UNRELATED

    def _moved(self, body: bytes) -> bool:
        try:
            event = read_record(dict[str, Any], body)
            return (event["entity"], event["action"]) == _EVENT and event["data"]["name"] == self._model_name
        except (ValueError, LookupError, TypeError) as error:
            raise DeliveryError(400, "The body is not an event of MLflow.") from error


def sign(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """Return the signature of a delivery, as MLflow computes it."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return f"{_VERSION},{base64.b64encode(digest).decode()}"


def read_webhook_secret(file: Path | None) -> str | None:
    """Return the webhook's secret in `file`, else in the environment, else None. Raises ServiceError."""
    return read_secret(file, "--webhook-secret-file", VARIABLE)


async def read_delivery(chunks: AsyncIterator[bytes]) -> bytes:
    """Return the body of a delivery. Raises DeliveryError if it is too large or arrives too slowly."""
    body = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_BYTES:
                    raise DeliveryError(413, f"The delivery has more than {MAX_BYTES:,} bytes.")
    except TimeoutError:
        raise DeliveryError(408, f"The delivery did not arrive within {UPLOAD_SECONDS:g} s.") from None
    return bytes(body)
