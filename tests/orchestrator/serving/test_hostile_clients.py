"""Broken, slow, foreign and departing clients, at the level of sockets, against the real HTTP server without Ray."""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from orchestrator.errors import ServiceError
from orchestrator.serving import http_protocol, replica
from orchestrator.serving.page import samples
from orchestrator.serving.replica import RestoredImage
from orchestrator.serving.request_filter import foreign, route_path
from orchestrator.serving.served_model import ServedModel
from orchestrator.serving.settings import ServiceSettings
from tests.claims import wait_until
from tests.orchestrator.serving.inprocess import Running, image_bytes, running

IMAGE = image_bytes()


def post(*headers: str, length: int | None = None, host: str = "localhost") -> bytes:
    """The head of a POST /restore."""
    lines = ["POST /restore HTTP/1.1", f"Host: {host}", *headers]
    lines += [f"Content-Length: {len(IMAGE) if length is None else length}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def connected(service: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=20)


def answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the next answer of a connection."""
    reader = client.makefile("rb")
    line = reader.readline()
    assert line.startswith(b"HTTP/1.1 "), line
    headers = {}
    while (header := reader.readline()) not in (b"\r\n", b""):
        name, _, value = header.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return int(line.split()[1]), headers, reader.read(int(headers.get("content-length", 0)))


def ask(service: Running, request: bytes) -> tuple[int, dict[str, str], bytes]:
    with connected(service) as client:
        client.sendall(request)
        return answer(client)


def peers(port: int) -> set[tuple[str, int]]:
    """Return the clients of the connections that the server of this process has open."""
    connections = psutil.Process().net_connections("tcp")
    return {tuple(each.raddr) for each in connections if each.laddr.port == port and each.raddr}


def is_closed(client: socket.socket, more: bytes) -> bool:
    """Send `more` and return whether the server has closed the connection."""
    try:
        client.sendall(more)
        return client.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def assert_json_error(found: tuple[int, dict[str, str], bytes], status: int) -> str:
    code, headers, body = found
    assert code == status, body
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"
    content = json.loads(body)
    assert content["status"] == status
    return str(content["error"])


@pytest.fixture(autouse=True)
def no_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client does, nothing is logged: no traceback, no line per request."""
    with caplog.at_level(logging.WARNING):
        yield
    assert [
        record.getMessage() for record in caplog.records if record.name.startswith(("uvicorn", "asyncio"))
    ] == []


# --- broken requests -------------------------------------------------------------------------------------

BROKEN = {
    "not http": b"hello\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n",
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    "space in a name": b"GET / HTTP/1.1\r\nHost: localhost\r\nA b: c\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n",
    "zero byte": b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "negative length": post("X: y", length=-1),
    "two lengths": post("Content-Length: 5"),
    "folded length": b"POST /restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1x\r\n\r\n",
    "unknown coding": b"POST /restore HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    "two framings": post("Transfer-Encoding: chunked") + b"0\r\n\r\nGET /",
    "two framings, chunked first": b"POST /restore HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Length: 5\r\n\r\n0\r\n\r\nGET /",
    "bad chunk": b"POST /restore HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "long head": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 100_000,
    "long line": b"GET /" + b"x" * 100_000,
}


@pytest.mark.parametrize("request_bytes", BROKEN.values(), ids=BROKEN)
def test_a_broken_request_gets_the_error_in_json(service: Running, request_bytes: bytes) -> None:
    with connected(service) as client:
        client.sendall(request_bytes)
        found = answer(client)
        assert 400 <= found[0] < 502
        assert_json_error(found, found[0])
        assert client.recv(1) == b""  # and the connection is closed


@settings(max_examples=150, deadline=None)
@given(
    at=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    base=st.sampled_from(
        [post() + IMAGE[:300], b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", *BROKEN.values()]
    ),
    cut=st.integers(0, 400),
)
def test_a_mutated_request_gets_an_answer_in_json_or_none(
    service: Running, at: list[tuple[int, int]], base: bytes, cut: int
) -> None:
    mutated = bytearray(base[:500])
    for position, value in at:
        mutated[position % len(mutated)] = value
    with connected(service) as client:
        client.sendall(bytes(mutated[: max(cut, 1)]))
        client.shutdown(socket.SHUT_WR)
        reply = b""
        while data := client.recv(65536):
            reply += data
    for part in reply.split(b"HTTP/1.1 ")[1:]:
        head, _, body = part.partition(b"\r\n\r\n")
        assert b"nosniff" in head
        if not head.startswith((b"2", b"1")):
            assert json.loads(body)["status"] == int(head[:3])
    assert service.get("/health").status == 200


@pytest.mark.parametrize(
    "path", ["/", "/health", "/model", "/metrics", "/openapi.json", "/nowhere", "/restore"]
)
def test_every_answer_forbids_sniffing(service: Running, path: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "POST", "DELETE"):
        reply = service.request(method, path)
        assert reply.headers["x-content-type-options"] == "nosniff", method


def test_a_request_to_change_to_websocket_is_a_plain_request(service: Running) -> None:
    upgrade = "\r\n".join(["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]).encode()
    found = ask(service, b"GET /restore HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n\r\n")
    assert_json_error(found, 405)


def test_options_lists_the_methods_and_names_no_other_origin(service: Running) -> None:
    for path, allowed in (("/restore", "POST"), ("/health", "GET, HEAD")):
        reply = service.request("OPTIONS", path)
        assert (reply.status, reply.body) == (204, b"")
        assert set(reply.headers["allow"].split(", ")) == set(allowed.split(", "))
        assert reply.headers["access-control-allow-origin"] is None


@pytest.mark.parametrize(
    "value", ["bytes=5-2", "bytes=a-b", "x", "bytes=9999999999999999999999-", "bytes=" + "0-1," * 5000]
)
def test_no_range_is_answered_with_text(service: Running, value: str) -> None:
    for path in ("/", f"/samples/{samples()[0]['file']}", "/samples/none.jpg", "/health"):
        reply = service.request("GET", path, headers={"Range": value})
        assert reply.status in (200, 404)
        assert reply.status == 200 or reply.json()["status"] == 404


@pytest.mark.parametrize("coding", ["gzip", "deflate, gzip", "br", "\xe9"])
def test_a_compressed_body_is_named(service: Running, coding: str) -> None:
    reply = service.request("POST", "/restore", IMAGE, {"Content-Encoding": coding})
    assert reply.status == 415
    assert "Content-Encoding" in reply.json()["error"]
    assert service.request("POST", "/restore", IMAGE, {"Content-Encoding": "identity"}).status == 200


def test_every_one_of_several_origins_must_be_this_service(service: Running) -> None:
    request = post("Origin: http://localhost", "Origin: http://evil.example") + IMAGE
    assert "evil.example" in assert_json_error(ask(service, request), 403)


def test_a_form_without_its_boundary_is_named(service: Running) -> None:
    reply = service.restore(IMAGE, content_type="multipart/form-data")
    assert reply.status == 400
    assert "boundary" in reply.json()["error"]


def test_an_announced_body_that_is_too_large_is_refused_before_it_is_asked_for(service: Running) -> None:
    found = ask(service, post("Expect: 100-continue", length=200_001))
    assert "the limit is 200,000" in assert_json_error(found, 413)
    with connected(service) as client:
        client.sendall(post("Expect: 100-continue"))
        assert answer(client)[0] == 100
        client.sendall(IMAGE)
        assert answer(client)[0] == 200


# --- slow clients ----------------------------------------------------------------------------------------


def test_clients_that_do_not_send_their_image_take_no_place_in_the_queue(model: ServedModel) -> None:
    with running(model, max_in_flight=2, upload_window_seconds=0.5) as service, ExitStack() as slow:
        clients = [slow.enter_context(connected(service)) for _ in range(20)]
        for client in clients:
            client.sendall(post() + IMAGE[:3])
        assert [service.restore(IMAGE).status for _ in range(3)] == [200, 200, 200]
        assert service.get("/health").json()["in_flight"] == 0
        for client in clients:
            assert "4096 bytes per second" in assert_json_error(answer(client), 408)
        assert service.service.uploads.held == 0


def test_an_upload_at_the_least_rate_is_waited_for(model: ServedModel) -> None:
    with running(model, upload_rate=1000, upload_window_seconds=0.3) as service, connected(service) as client:
        client.sendall(post())
        for at in range(0, len(IMAGE), 600):
            client.sendall(IMAGE[at : at + 600])
            time.sleep(0.1)  # the client's rate is what is tested
        assert answer(client)[0] == 200


def test_uploads_together_hold_no_more_bytes_than_the_requests_in_flight_may(model: ServedModel) -> None:
    with running(model, max_in_flight=2, max_bytes=10_000) as service, ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(connected(service))
            client.sendall(post(length=10_000) + bytes(9_999))
        wait_until(lambda: service.service.uploads.held == 19_998, "both images are nearly there")
        reply = service.restore(IMAGE)
        assert reply.status == 429
        assert int(reply.headers["retry-after"]) >= 1
        stack.close()
        wait_until(lambda: service.service.uploads.held == 0, "their bytes are free")
        assert service.restore(IMAGE).status == 200


def test_a_head_that_does_not_arrive_in_time_is_refused(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.2)
    with connected(service) as first, connected(service) as silent:
        first.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert "within 0.2 s" in assert_json_error(answer(first), 408)
        assert first.recv(1) == b""
        assert silent.recv(1) == b""
    with connected(service) as kept:
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer(kept)[0] == 200
        kept.sendall(b"GET /health")  # the second head of a connection too
        assert_json_error(answer(kept), 408)


def test_the_rest_of_an_answered_request_is_not_waited_for(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "DISCARD_SECONDS", 0.2)
    with connected(service) as client:
        client.sendall(
            b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
        )
        assert_json_error(answer(client), 404)
        wait_until(lambda: is_closed(client, b"1\r\nx\r\n"), "the connection is closed", every=0.01)


def test_one_connection_too_many_ends_the_one_that_sends_for_the_longest_time(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "MAX_CONNECTIONS", 5)
    with running(model) as service, ExitStack() as stack:
        slow = [stack.enter_context(connected(service)) for _ in range(5)]
        for client in slow:
            client.sendall(b"GET /hea")
        wait_until(lambda: len(peers(service.port)) == 5, "all have been accepted")
        assert service.get("/health").status == 200
        assert_json_error(answer(slow[0]), 503)


def test_a_client_that_does_not_read_its_answer_is_left(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "STALL_SECONDS", 0.2)

    async def restore(data: bytes, model: ServedModel) -> RestoredImage:
        parts = dict.fromkeys(("decode", "wait", "restore", "encode"), 0.0)
        return RestoredImage(bytes(20_000_000), "PNG", parts, 1)  # more than the buffers of the system hold

    with running(model) as service, closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", service.port))
        monkeypatch.setattr(service.backend, "restore", restore)
        client.sendall(post() + IMAGE)
        wait_until(lambda: b'status="200"' in service.get("/metrics").body, "the answer is there")
        own = client.getsockname()
        wait_until(lambda: own not in peers(service.port), "the connection is closed")


# --- clients that leave ----------------------------------------------------------------------------------


def abort(client: socket.socket) -> None:
    """Close with a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("leave", [socket.socket.close, abort], ids=["close", "reset"])
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /",
        post(),
        post() + IMAGE[:100],
        post() + IMAGE,
        post("Expect: 100-continue"),
        post() + IMAGE + b"\xff broken pipelined request\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20,
        b"POST /restore HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz",
    ],
    ids=[
        "at once",
        "head",
        "before the body",
        "body",
        "before the answer",
        "continue",
        "pipelined",
        "many",
        "chunk",
    ],
)
def test_a_client_that_leaves_frees_everything_and_logs_nothing(
    service: Running, sent: bytes, leave: object
) -> None:
    for _ in range(3):
        client = connected(service)
        client.sendall(sent)
        leave(client)  # type: ignore[operator]
    wait_until(
        lambda: service.get("/health").json()["in_flight"] == 0, "no request is in flight", every=0.005
    )
    wait_until(lambda: service.service.uploads.held == 0, "no image is in memory", every=0.005)
    assert service.restore(IMAGE).status == 200


def test_the_work_of_clients_that_left_never_starts(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, begun, go_on = replica.decode, [], threading.Event()

    def slow_decode(*arguments: Any) -> Any:
        begun.append(1)
        go_on.wait(30)
        return decode(*arguments)

    monkeypatch.setattr(replica, "MIN_PIXELS", 0)
    monkeypatch.setattr(replica, "decode", slow_decode)
    with running(model, max_pixels=40 * 24) as service:
        clients = [connected(service) for _ in range(8)]
        for client in clients:
            client.sendall(post() + IMAGE)
        wait_until(lambda: service.get("/health").json()["in_flight"] == 8, "all are in flight")
        wait_until(lambda: len(begun) == 2, "two are being decoded")
        for client in clients:
            client.close()
        wait_until(lambda: service.get("/health").json()["in_flight"] == 0, "all have left")
        go_on.set()
        assert service.restore(IMAGE).status == 200
    assert len(begun) == 3


# --- pages of other sites ------------------------------------------------------------------------------------

FOREIGN = {
    "rebinding": ("Host: evil.example",),
    "rebinding with port": ("Host: evil.example:8000",),
    "like loopback": ("Host: localhost.evil.example",),
    "like an address": ("Host: 127.0.0.1.evil.example",),
    "not a name": ("Host: local host",),
    "no host": ("Host:",),
    "other site": ("Host: localhost", "Origin: http://evil.example"),
    "other port": ("Host: localhost:8000", "Origin: http://localhost:3000"),
    "sandbox": ("Host: localhost", "Origin: null"),
    "extension": ("Host: localhost", "Origin: chrome-extension://abc"),
    "odd": ("Host: localhost", "Origin: http://localhost:99999999"),
    "both": ("Host: evil.example", "Origin: http://evil.example"),
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_a_page_of_another_site_neither_restores_nor_reads(
    service: Running, headers: tuple[str, ...]
) -> None:
    joined = "\r\n".join(headers).encode()
    for head in (
        b"POST /restore",
        b"GET /health",
        b"GET /",
        b"GET /model",
        b"GET /metrics",
        b"OPTIONS /restore",
    ):
        found = ask(service, head + b" HTTP/1.1\r\n" + joined + b"\r\nContent-Length: 0\r\n\r\n")
        assert_json_error(found, 403)
    assert service.get("/health").json()["in_flight"] == 0


def test_the_services_own_page_and_programs_are_answered(service: Running) -> None:
    port = service.port
    for host in (
        f"127.0.0.1:{port}",
        f"localhost:{port}",
        "[::1]:80",
        "192.0.2.7",
        socket.gethostname(),
        "app.localhost",
        "mirage-serve",
        "mirage.default.svc.cluster.local",
    ):
        for origin in ("", f"Origin: http://{host}", f"Origin: http://{host.upper()}"):
            found = ask(
                service,
                f"GET /health HTTP/1.1\r\nHost: {host}\r\n{origin}\r\n\r\n".encode().replace(
                    b"\r\n\r\n\r\n", b"\r\n\r\n"
                ),
            )
            assert found[0] == 200, (host, origin, found)
    assert ask(service, b"GET /health HTTP/1.0\r\n\r\n")[0] == 200
    assert ask(service, b"GET /health HTTP/1.0\r\nOrigin: http://evil.example\r\n\r\n")[0] == 403


def test_a_proxy_may_use_a_name_that_is_allowed(model: ServedModel) -> None:
    with running(model, allow_hosts=("photos.example.org",)) as service:
        for headers in (
            {"Host": "photos.example.org", "Origin": "https://photos.example.org"},
            {"Host": "127.0.0.1:8000", "Origin": "https://photos.example.org"},
            {"Host": "127.0.0.1:8000", "Origin": "https://a.b", "X-Forwarded-Host": "a.b"},
        ):
            assert service.request("POST", "/restore", IMAGE, headers).status == 200
        assert service.request("GET", "/health", headers={"Host": "example.org"}).status == 403


def test_with_a_token_any_name_is_allowed_since_no_page_has_it(model: ServedModel) -> None:
    with running(model, token="secret") as service:
        headers = {"Host": "photos.example.org", "Origin": "https://photos.example.org"}
        assert service.request("POST", "/restore", IMAGE, headers).status == 401
        headers["Authorization"] = "Bearer secret"
        assert service.request("POST", "/restore", IMAGE, headers).status == 200


def test_a_wrong_name_to_allow_is_one_clear_error() -> None:
    for wrong in ("http://photos.example.org", "a:80", "", "*"):
        with pytest.raises(ServiceError, match="--allow-host"):
            ServiceSettings(allow_hosts=(wrong,))


@given(
    name=st.from_regex(r"[a-z]{1,8}(\.[a-z]{2,8}){0,3}\.(com|org|example|dev)", fullmatch=True),
    port=st.one_of(st.just(""), st.integers(0, 65535).map(lambda port: f":{port}")),
    dot=st.sampled_from(["", "."]),
)
def test_no_other_name_is_taken_for_this_service(name: str, port: str, dot: str) -> None:
    assert foreign(Headers({"host": f"{name}{dot}{port}"}), frozenset())
    assert foreign(Headers({"host": "localhost:8000", "origin": f"http://{name}{port}"}), frozenset())
    assert not foreign(Headers({"host": f"{name}{port}"}), frozenset({name}))


# --- behind a proxy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "path", "prefix", "found"),
    [
        ("", "/", "", ("", "/")),
        ("", "/health", "", ("", "/health")),
        ("", "/health/", "", ("", "/health")),
        ("/m", "/m/health/", "", ("/m", "/health")),
        ("/m", "/m", "", ("/m", "")),
        ("/m", "/m/", "", ("/m", "/")),
        ("/m", "/health", "", ("/m", "/health")),
        ("", "/m/health", "/m", ("/m", "/health")),
        ("", "/m", "/m/", ("/m", "")),
        ("", "/health", "/m", ("", "/health")),
        ("", "/mm/health", "/m", ("", "/mm/health")),
        ("", "//evil.example/x", "//evil.example", ("", "//evil.example/x")),
    ],
)
def test_the_base_path_is_the_servers_or_the_one_a_proxy_names(
    root: str, path: str, prefix: str, found: tuple[str, str]
) -> None:
    assert route_path({"type": "http", "root_path": root, "path": path}, prefix) == found


def test_below_a_base_path_everything_answers_and_a_redirect_keeps_it(service: Running) -> None:
    base = {"X-Forwarded-Prefix": "/apps/mirage"}
    for path in ("/apps/mirage/", "/apps/mirage/health", "/apps/mirage/health/", "/health/", "/"):
        assert service.request("GET", path, headers=base).status == 200
    reply = service.request("GET", "/apps/mirage", headers=base)
    assert (reply.status, reply.headers["location"]) == (307, "mirage/")
    assert service.request("POST", "/apps/mirage/restore/", IMAGE, base).status == 200


def test_many_good_clients_are_answered_while_bad_ones_come(service: Running) -> None:
    bad = [*BROKEN.values(), post() + IMAGE[:50], b"GET / HT"]
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        for request in bad * 3:
            client = stack.enter_context(connected(service))
            client.sendall(request)
        replies = list(pool.map(service.restore, [IMAGE] * 8))
    assert [reply.status for reply in replies] == [200] * 8
