"""A real S3 server with conditional writes: a proxy that obeys `If-None-Match` of PUT and POST.

The small servers that can be installed here ignore these headers; AWS, MinIO and Ceph obey them as this proxy does.
"""

from __future__ import annotations

import http.client
import http.server
import threading
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

_REFUSED = (
    b"<Error><Code>PreconditionFailed</Code><Message>At least one condition did not hold</Message></Error>"
)


class ConditionalServer:
    """A proxy on a free loopback port before the S3 server at `upstream`; a context manager."""

    def __init__(self, upstream: str) -> None:
        lock = threading.Lock()
        config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1})
        client = boto3.client("s3", endpoint_url=upstream, region_name="us-east-1", config=config)

        def exists(path: str) -> bool:
            bucket, _, key = urlsplit(path).path.lstrip("/").partition("/")
            try:
                client.head_object(Bucket=bucket, Key=key)
            except ClientError:
                return False
            return True

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.command not in ("PUT", "POST") or "If-None-Match" not in self.headers:
                    self._forward(body)
                    return
                with lock:
                    if exists(self.path):
                        self._answer(412, {"Content-Type": "application/xml"}, _REFUSED)
                    else:
                        self._forward(body)

            def _forward(self, body: bytes) -> None:
                connection = http.client.HTTPConnection(urlsplit(upstream).netloc)
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                data = answer.read()
                self._answer(answer.status, dict(answer.getheaders()), data)
                connection.close()

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in (
                        "content-length",
                        "transfer-encoding",
                        "connection",
                        "date",
                        "server",
                    ):
                        self.send_header(name, value)
                if self.command == "PUT":
                    self.send_header("Content-Type", "text/html")  # as moto and others do, without a body
                length = headers.get("content-length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        for method in ("GET", "PUT", "HEAD", "DELETE", "POST"):
            setattr(Handler, f"do_{method}", Handler._serve)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02])
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ConditionalServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
