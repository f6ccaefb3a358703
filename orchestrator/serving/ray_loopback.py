"""Keep the replicas of Ray Serve on loopback, on a node that is on loopback itself.

A replica of Ray 2.60 opens a gRPC port for calls between deployments on every interface; no setting changes that.
A replica unpickles the arguments of its deployment before it opens the port, so an argument can change where gRPC's
public `grpc.aio.server` listens. Ray's `worker_process_setup_hook` could do it too, but `serve run` sets it by a flag
only, and a Serve config file not at all.
"""

from __future__ import annotations

import functools
from typing import Any

import grpc.aio
import ray

_ALL_INTERFACES = "[::]:"
_LOOPBACK = "127.0.0.1"


class LoopbackOnly:
    """Argument of a deployment: a process that unpickles it calls `listen_on_loopback`."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Return what pickle calls to make the copy."""
        return _unpickle, ()


def _unpickle() -> LoopbackOnly:
    listen_on_loopback()
    return LoopbackOnly()


def listen_on_loopback() -> None:
    """Let gRPC servers of this process listen on 127.0.0.1 instead of all interfaces, if its node's address is that."""
    if ray.util.get_node_ip_address() != _LOOPBACK:
        return
    create = grpc.aio.server

    @functools.wraps(create)
    def server(*arguments: Any, **options: Any) -> Any:
        created = create(*arguments, **options)
        add_port = created.add_insecure_port
        created.add_insecure_port = lambda address: add_port(
            address.replace(_ALL_INTERFACES, f"{_LOOPBACK}:")
        )
        return created

    grpc.aio.server = server
