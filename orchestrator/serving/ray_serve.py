"""Replicas on Ray Serve, which keeps them alive and scales them with the load.

Restoring has no side effects, so the requests of a replica that died are sent to another one. A request names its
model by digest, with a reference to the weights in Ray's object store, so any replica can restore with that version.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import ray
import ray.exceptions
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from orchestrator.cluster import private_ray
from orchestrator.cluster.local.ray_head import OBJECT_STORE_BYTES
from orchestrator.errors import ServiceError
from orchestrator.imaging.photos import Limits
from orchestrator.serving.backend import ReplicasFailedError
from orchestrator.serving.ray_replica_port import NoReplicaPort
from orchestrator.serving.replica import Replica, RestoredImage, RestoreFailure
from orchestrator.serving.served_model import ServedModel
from orchestrator.serving.settings import ServiceSettings

log = logging.getLogger(__name__)

REPLICA_CPUS = 0.5
"""CPUs that Ray reserves for a replica. It may use more; a training job beside it keeps its own share."""
MAX_ATTEMPTS = 3
"""Replicas that may die of one request; then the request fails, since it may be the cause."""
START_SECONDS = 300.0
_KEPT_WEIGHTS = 3
_POLL_SECONDS = 0.2
LOGGING = {"log_level": "WARNING", "enable_access_log": False}


class RestoreDeployment:
    """The deployment: a `Replica` in its own process."""

    def __init__(self, settings: ServiceSettings, port: NoReplicaPort) -> None:
        limits = Limits(settings.max_bytes, settings.max_pixels)
        self._replica = Replica(limits, settings.max_batch, settings.device, threads_of(settings))

    async def restore(self, data: bytes, digest: str, weights: list[Any]) -> RestoredImage | RestoreFailure:
        """Call `Replica.restore`; `weights` holds one reference, which is read only when needed."""
        return await self._replica.restore(data, digest, lambda: _get(weights))

    async def smoke_test(self, digest: str, weights: list[Any]) -> str:
        """Call `Replica.smoke_test`."""
        return await self._replica.smoke_test(digest, lambda: _get(weights))


async def _get(weights: list[Any]) -> bytes:
    data: bytes = await weights[0]
    return data


def bind_replicas(settings: ServiceSettings) -> serve.Application:
    """Return the deployment of the replicas, not started."""
    deployment = serve.deployment(
        RestoreDeployment,
        name=RestoreDeployment.__name__,
        max_ongoing_requests=2 * settings.max_batch,  # one batch computes while the next one is decoded
        health_check_period_s=2,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=settings.timeout_seconds,
        ray_actor_options={"num_cpus": REPLICA_CPUS, "num_gpus": int(settings.device == "cuda")},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.max_batch,
            upscale_delay_s=5,
            downscale_delay_s=120,
        ),
        logging_config=LOGGING,
    )
    return deployment.bind(settings, NoReplicaPort())


class ServeBackend:
    """A `Backend` whose replicas are those of one Serve application."""

    def __init__(self, handle: DeploymentHandle, app: str) -> None:
        self.replicas = 0
        self.retries = 0
        self._handle = handle
        self._app = app
        self._lock = threading.Lock()
        self._weights: dict[str, Any] = {}

    async def restore(self, data: bytes, model: ServedModel) -> RestoredImage | RestoreFailure:
        """Restore one image file, by another replica if one dies. Raises ReplicasFailedError."""
        weights = self._reference(model)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            response = self._handle.restore.remote(data, model.digest, weights)
            try:
                result: RestoredImage | RestoreFailure = await response
                return result
            except ray.exceptions.RayTaskError:
                raise
            except (ray.exceptions.RayError, RayServeException) as error:
                self.retries += 1
                log.warning("a replica died, attempt %d of %d: %s", attempt, MAX_ATTEMPTS, _first_line(error))
            except BaseException:
                response.cancel()
                raise
        raise ReplicasFailedError(f"{MAX_ATTEMPTS} replicas died while restoring this image.")

    def smoke_test(self, model: ServedModel) -> str:
        """Restore the probe image in a replica; return what is wrong with the model, or ""."""
        try:
            problem: str = self._handle.smoke_test.remote(model.digest, self._reference(model)).result(
                timeout_s=START_SECONDS
            )
        except (ray.exceptions.RayError, RayServeException, TimeoutError) as error:
            return f"its smoke test could not run: {_first_line(error)}"
        return problem

    def count_replicas(self) -> None:
        """Update `replicas` from Serve."""
        application = serve.status().applications.get(self._app)
        deployment = application.deployments.get(RestoreDeployment.__name__) if application else None
        self.replicas = deployment.replica_states.get("RUNNING", 0) if deployment else 0

    def _reference(self, model: ServedModel) -> list[Any]:
        """Return a reference to the stored weights, in a list: Ray replaces a bare reference by the bytes."""
        with self._lock:
            if model.digest not in self._weights:
                self._weights[model.digest] = ray.put(model.weights)
                while len(self._weights) > _KEPT_WEIGHTS:
                    del self._weights[next(iter(self._weights))]
            return [self._weights[model.digest]]


@contextmanager
def replicas(settings: ServiceSettings) -> Iterator[ServeBackend]:
    """Run replicas for the time of the block: on the cluster of RAY_ADDRESS, else on a new one on loopback.

    Serve's HTTP proxies do not run. Raises ServiceError.
    """
    app = f"mirage-{settings.port}"
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with ExitStack() as ending, _cluster():
        serve.start(proxy_location="Disabled")
        try:
            # `serve.run` would wait without limit for resources.
            target = serve.RunTarget(target=bind_replicas(settings), name=app, route_prefix=None)
            (handle,) = serve.run_many([target], wait_for_applications_running=False)
            _wait_until_running(app)
            backend = ServeBackend(handle, app)
            backend.count_replicas()
            yield backend
        finally:
            serve.delete(app)
            if not serve.status().applications:  # no other service runs here
                # Until Ray has ended: it prints that Serve's controller, which ends itself, was killed.
                ending.enter_context(redirect_stdout(io.StringIO()))
                serve.shutdown()


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
        f"no replica started within {START_SECONDS:.0f} s. Each needs {REPLICA_CPUS:g} CPU of the Ray cluster; "
        f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU are free. To see what uses the rest: ray status"
    )


def threads_of(settings: ServiceSettings) -> int:
    """Return the number of CPU threads of a replica on this node."""
    return settings.threads or max((os.cpu_count() or 1) // settings.max_replicas, 1)


@contextmanager
def _cluster() -> Iterator[None]:
    address = os.environ.get("RAY_ADDRESS")
    options = {"logging_level": logging.WARNING, "log_to_driver": False}
    with ExitStack() as stack:
        if address:
            try:
                ray.init(address=address, **options)
            except (ConnectionError, RuntimeError) as error:
                raise ServiceError(
                    f"RAY_ADDRESS {address}: no Ray cluster answers there ({_first_line(error)})."
                ) from error
        else:
            ray.init(
                **stack.enter_context(private_ray.session()),
                num_cpus=max(os.cpu_count() or 1, 2),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                **options,
            )
        stack.callback(ray.shutdown)
        yield


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
