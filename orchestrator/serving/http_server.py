"""The HTTP server: uvicorn in a thread, so that the main thread is free for signals and the registry."""

from __future__ import annotations

import errno
import socket
import threading
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette

from orchestrator.errors import ServiceError
from orchestrator.serving.http_protocol import HttpProtocol

MAX_HEAD_BYTES = 64 * 1024


class HttpServer:
    """Server that accepts requests during a `with` block; leaving the block drains it."""

    def __init__(self, app: Starlette, listening: socket.socket, drain_seconds: float) -> None:
        config = uvicorn.Config(
            app,
            http=HttpProtocol,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws="none",  # a request to change to WebSocket is a plain request
            lifespan="off",
            log_level="error",  # warnings are about requests that are not valid HTTP, which are answered
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(int(drain_seconds), 1),
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="http")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        try:
            self._thread.join()
        except KeyboardInterrupt:  # a second Ctrl-C skips draining
            self._server.force_exit = True
            self._thread.join()
            raise

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self._thread.is_alive()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises ServiceError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServiceError(
                f"--port {port}: is in use on {host}. Choose another, or stop the program that uses it."
            ) from error
        raise ServiceError(f"--host {host} --port {port}: cannot listen there ({error.strerror}).") from error
