"""Webhooks of an MLflow server: let it send a signed event when an alias of a registered model moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import RegistryError
from orchestrator.masking import without_password
from orchestrator.registry.versions import registry_client

EVENT = "model_version_alias.created"
"""MLflow's event for an alias that is set, also when it moves from another version."""

_SERVER_SETTINGS = {
    "scheme": "The server allows it with MLFLOW_WEBHOOK_ALLOWED_SCHEMES=https,http.",
    "public IP": "The server allows it with MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true.",
    "no answer": "If it runs, it cannot read its webhooks: it needs the MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY "
    "that it had when they were created.",
}
"""Words in the refusals of an MLflow server -> the setting of the server that is meant."""


@dataclass(frozen=True)
class WebhookEntry:
    """A webhook as the MLflow server has it; its secret never leaves the server."""

    id: str
    name: str
    url: str
    status: str
    events: tuple[str, ...]


def create(tracking_uri: str, name: str, url: str, secret: str) -> WebhookEntry:
    """Let the server send `EVENT` to `url`, signed with `secret`. Raises RegistryError."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise RegistryError(f"{url}: is no http or https address.")
    with _webhook_client(tracking_uri) as client:
        for entry in _entries(client):
            if entry.url == url and EVENT in entry.events:
                raise RegistryError(f"{url}: webhook {entry.id} sends there already. Delete it first.")
        return _entry(client.create_webhook(name=name, url=url, events=[EVENT], secret=secret))


def list_all(tracking_uri: str) -> list[WebhookEntry]:
    """Return all webhooks of the server. Raises RegistryError."""
    with _webhook_client(tracking_uri) as client:
        return list(_entries(client))


def delete(tracking_uri: str, webhook_id: str) -> None:
    """Delete a webhook. Raises RegistryError."""
    with _webhook_client(tracking_uri) as client:
        client.delete_webhook(webhook_id)


def send_test(tracking_uri: str, webhook_id: str) -> str:
    """Let the server send an example event; return the receiver's answer. Raises RegistryError if it refuses."""
    with _webhook_client(tracking_uri) as client:
        result = client.test_webhook(webhook_id)
        if not result.success:
            reason = result.error_message or f"HTTP {result.response_status}: {result.response_body}"
            raise RegistryError(
                f"webhook {webhook_id}: the example event was not accepted. {_with_hint(reason)}"
            )
        return f"HTTP {result.response_status}: {result.response_body}"


@contextmanager
def _webhook_client(tracking_uri: str) -> Iterator[Any]:
    if urlsplit(tracking_uri).scheme not in ("http", "https"):
        raise RegistryError(
            f"{without_password(tracking_uri)}: an MLflow server sends webhooks, a database does not. "
            "Set MLFLOW_TRACKING_URI to a server, here and where models are promoted."
        )
    try:
        with registry_client(tracking_uri) as client:
            yield client
    except RegistryError as error:
        raise RegistryError(_with_hint(str(error))) from error


def _with_hint(reason: str) -> str:
    hint = next((hint for words, hint in _SERVER_SETTINGS.items() if words in reason), "")
    return f"{reason} {hint}".strip()


def _entries(client: Any) -> Iterator[WebhookEntry]:
    token = None
    while True:
        page = client.list_webhooks(page_token=token)
        yield from map(_entry, page)
        token = page.token
        if not token:
            return


def _entry(webhook: Any) -> WebhookEntry:
    events = tuple(f"{event.entity}.{event.action}" for event in webhook.events)
    return WebhookEntry(webhook.webhook_id, webhook.name, webhook.url, str(webhook.status), events)
