"""`mirage serve`: replicas, HTTP server and alias watcher, until SIGTERM."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial

from orchestrator.cluster.local import ray_head
from orchestrator.errors import ServiceError
from orchestrator.serving import served_model
from orchestrator.serving.active_model import ActiveModel
from orchestrator.serving.alias_watcher import AliasWatcher
from orchestrator.serving.http_server import HttpServer, listen
from orchestrator.serving.service import Service
from orchestrator.serving.settings import ServiceSettings
from orchestrator.signals import on_stop

log = logging.getLogger(__name__)


def serve(model: str, settings: ServiceSettings, token: str | None, emit: Callable[[str], None]) -> None:
    """Serve `model` until SIGTERM or Ctrl-C; then finish the requests in flight.

    Raises ServiceError and RegistryError before it accepts requests.
    """
    if (
        "RAY_ADDRESS" not in os.environ
    ):  # a Ray head of its own, on loopback: Ray reads this when it is imported
        os.environ.update({**ray_head.ENVIRONMENT, "RAY_AUTH_MODE": ray_head.auth_mode()})
    from orchestrator.serving.ray_serve import replicas

    with listen(settings.host, settings.port) as listening:
        settings = settings.at(listening.getsockname()[1])
        first = served_model.load_model(model)
        with replicas(settings) as backend:
            if problem := backend.smoke_test(first):
                raise ServiceError(f"{model}: {first.label} failed its smoke test: {problem}")
            active = ActiveModel(first)
            service = Service(settings, active, backend, token)
            watcher = watcher_of(model, active, backend.smoke_test)
            service.registry_error = lambda: watcher.last_error if watcher else ""
            stop = threading.Event()
            with on_stop(stop.set), HttpServer(service.app, listening, settings.timeout_seconds) as server:
                emit(_greeting(settings, active, model, token))
                while not stop.wait(settings.poll_seconds):
                    if not server.running:
                        raise ServiceError("the HTTP server has stopped; see the messages above")
                    backend.count_replicas()
                    if watcher is not None:
                        watcher.poll()
                service.draining = True
                emit(f"draining: {service.admission.in_flight} requests in flight")


def watcher_of(
    model: str, active: ActiveModel, smoke_test: Callable[[served_model.ServedModel], str]
) -> AliasWatcher | None:
    """Return a watcher of the alias that `model` names, or None if it names a fixed version or a file."""
    if not served_model.is_alias(model):
        return None
    return AliasWatcher(
        active,
        partial(served_model.current_version, model),
        partial(served_model.load_model, model),
        smoke_test,
    )


def _greeting(settings: ServiceSettings, active: ActiveModel, model: str, token: str | None) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    lines = [f"serving {active.current.label} at http://{host}:{settings.port}/"]
    if served_model.is_alias(model):
        lines.append(f"  watching {model} every {settings.poll_seconds:g} s")
    if token is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
        lines.append(f"  no token: anybody who can reach {settings.host} can use it; see --token-file")
    return "\n".join(lines)
