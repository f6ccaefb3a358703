"""Ray Serve's replicas stay on loopback where their cluster does.

A replica opens a port for calls between deployments, on every interface and without asking for a name (Ray 2.60).
Nobody outside the machine has any business there when the head itself listens on 127.0.0.1 alone.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.serve._private import replica

_ANY = "[::]:"
_LOOPBACK = "127.0.0.1"


def keep_on_loopback() -> None:
    """Let the replica of this process, whose port is not open yet, listen on 127.0.0.1 if its node does."""
    if ray.util.get_node_ip_address() != _LOOPBACK:
        return
    open_port = replica.add_port_to_grpc_server

    def add_port(server: Any, address: str) -> int:
        return int(open_port(server, address.replace(_ANY, f"{_LOOPBACK}:")))

    replica.add_port_to_grpc_server = add_port
