"""The parts that answer requests, put together in the same way for `mirage serve` and for Serve's proxies."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from orchestrator.errors import ServiceError
from orchestrator.serving import served_model
from orchestrator.serving.active_model import ActiveModel
from orchestrator.serving.alias_watcher import AliasWatcher
from orchestrator.serving.backend import ManagedBackend
from orchestrator.serving.monitor import ServiceMonitor
from orchestrator.serving.served_model import ServedModel
from orchestrator.serving.service import Service
from orchestrator.serving.settings import ServiceSettings
from orchestrator.serving.webhook import DeliveryVerifier


@dataclass(frozen=True)
class Secrets:
    """Secrets of one service, in the memory of its front end only."""

    token: str | None = None
    """Bearer token of its clients."""
    webhook: str | None = None
    """Signs the deliveries of MLflow's webhook."""

    def __repr__(self) -> str:
        """Return the names of the secrets that are set."""
        return f"Secrets({', '.join(name for name, value in vars(self).items() if value)})"


@dataclass(frozen=True)
class FrontEnd:
    """The routes of a service, and the loop that keeps its model and its replica count current."""

    service: Service
    monitor: ServiceMonitor


def assemble(
    model: str,
    tracking_uri: str,
    first: ServedModel,
    settings: ServiceSettings,
    backend: ManagedBackend,
    secrets: Secrets,
    trust_code: Collection[str] = (),
) -> FrontEnd:
    """Return the front end of a service that starts with `first`. Raises ServiceError if that fails its smoke test.

    trust_code: digests of code that later versions may bring and run.
    """
    if problem := backend.smoke_test(first):
        raise ServiceError(f"{model}: {first.label} failed its smoke test: {problem}")
    active = ActiveModel(first)
    watcher = verifier = None
    if served_model.is_alias(model):
        watcher = AliasWatcher(
            active,
            partial(served_model.current_version, model, tracking_uri),
            partial(served_model.load_model, model, tracking_uri, trust_code),
            backend.smoke_test,
        )
        if secrets.webhook is not None:
            verifier = DeliveryVerifier(secrets.webhook, first.name)
    monitor = ServiceMonitor(backend.count_replicas, watcher, settings.poll_interval(verifier is not None))
    service = Service(settings, active, backend, secrets.token, verifier)
    service.registry_error = lambda: watcher.last_error if watcher else ""
    service.alias_moved = monitor.look_now
    return FrontEnd(service, monitor)
