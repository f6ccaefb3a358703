"""The argument that keeps a replica from opening its gRPC port; tests/slow/test_serve.py looks at real replicas."""

from __future__ import annotations

import asyncio
import pickle

import grpc.aio
import psutil
import pytest

from orchestrator.serving.ray_replica_port import NoReplicaPort


def opened(address: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return where a gRPC server listens if it is asked for `address` after the argument was unpickled."""
    monkeypatch.setattr(grpc.aio, "server", grpc.aio.server)  # undone after the test
    assert isinstance(pickle.loads(pickle.dumps(NoReplicaPort())), NoReplicaPort)

    async def open_port() -> set[str]:
        server = grpc.aio.server()
        port = server.add_insecure_port(address)
        await server.start()
        found = {c.laddr.ip for c in psutil.Process().net_connections() if c.laddr and c.laddr.port == port}
        await server.stop(None)
        return found

    return asyncio.run(open_port())


def test_a_server_for_all_interfaces_opens_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened("[::]:0", monkeypatch) == set()


def test_a_server_for_one_address_opens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened("127.0.0.1:0", monkeypatch) <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert opened("127.0.0.1:0", monkeypatch)


def test_where_serve_uses_the_port_it_opens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
    assert opened("[::]:0", monkeypatch)
