"""Ports of this machine's loopback."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from orchestrator.cluster.local import processes
from orchestrator.errors import ClusterError


def free_port() -> int:
    """Return a port that nothing uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection does not block it
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


def require_free(wanted: Mapping[str, int]) -> None:
    """Raise `ClusterError` unless every port, given by its flag of `mirage up`, is free and no two are equal."""
    if len(set(wanted.values())) < len(wanted):
        raise ClusterError(f"{' and '.join(wanted)} need different ports, not {sorted(wanted.values())}")
    for flag, port in wanted.items():
        if is_free(port):
            continue
        holder = processes.listener(port)
        other = f"mirage up {flag} {free_port()}"
        if holder is None:
            raise ClusterError(f"port {port} is taken, the system does not say by what: `{other}`")
        if holder.home is not None:
            project = Path(holder.home).parent
            raise ClusterError(
                f"port {port} is taken by the cluster of another project, {project}: "
                f"run `mirage down` there, or `{other}` here"
            )
        raise ClusterError(
            f"port {port} is taken by {holder.name} (process {holder.pid}): stop it, or `{other}`"
        )
