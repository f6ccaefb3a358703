"""Keep the replicas of Ray Serve from opening a port.

A replica of Ray 2.60 opens a gRPC port on every interface, and unpickles what anybody sends there, without a token.
Only calls between deployments by gRPC use it, which are off by default; no setting closes it. A replica unpickles the
arguments of its deployment before it opens the port, so an argument can change what gRPC's public `grpc.aio.server`
does. Ray's `worker_process_setup_hook` could do it too, but `serve run` sets it by a flag only, and a Serve config file
not at all.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import grpc.aio

_ALL_INTERFACES = "[::]:"
_SWITCHES = ("RAY_SERVE_USE_GRPC_BY_DEFAULT", "RAY_SERVE_PROXY_USE_GRPC", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
"""Ray's variables that make it use the port."""


class NoReplicaPort:
    """Argument of a deployment: a process that unpickles it calls `close_port`."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Return what pickle calls to make the copy."""
        return _unpickle, ()


def _unpickle() -> NoReplicaPort:
    close_port()
    return NoReplicaPort()


def close_port() -> None:
    """Let gRPC servers of this process open no port on all interfaces, unless the user made Serve use it."""
    if any(os.environ.get(name) == "1" for name in _SWITCHES):
        return
    create = grpc.aio.server

    @functools.wraps(create)
    def server(*arguments: Any, **options: Any) -> Any:
        created = create(*arguments, **options)
        add_port = created.add_insecure_port
        created.add_insecure_port = lambda address: (
            0 if address.startswith(_ALL_INTERFACES) else add_port(address)
        )
        return created

    grpc.aio.server = server
