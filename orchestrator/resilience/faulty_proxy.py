"""HTTP proxy that makes some requests to a real server fail as networks and servers do.

A seed determines which requests fail and how. Requests are forwarded byte for byte to keep their signatures valid;
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
    """How the proxy treats a request."""

    NONE = "forwarded"
    ERROR = "HTTP 503 without forwarding"
    LOST_RESPONSE = "forwarded, connection reset instead of a response"
    RESET = "connection reset without forwarding"
    STALL = "no response for a while, then connection reset"
    TRUNCATED = "forwarded, response body truncated"
    FLIPPED_BIT = "forwarded, one bit of the response body flipped"
    SLOW_DOWN = "503 SlowDown with Retry-After"
    INTERNAL_ERROR = "500 InternalError"
    REQUEST_TIMEOUT = "400 RequestTimeout"
    THROTTLED = "400 ThrottlingException"
    EXPIRED_TOKEN = "400 ExpiredToken"
    CLOCK_SKEW = "403 RequestTimeTooSkewed"
    DENIED = "403 AccessDenied"
    REDIRECT = "301 to the same address"
    TEMPORARY_REDIRECT = "307 to the same address"
    NO_CONTENT = "204 without forwarding"
    WEB_PAGE = "200 with a web page"
    XHTML_PAGE = "200 with a web page that is well-formed XML"
    NO_HEADERS = "200 without headers of an object"
    NOT_FOUND = "404 with a web page"
    TOO_LARGE = "413 with a web page"


REQUEST_FAULTS = (
    RequestFault.ERROR,
    RequestFault.LOST_RESPONSE,
    RequestFault.RESET,
    RequestFault.STALL,
    RequestFault.TRUNCATED,
)
"""Faults of any HTTP server."""

_PAGE = b"<html><body>Log in</body></html>"


def _refusal(status: bytes, code: bytes, *headers: bytes) -> bytes:
    body = b"<?xml version='1.0'?><Error><Code>%b</Code><Message>Injected</Message></Error>" % code
    return _answer(status, body, b"Content-Type: application/xml", *headers)


def _answer(status: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body), b"Connection: close"]
    return b"\r\n".join([*lines, b"", b""]) + body


_ANSWERS = {
    RequestFault.ERROR: _answer(b"503 Slow Down", b"", b"Retry-After: 0"),
    RequestFault.SLOW_DOWN: _refusal(b"503 Slow Down", b"SlowDown", b"Retry-After: 0"),
    RequestFault.INTERNAL_ERROR: _refusal(b"500 Internal Server Error", b"InternalError"),
    RequestFault.REQUEST_TIMEOUT: _refusal(b"400 Bad Request", b"RequestTimeout"),
    RequestFault.THROTTLED: _refusal(b"400 Bad Request", b"ThrottlingException"),
    RequestFault.EXPIRED_TOKEN: _refusal(b"400 Bad Request", b"ExpiredToken"),
    RequestFault.CLOCK_SKEW: _refusal(b"403 Forbidden", b"RequestTimeTooSkewed"),
    RequestFault.DENIED: _refusal(b"403 Forbidden", b"AccessDenied"),
    RequestFault.NO_CONTENT: b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    RequestFault.WEB_PAGE: _answer(b"200 OK", b"<!doctype html><p>Log in", b"Content-Type: text/html"),
    RequestFault.XHTML_PAGE: _answer(b"200 OK", _PAGE, b"Content-Type: application/xhtml+xml"),
    RequestFault.NO_HEADERS: _answer(b"200 OK", b""),
    RequestFault.NOT_FOUND: _answer(b"404 Not Found", _PAGE, b"Content-Type: text/html"),
    RequestFault.TOO_LARGE: _answer(b"413 Request Entity Too Large", _PAGE, b"Content-Type: text/html"),
}
"""Answers that are sent instead of forwarding."""

FaultPlan = Callable[[int], RequestFault]
"""Function from the number of a request, counted from 0, to its fault."""


def random_faults(share: float, seed: int) -> FaultPlan:
    """Return a plan in which a share of the requests (0 to 1) fails, each with a random fault."""

    def fault(number: int) -> RequestFault:
        rng = random.Random(f"{seed}-{number}")
        return rng.choice(REQUEST_FAULTS) if rng.random() < share else RequestFault.NONE

    return fault


def outage(number: int) -> RequestFault:
    """Reset every connection, as if the server were down."""
    return RequestFault.RESET


def healthy(number: int) -> RequestFault:
    """Forward every request."""
    return RequestFault.NONE


class FaultyProxy:
    """Proxy from a free loopback port to another, with faults according to `plan`; a context manager."""

    def __init__(self, upstream_port: int, plan: FaultPlan = healthy, stall_seconds: float = 2.0) -> None:
        self.plan = plan
        """Fault plan; may be replaced while the proxy runs."""
        self.counts: Counter[RequestFault] = Counter()
        """Number of requests by fault, `NONE` included."""
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
        """Stop listening."""
        # Closing alone does not wake the thread that waits in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def injected(self) -> int:
        """Number of requests that failed."""
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
                    self._respond(client, request)
            except OSError:
                _reset(client)

    def _respond(self, client: socket.socket, request: bytes) -> None:
        with self._lock:
            fault = self.plan(sum(self.counts.values()))
            self.counts[fault] += 1
        if fault in (RequestFault.REDIRECT, RequestFault.TEMPORARY_REDIRECT):
            method, path = request.split(b" ", 2)[:2]
            place = b"Location: http://127.0.0.1:%d%b" % (self.port, path)
            moved = _refusal(fault.value[:3].encode() + b" Moved", b"PermanentRedirect", place)
            client.sendall(_without_body(method, moved))
        elif fault in _ANSWERS:
            client.sendall(_without_body(request.split(b" ", 1)[0], _ANSWERS[fault]))
        elif fault is RequestFault.RESET:
            _reset(client)
        elif fault is RequestFault.STALL:
            time.sleep(self._stall_seconds)
            _reset(client)
        else:
            response = _forward(self._upstream, request)
            if fault is RequestFault.LOST_RESPONSE:
                _reset(client)
            elif fault is RequestFault.TRUNCATED:
                head, _, body = response.partition(b"\r\n\r\n")
                client.sendall(head + b"\r\n\r\n" + body[: len(body) // 2])
                _reset(client)
            elif fault is RequestFault.FLIPPED_BIT:
                client.sendall(_with_flipped_bit(response))
            else:
                client.sendall(response)


def _without_body(method: bytes, answer: bytes) -> bytes:
    """Return an answer without its body if it answers HEAD."""
    return answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == b"HEAD" else answer


def _with_flipped_bit(response: bytes) -> bytes:
    head, mark, body = response.partition(b"\r\n\r\n")
    middle = len(body) // 2
    flipped = bytes([body[middle] ^ 1]) if body else b""
    return head + mark + body[:middle] + flipped + body[middle + 1 :]


def _forward(port: int, request: bytes) -> bytes:
    """Send a request to the server and return its whole response; the server then closes the connection."""
    with socket.create_connection(("127.0.0.1", port), _TIMEOUT_SECONDS) as server:
        server.sendall(request)
        return b"".join(iter(lambda: server.recv(_BLOCK), b""))


def _read_request(client: socket.socket) -> bytes | None:
    """Return one request, changed to make the server close the connection, or None if the client sent none."""
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
            body += _receive(client)
    else:
        while len(body) < int(fields.get(b"content-length", b"0")):
            body += _receive(client)
    # Signatures cover neither of these headers.
    own = (b"connection", b"expect")
    kept = [line for line in lines if line.partition(b":")[0].strip().lower() not in own]
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""]) + body


def _receive(client: socket.socket) -> bytes:
    more = client.recv(_BLOCK)
    if not more:
        raise ConnectionResetError("the client closed the connection before the end of its request")
    return more


def _reset(client: socket.socket) -> None:
    """Reset the connection, as a crashing server does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
