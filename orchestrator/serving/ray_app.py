"""The service as a Ray Serve application: the same routes as `mirage serve`, behind Serve's own HTTP proxies.

    proxies (Serve's, one on each node)  ->  RestoreIngress (one)  ->  RestoreDeployment (replicas)

One ingress, so that the limit on requests in flight and the metrics are those of the whole service.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

import ray.exceptions
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.errors import ServiceError
from orchestrator.serving import auth, served_model, webhook
from orchestrator.serving.arguments import ApplicationArguments
from orchestrator.serving.front_end import FrontEnd, Secrets, assemble
from orchestrator.serving.ray_replica_port import NoReplicaPort
from orchestrator.serving.ray_serve import LOGGING, ServeBackend, bind_replicas
from orchestrator.tracking.uri import resolve_tracking_uri

log = logging.getLogger(__name__)

INGRESS_CPUS = 0.1
"""CPUs that Ray reserves for the ingress: more than 0 keeps it off a head that runs no work."""
MAX_OPEN_REQUESTS = 10_000
"""Requests that Serve passes to the ingress at a time. The service's own limit answers, with HTTP 429, long before."""


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application for arguments named like the flags of `mirage serve`. Raises ServiceError."""
    arguments = ApplicationArguments.parse(args)
    settings = arguments.settings()
    ingress = serve.deployment(
        serve.ingress()(RestoreIngress),
        name=RestoreIngress.__name__,
        num_replicas=1,
        max_ongoing_requests=MAX_OPEN_REQUESTS,
        health_check_period_s=2,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=settings.timeout_seconds,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        logging_config=LOGGING,
    )
    return ingress.bind(
        arguments.model_copy(update={"tracking_uri": resolve_tracking_uri(arguments.tracking_uri)}),
        _secrets_in_environment(os.environ),
        bind_replicas(settings),
        NoReplicaPort(),
    )


class RestoreIngress:
    """The front end, as the deployment that Serve's proxies send requests to.

    expected_secrets: environment variables with a secret that were set where the application was built. They do not
    travel through Ray: the process of this deployment must have them too.
    """

    def __init__(
        self,
        arguments: ApplicationArguments,
        expected_secrets: frozenset[str],
        replicas: DeploymentHandle,
        port: NoReplicaPort,
    ) -> None:
        self._arguments = arguments
        self._secrets = read_secrets(arguments, expected_secrets)
        self._backend = IngressBackend(replicas, serve.get_replica_context().app_name)

    async def __serve_build_asgi_app__(self) -> Starlette:
        """Load the model, start the loop that watches its alias, and return the routes. Serve calls it once."""
        # In a thread: Serve allows no blocking calls of another deployment in its event loop.
        front = await asyncio.to_thread(_assemble, self._arguments, self._backend, self._secrets)
        self._monitor = front.monitor
        self._loop = threading.Thread(target=front.monitor.run, name="monitor", daemon=True)
        self._loop.start()
        front.service.app.add_middleware(CancelledReceive)
        return front.service.app

    def check_health(self) -> None:
        """Let Serve replace this process if the loop that watches the alias has ended."""
        if not self._loop.is_alive():
            raise RuntimeError("the loop that watches the alias has ended; see the log above")

    def __del__(self) -> None:
        """End the loop."""
        if hasattr(self, "_monitor"):
            self._monitor.stop()


class CancelledReceive:
    """ASGI middleware: a client that disconnects is an `http.disconnect`, as uvicorn says it.

    Serve may cancel the task that fetches the rest of a body, and raises that error in `receive` instead.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application."""

        async def receive_or_disconnect() -> Message:
            try:
                return await receive()
            except ray.exceptions.TaskCancelledError:
                return {"type": "http.disconnect"}

        await self._app(scope, receive_or_disconnect, send)


class IngressBackend(ServeBackend):
    """The backend of the ingress, which outlives Serve's controller: Serve restarts that by itself."""

    def count_replicas(self) -> None:
        """Update `replicas` from Serve; keep the last number while the controller does not answer."""
        try:
            super().count_replicas()
        except ray.exceptions.RayError as error:
            log.warning("Serve's controller does not answer: %s", error)


def read_secrets(arguments: ApplicationArguments, expected: frozenset[str]) -> Secrets:
    """Return the secrets of this process. Raises ServiceError if one is missing that the builder had."""
    secrets = Secrets(
        auth.read_token(arguments.token_file), webhook.read_webhook_secret(arguments.webhook_secret_file)
    )
    files = {auth.VARIABLE: arguments.token_file, webhook.VARIABLE: arguments.webhook_secret_file}
    for variable in sorted(expected):
        if variable not in os.environ and files[variable] is None:
            argument = "token_file" if variable == auth.VARIABLE else "webhook_secret_file"
            raise ServiceError(
                f"{variable}: is set where the application was built, and not on this node. Set it when the node's Ray "
                f"starts, or pass the secret's file: {argument}=FILE"
            )
    return secrets


def _assemble(arguments: ApplicationArguments, backend: ServeBackend, secrets: Secrets) -> FrontEnd:
    assert arguments.tracking_uri is not None
    trust = arguments.trust or ()
    first = served_model.load_model(arguments.model, arguments.tracking_uri, trust)
    front = assemble(
        arguments.model, arguments.tracking_uri, first, arguments.settings(), backend, secrets, trust
    )
    backend.count_replicas()
    return front


def _secrets_in_environment(environment: Mapping[str, str]) -> frozenset[str]:
    return frozenset({auth.VARIABLE, webhook.VARIABLE} & environment.keys())
