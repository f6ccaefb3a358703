"""Keep the replicas of Ray Serve on loopback, on a node that is on loopback itself.

A replica of Ray 2.60 opens a gRPC port for calls between deployments on every interface; no setting changes that.
This is Ray's `worker_process_setup_hook`: it runs in each worker process before anything else and changes
where gRPC's public `grpc.aio.server` listens.
"""

from __future__ import annotations

import functools
from typing import Any

import grpc.aio
import ray

SETUP_HOOK = f"{__name__}.listen_on_loopback"
_ALL_INTERFACES = "[::]:"
_LOOPBACK = "127.0.0.1"


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
