"""Ports of the loopback interface, and HTTP requests to them."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.cluster.local import processes
from orchestrator.errors import ClusterError

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


def url_opener(url: str) -> urllib.request.OpenerDirector:
    """Return a URL opener that uses the proxies of the environment, except for loopback."""
    if urlsplit(url).hostname in LOOPBACK_HOSTS:
        return urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # also when a closed connection lingers
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


def require_free(wanted: Mapping[str, int]) -> None:
    """Raise `ClusterError` unless the ports, by their flags of `mirage up`, are free and all different."""
    if len(set(wanted.values())) < len(wanted):
        raise ClusterError(f"{' and '.join(wanted)} need different ports, not {sorted(wanted.values())}")
    for flag, port in wanted.items():
        if is_free(port):
            continue
        holder = processes.port_owner(port)
        other = f"mirage up {flag} {free_port()}"
        if holder is None:
            raise ClusterError(f"port {port} is taken by an unknown process: use `{other}`")
        if holder.home is not None:
            project = Path(holder.home).parent
            raise ClusterError(
                f"port {port} is taken by the cluster of another project, {project}: "
                f"run `mirage down` there, or `{other}` here"
            )
        raise ClusterError(
            f"port {port} is taken by {holder.name} (process {holder.pid}): stop it, or `{other}`"
        )
