"""Connect to a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
import ray.exceptions
import ray.train

from orchestrator.cluster import private_ray
from orchestrator.errors import ClusterError

log = logging.getLogger(__name__)

_RAY_TRAIN = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # Ray's dashboard and state API show each run and its workers
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # a notice may leave 30 seconds
    # After the loss of a node Ray waits this long for as many workers as before; then it accepts fewer.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}

_HEAD_SECONDS = 5.0

_ALLOCATOR = {
    # By default glibc returns large blocks to the system and requests them again in every step, which costs about
    # 50,000 page faults per step on a CPU. With these settings it keeps them.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
    "MALLOC_TOP_PAD_": str(2**26),
}


_PRIVATE = ("AWS_", "MLFLOW_", "MIRAGE_")
"""Variables with these prefixes hold credentials, or may; workers need them."""
_OF_EACH_NODE = ("MIRAGE_CACHE",)
"""Variables for which the one of a node counts, if it has one."""
_STAY_HERE = ("MIRAGE_SERVE_TOKEN", "MIRAGE_WEBHOOK_SECRET", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY")


@contextmanager
def connected() -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, else to this user's on this machine, else to a new one, for the block."""
    os.environ.update({name: value for name, value in _RAY_TRAIN.items() if name not in os.environ})
    with ExitStack() as stack:
        own = stack.enter_context(private_ray.session()) if private_ray.is_needed() else {}
        try:
            with _own_signal_handlers():
                ray.init(
                    **own,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    runtime_env=_runtime_env(os.environ),
                    namespace="mirage",
                )
        except ConnectionError as error:
            raise ClusterError(
                f"no Ray cluster answers at RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '(unset)')}. "
                "Start one with `mirage up`, correct the address, or train without Ray: --in-process"
            ) from error
        stack.callback(ray.shutdown)
        stack.enter_context(_head_watched(ray.get_runtime_context().gcs_address))
        yield


def _runtime_env(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the runtime environment of workers.

    Ray writes `env_vars` into logs and shows them in its state API. What may hold credentials travels as a function
    instead, which Ray keeps in the head's memory and each worker calls when it starts.
    """
    public = {name: value for name, value in environment.items() if name.startswith("RAY_TRAIN_")}
    private = {
        name: value
        for name, value in environment.items()
        if name.startswith(_PRIVATE) and name not in _STAY_HERE
    }

    def set_environment() -> None:
        of_node = {name: os.environ[name] for name in _OF_EACH_NODE if name in os.environ}
        os.environ.update({**private, **of_node})

    return {"env_vars": {**_ALLOCATOR, **public}, "worker_process_setup_hook": set_environment}


@contextmanager
def _head_watched(address: str) -> Iterator[None]:
    """Say in one line what to do when the cluster's head is lost: Ray ends this process a minute later."""
    host, _, port = address.rpartition(":")
    ended = threading.Event()

    def watch() -> None:
        answered = True
        while not ended.wait(_HEAD_SECONDS):
            before, answered = answered, _listens(host, int(port))
            if before and not answered and not _listens(host, int(port)):
                log.warning(
                    "the head of the Ray cluster at %s does not answer. If it does not come back, Ray ends this "
                    "process within about a minute. Then start a cluster again (`mirage up`) and submit the job again: "
                    "it resumes from its newest checkpoint.",
                    address,
                )

    threading.Thread(target=watch, name="ray-head", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=_HEAD_SECONDS):
            return True
    except OSError:
        return False


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep this process's handlers of SIGTERM and SIGINT: `ray.init` replaces them with ones that exit at once.

    With Ray's own, SIGTERM would end the driver before the workers have written a checkpoint.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may install handlers
    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, handler)
