"""A proxy before a real MLflow server that makes chosen requests fail as servers, stores and proxies do."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

Answer = tuple[int, bytes] | str | None
"""HTTP status and body instead of the server's answer; "reset"; "lost": forwarded, then reset; None: forwarded."""


def artifacts(answer: Answer) -> Callable[[str], Answer]:
    """Fail the requests to the artifact store only."""
    return lambda path: answer if "/mlflow-artifacts/" in path else None


class Gate:
    """Forwards requests from a free loopback port to a server; a context manager."""

    def __init__(self, upstream: str) -> None:
        self.fault: Callable[[str], Answer] = lambda path: None
        """Function from the path of a request to its fault; may be replaced at any time."""
        self.requests: list[str] = []
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def forward(self) -> None:
                body = self.body()
                gate.requests.append(self.path)
                answer = gate.fault(self.path)
                if answer != "reset" and not isinstance(answer, tuple):
                    connection = http.client.HTTPConnection(upstream.removeprefix("http://"), timeout=60)
                    skipped = ("transfer-encoding", "content-length")
                    headers = {
                        name: value for name, value in self.headers.items() if name.lower() not in skipped
                    }
                    connection.request(self.command, self.path, body, headers)
                    response = connection.getresponse()
                    content = response.status, response.read()
                    connection.close()
                if isinstance(answer, str):
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    return
                status, content_bytes = answer or content
                self.send_response(status)
                self.send_header("Content-Length", str(len(content_bytes)))
                self.end_headers()
                self.wfile.write(content_bytes)

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                content = b""
                while size := int(self.rfile.readline(), 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return content

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, address: object) -> None:
                pass  # clients of a reset connection

        self._server = Server(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
