"""Ray Serve under the service: replicas that restore, as many as the load needs.

Serve keeps the replicas alive and scales them; requests reach them through its handle, so none of Serve's own proxies
runs. Restoring changes nothing, so what a dying replica held is done again by another one.

A request names its model by digest, with a reference to the weights in Ray's object store: whatever replica gets it,
also one that was started a moment ago, restores with that very version.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from orchestrator.cluster.local.ray_head import ENVIRONMENT, OBJECT_STORE_BYTES, auth_mode
from orchestrator.errors import ServiceError
from orchestrator.imaging.photos import Limits
from orchestrator.serving.backend import NoReplicaError
from orchestrator.serving.ray_loopback import SETUP_HOOK
from orchestrator.serving.replica import Answer, Refusal, Replica
from orchestrator.serving.served_model import Served
from orchestrator.serving.settings import Settings

log = logging.getLogger(__name__)

REPLICA_CPUS = 0.5
"""What a replica counts for in Ray's books. It may use more; a training job beside it keeps its own share."""
ATTEMPTS = 3
"""Replicas that may die of one request before it is given up: it may be what they die of."""
START_SECONDS = 300.0
_KEPT_WEIGHTS = 3
_POLL_SECONDS = 0.2


class Restoring:
    """The deployment: a `Replica` in a process of its own."""

    def __init__(self, limits: Limits, max_batch: int, device: str, threads: int) -> None:
        self._replica = Replica(limits, max_batch, device, threads)

    async def restore(self, data: bytes, digest: str, weights: list[Any]) -> Answer | Refusal:
        """As `Replica.restore`; `weights` holds one reference, which is followed only when it is needed."""
        return await self._replica.restore(data, digest, lambda: _get(weights))

    async def try_out(self, digest: str, weights: list[Any]) -> str:
        """As `Replica.try_out`."""
        return await self._replica.try_out(digest, lambda: _get(weights))


async def _get(weights: list[Any]) -> bytes:
    data: bytes = await weights[0]
    return data


class ServeBackend:
    """The replicas, seen from the door."""

    def __init__(self, handle: DeploymentHandle, app: str) -> None:
        self.replicas = 0
        self.retries = 0
        self._handle = handle
        self._app = app
        self._lock = threading.Lock()
        self._weights: dict[str, Any] = {}

    async def restore(self, data: bytes, model: Served) -> Answer | Refusal:
        """Restore one image file; what a replica that dies held is done by another. Raises NoReplicaError."""
        weights = self._reference(model)
        for attempt in range(1, ATTEMPTS + 1):
            response = self._handle.restore.remote(data, model.digest, weights)
            try:
                got: Answer | Refusal = await response
                return got
            except ray.exceptions.RayTaskError:
                raise
            except (ray.exceptions.RayError, RayServeException) as error:
                self.retries += 1
                log.warning("a replica was lost, attempt %d of %d: %s", attempt, ATTEMPTS, _line(error))
            except BaseException:
                response.cancel()
                raise
        raise NoReplicaError(f"{ATTEMPTS} replicas were lost while they had this image.")

    def try_out(self, model: Served) -> str:
        """Let a replica restore the trial image; return what is wrong with the model, or ""."""
        try:
            told: str = self._handle.try_out.remote(model.digest, self._reference(model)).result(
                timeout_s=START_SECONDS
            )
        except (ray.exceptions.RayError, RayServeException, TimeoutError) as error:
            return f"it could not be tried: {_line(error)}"
        return told

    def count(self) -> None:
        """Ask Serve how many replicas run."""
        application = serve.status().applications.get(self._app)
        deployment = application.deployments.get(Restoring.__name__) if application else None
        self.replicas = deployment.replica_states.get("RUNNING", 0) if deployment else 0

    def _reference(self, model: Served) -> list[Any]:
        """Return the weights' place in the object store, in a list: Ray would hand over the bytes otherwise."""
        with self._lock:
            if model.digest not in self._weights:
                self._weights[model.digest] = ray.put(model.weights)
                while len(self._weights) > _KEPT_WEIGHTS:
                    del self._weights[next(iter(self._weights))]
            return [self._weights[model.digest]]


@contextmanager
def replicas(settings: Settings) -> Iterator[ServeBackend]:
    """Run the replicas during the block: on the cluster of RAY_ADDRESS, else on one of its own on loopback."""
    app = f"mirage-{settings.port}"
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with _cluster():
        serve.start(proxy_location="Disabled")
        try:
            handle = _deploy(settings, app)
            backend = ServeBackend(handle, app)
            backend.count()
            yield backend
        finally:
            serve.delete(app)
            if not serve.status().applications:  # else others serve here
                serve.shutdown()


def _deploy(settings: Settings, app: str) -> DeploymentHandle:
    gpu = settings.device == "cuda"
    deployment = serve.deployment(
        Restoring,
        name=Restoring.__name__,
        max_ongoing_requests=2 * settings.max_batch,  # one batch computes, the next one is unpacked
        health_check_period_s=2,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=settings.timeout_seconds,
        ray_actor_options={"num_cpus": REPLICA_CPUS, "num_gpus": int(gpu)},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.max_batch,
            upscale_delay_s=5,
            downscale_delay_s=120,
        ),
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    limits = Limits(settings.max_bytes, settings.max_pixels)
    bound = deployment.bind(limits, settings.max_batch, settings.device, threads_of(settings))
    # `serve.run` would wait for ever where the cluster has no room.
    target = serve.RunTarget(target=bound, name=app, route_prefix=None)
    (handle,) = serve.run_many([target], wait_for_applications_running=False)
    _wait_until_running(app)
    return handle


def _wait_until_running(app: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = serve.status().applications.get(app)
        if found and found.status == "RUNNING":
            return
        if found and found.status == "DEPLOY_FAILED":
            raise ServiceError(f"the replicas do not start: {found.message.strip().splitlines()[-1]}")
        time.sleep(_POLL_SECONDS)
    free = ray.available_resources()
    raise ServiceError(
        f"no replica ran after {START_SECONDS:.0f} s. Each takes {REPLICA_CPUS:g} CPU of Ray's; free are "
        f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU. See what holds the rest: ray status"
    )


def threads_of(settings: Settings) -> int:
    """Return how many threads a replica computes with."""
    return settings.threads or max((os.cpu_count() or 1) // settings.max_replicas, 1)


@contextmanager
def _cluster() -> Iterator[None]:
    address = os.environ.get("RAY_ADDRESS")
    options = {
        "logging_level": logging.WARNING,
        "log_to_driver": False,
        "runtime_env": {"worker_process_setup_hook": SETUP_HOOK},
    }
    if address:
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError) as error:
            raise ServiceError(
                f"RAY_ADDRESS {address}: no Ray cluster answers there ({_line(error)})."
            ) from error
    else:
        os.environ.update({**ENVIRONMENT, "RAY_AUTH_MODE": auth_mode()})
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, 2),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **options,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
