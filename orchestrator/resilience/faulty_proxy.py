"""A faulty HTTP proxy before a real server: some requests fail, in the ways in which networks and servers fail.

Which request fails and how is drawn from a seed. Requests are passed on byte for byte, so that signatures stay valid;
each connection carries one request.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from enum import Enum
from types import TracebackType

_BLOCK = 1 << 16
_TIMEOUT_SECONDS = 60.0


class RequestFault(Enum):
    """What happens to a request."""

    NONE = "passed on"
    ERROR = "HTTP 503 without being passed on"
    LOST_ANSWER = "passed on, and the connection reset in place of the answer"
    RESET = "connection reset before anything is passed on"
    STALL = "no answer for a while, then a reset"
    TRUNCATED = "passed on, and the answer cut off in its body"


REQUEST_FAULTS = tuple(fault for fault in RequestFault if fault is not RequestFault.NONE)

FaultPlan = Callable[[int], RequestFault]
"""Number of a request, from 0 -> what happens to it."""


def random_faults(share: float, seed: int) -> FaultPlan:
    """Return a plan under which this share of the requests fails, each in a way drawn from the seed."""

    def fault(number: int) -> RequestFault:
        rng = random.Random(f"{seed}-{number}")
        return rng.choice(REQUEST_FAULTS) if rng.random() < share else RequestFault.NONE

    return fault


def outage(number: int) -> RequestFault:
    """Fail every request at once, as when nobody listens."""
    return RequestFault.RESET


def healthy(number: int) -> RequestFault:
    """Pass every request on."""
    return RequestFault.NONE


class FaultyProxy:
    """Listens on a free port of loopback and passes on to a port of loopback, as `plan` says; a context manager."""

    def __init__(self, upstream_port: int, plan: FaultPlan = healthy, stall_seconds: float = 2.0) -> None:
        self.plan = plan
        """May be replaced while requests come in."""
        self.counts: Counter[RequestFault] = Counter()
        """How many requests met which fate."""
        self._upstream = upstream_port
        self._stall_seconds = stall_seconds
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._listen, name="faulty-proxy", daemon=True).start()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more."""
        # Closing alone does not wake the thread that waits in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def injected(self) -> int:
        """How many requests have met a fault."""
        return sum(count for fault, count in self.counts.items() if fault is not RequestFault.NONE)

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.settimeout(_TIMEOUT_SECONDS)
            try:
                request = _read_request(client)
                if request is not None:
                    self._answer(client, request)
            except OSError:
                _reset(client)

    def _answer(self, client: socket.socket, request: bytes) -> None:
        with self._lock:
            fault = self.plan(sum(self.counts.values()))
            self.counts[fault] += 1
        if fault is RequestFault.ERROR:
            client.sendall(
                b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\nRetry-After: 0\r\n\r\n"
            )
        elif fault is RequestFault.RESET:
            _reset(client)
        elif fault is RequestFault.STALL:
            time.sleep(self._stall_seconds)
            _reset(client)
        else:
            answer = _ask(self._upstream, request)
            if fault is RequestFault.LOST_ANSWER:
                _reset(client)
            elif fault is RequestFault.TRUNCATED:
                head, _, body = answer.partition(b"\r\n\r\n")
                client.sendall(head + b"\r\n\r\n" + body[: len(body) // 2])
                _reset(client)
            else:
                client.sendall(answer)


def _ask(port: int, request: bytes) -> bytes:
    """Return the whole answer of the server, which closes the connection behind it."""
    with socket.create_connection(("127.0.0.1", port), _TIMEOUT_SECONDS) as server:
        server.sendall(request)
        return b"".join(iter(lambda: server.recv(_BLOCK), b""))


def _read_request(client: socket.socket) -> bytes | None:
    """Return one request, changed so that the server closes the connection behind its answer; None if none came."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(_BLOCK)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)
    }
    if fields.get(b"expect", b"").lower() == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += _some(client)
    else:
        while len(body) < int(fields.get(b"content-length", b"0")):
            body += _some(client)
    # Neither is among the fields that a signature covers.
    own = (b"connection", b"expect")
    kept = [line for line in lines if line.partition(b":")[0].strip().lower() not in own]
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""]) + body


def _some(client: socket.socket) -> bytes:
    more = client.recv(_BLOCK)
    if not more:
        raise ConnectionResetError("the client closed the connection within its request")
    return more


def _reset(client: socket.socket) -> None:
    """Close the connection by a reset, as a server that dies does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
