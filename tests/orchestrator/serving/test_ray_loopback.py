"""The argument that keeps a replica's gRPC port on loopback; tests/slow/test_serve.py looks at real replicas."""

from __future__ import annotations

import asyncio
import pickle

import grpc.aio
import psutil
import pytest
import ray

from orchestrator.serving.ray_loopback import LoopbackOnly


def listening_addresses(node: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return where a gRPC server for all interfaces listens, on a node with this address, after the argument came."""
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: node)
    monkeypatch.setattr(grpc.aio, "server", grpc.aio.server)  # undone after the test
    assert isinstance(pickle.loads(pickle.dumps(LoopbackOnly())), LoopbackOnly)

    async def open_port() -> set[str]:
        server = grpc.aio.server()
        port = server.add_insecure_port("[::]:0")
        await server.start()
        found = {c.laddr.ip for c in psutil.Process().net_connections() if c.laddr and c.laddr.port == port}
        await server.stop(None)
        return found

    return asyncio.run(open_port())


def test_a_server_for_all_interfaces_listens_on_loopback_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = listening_addresses("127.0.0.1", monkeypatch)
    assert addresses
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_on_a_node_that_others_reach_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = listening_addresses("192.0.2.1", monkeypatch)
    assert addresses <= {"::", "0.0.0.0"}
