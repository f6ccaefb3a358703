"""`mirage serve`: replicas, HTTP server and alias watcher, until SIGTERM."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from orchestrator.cluster import private_ray
from orchestrator.errors import ServiceError
from orchestrator.serving import served_model, webhook
from orchestrator.serving.front_end import FrontEnd, Secrets, assemble
from orchestrator.serving.http_server import HttpServer, listen
from orchestrator.serving.settings import ServiceSettings
from orchestrator.signals import on_stop
from orchestrator.tracking.uri import resolve_tracking_uri


def serve(
    model: str,
    settings: ServiceSettings,
    secrets: Secrets,
    emit: Callable[[str], None],
    trust_code: Collection[str] = (),
) -> None:
    """Serve `model` until SIGTERM or Ctrl-C; then finish the requests in flight.

    trust_code: digests of code that the model may bring and run.

    Raises ServiceError, RegistryError and ModelError before it accepts requests.
    """
    private_ray.prepare(always=not os.environ.get("RAY_ADDRESS"))
    from orchestrator.serving.ray_serve import replicas

    tracking_uri = resolve_tracking_uri()
    with listen(settings.host, settings.port) as listening:
        settings = settings.at(listening.getsockname()[1])
        first = served_model.load_model(model, tracking_uri, trust_code)
        with replicas(settings) as backend:
            front = assemble(model, tracking_uri, first, settings, backend, secrets, trust_code)
            service, monitor = front.service, front.monitor
            with (
                on_stop(monitor.stop),
                HttpServer(service.app, listening, settings.timeout_seconds) as server,
            ):

                def check() -> None:
                    if not server.running:
                        raise ServiceError("the HTTP server has stopped; see the messages above")

                emit(_greeting(settings, front, model, secrets))
                monitor.run(check)
                service.draining = True
                emit(f"draining: {service.admission.in_flight} requests in flight")


def _greeting(settings: ServiceSettings, front: FrontEnd, model: str, secrets: Secrets) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    current = front.service.active.current
    lines = [f"serving {current.label} at http://{host}:{settings.port}/"]
    if current.code_digest:
        lines.append(f"  it runs code of its own: {current.class_}, sha256 {current.code_digest}")
    if served_model.is_alias(model):
        interval = settings.poll_interval(secrets.webhook is not None)
        told = f", and when MLflow sends an event to {webhook.PATH}" if secrets.webhook else ""
        lines.append(f"  watching {model} every {interval:g} s{told}")
    if secrets.token is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
        lines.append(f"  no token: anybody who can reach {settings.host} can use it; see --token-file")
    return "\n".join(lines)
