"""`mirage serve`: the model, the replicas, the door, and then the registry's alias until it is time to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from orchestrator.errors import ServiceError
from orchestrator.serving import served_model
from orchestrator.serving.active_model import Shelf
from orchestrator.serving.alias_watcher import Follower
from orchestrator.serving.app import Service
from orchestrator.serving.http_server import Door, listen
from orchestrator.serving.ray_serve import ServeBackend, replicas
from orchestrator.serving.settings import Settings
from orchestrator.signals import on_stop

log = logging.getLogger(__name__)


def serve(model: str, settings: Settings, token: str | None, say: Callable[[str], None]) -> None:
    """Serve `model` until SIGTERM or Ctrl-C; then answer who is inside, and end.

    Raises ServiceError and RegistryError before anybody is answered.
    """
    with listen(settings.host, settings.port) as listening:
        settings = settings.at(listening.getsockname()[1])
        first = served_model.fetch(model)
        with replicas(settings) as backend:
            if problem := backend.try_out(first):
                raise ServiceError(f"{model}: {first.label} is not fit to serve: {problem}")
            shelf = Shelf(first)
            service = Service(settings, shelf, backend, token)
            follower = None
            if served_model.follows(model):
                follower = Follower(
                    shelf,
                    partial(served_model.version_now, model),
                    partial(served_model.fetch, model),
                    backend.try_out,
                )
                service.registry_problem = follower.problem_now
            stop = threading.Event()
            with on_stop(stop.set), Door(service.app, listening, settings.timeout_seconds) as door:
                say(_greeting(settings, shelf, model, token))
                _watch(stop, door, backend, follower, settings.poll_seconds)
                service.draining = True
                say(f"draining: {service.room.inside} requests are inside")


def _watch(
    stop: threading.Event, door: Door, backend: ServeBackend, follower: Follower | None, poll_seconds: float
) -> None:
    while not stop.wait(poll_seconds):
        if not door.open:
            raise ServiceError("the HTTP server has ended by itself; see the messages before this one")
        backend.count()
        if follower is not None:
            follower.step()


def _greeting(settings: Settings, shelf: Shelf, model: str, token: str | None) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    lines = [f"serving {shelf.current.label} at http://{host}:{settings.port}/"]
    if served_model.follows(model):
        lines.append(f"  follows {model}, looks every {settings.poll_seconds:g} s")
    if token is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
        lines.append(f"  anybody who reaches {settings.host} may use it: --token-file FILE asks for a token")
    return "\n".join(lines)
