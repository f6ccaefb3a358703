"""Refuse requests that a web page of another site makes a browser send; nothing else of the service relies on it.

A page that its user visits can make the browser send requests to loopback and to the local network. Two headers that
no page can choose tell: `Origin` is the site of the page, and `Host` is the name that the page's address has, also when
that name's address was changed to ours after the page had loaded (DNS rebinding). With a bearer token neither matters,
because no page of another site has the token.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NOSNIFF = {"X-Content-Type-Options": "nosniff"}
"""In every answer: a browser must not take a restored photograph or an error for a page."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_LOCAL_DOMAINS = ("localhost", "local", "internal", "home.arpa")
"""No public name server answers for these, nor for names without a dot, so no stranger can make them lead here."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


class RequestFilter:
    """ASGI middleware that refuses foreign pages, adds NOSNIFF, and finds the route below a proxy's base path.

    names: host names of the service, besides addresses, local names and this machine's own; None allows all requests.
    open_paths: paths that have their own proof of who sends.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str] | None, open_paths: Iterable[str] = ()) -> None:
        self._app = app
        self._names = names
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 or a redirect to the page, or call the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower().encode(), value.encode()) for name, value in NOSNIFF.items()]
                present = {name.lower() for name, _ in message.get("headers", ())}
                added = [each for each in headers if each[0] not in present]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        headers = Headers(scope=scope)
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy that believes the other one would take the rest of this body for the next request.
            message = "The request has both Content-Length and Transfer-Encoding. Send one of them."
            await _answer(send_with_header, 400, message, (b"connection", b"close"))
            return
        root, path = route_path(scope, headers.get("x-forwarded-prefix", ""))
        if not path:  # the page's addresses are relative to the base path with its slash
            location = f"{root.rpartition('/')[2]}/"
            await _answer(
                send_with_header, 307, f"The page is at {location}", (b"location", location.encode())
            )
            return
        if (
            self._names is not None
            and path not in self._open_paths
            and (reason := foreign(headers, self._names))
        ):
            await _answer(send_with_header, 403, reason)
            return
        await self._app({**scope, "root_path": root, "path": root + path}, receive, send_with_header)


def route_path(scope: Scope, forwarded_prefix: str) -> tuple[str, str]:
    """Return the base path of a request and the rest, without a slash at its end; "" is the base path itself.

    The base path is that of the server (Serve's `route_prefix`), or the one that a proxy names and does not remove.
    """
    root, path = str(scope.get("root_path", "")), str(scope["path"])
    prefix = forwarded_prefix.rstrip("/")
    if not root and re.fullmatch(r"(/[\w.~-]+)+", prefix) and f"{path}/".startswith(f"{prefix}/"):
        root = prefix
    if root and f"{path}/".startswith(f"{root}/"):
        path = path[len(root) :]
        if not path:
            return root, ""
    return root, path.rstrip("/") or "/"


def own_names() -> frozenset[str]:
    """Return the name of this machine."""
    return frozenset({socket.gethostname().lower()})


def foreign(headers: Headers, names: frozenset[str]) -> str:
    """Return why a request may come from a page of another site, or "" if it does not.

    names: those of RequestFilter. An address cannot be made to lead elsewhere, so it is always a name of the service.
    """
    host = headers.get("host")
    if host is not None and not is_own(host, names | own_names()):
        return (
            f"Host {host[:200]!r} is not a name of this service. If it is, allow it: "
            "mirage serve --allow-host NAME (the application's argument: allow_host)."
        )
    forwarded = headers.get("x-forwarded-host", "")  # no page can set it without asking first
    for origin in headers.getlist("origin"):
        if not (
            same_origin(origin, host or "") or same_origin(origin, forwarded) or host_of(origin) in names
        ):
            return (
                f"Origin {origin[:200]!r} is another site, and pages of other sites may not use this service. Behind "
                "a proxy, let it pass the Host header on, or name the site's host: mirage serve --allow-host NAME."
            )
    return ""


def is_own(host: str, names: frozenset[str]) -> bool:
    """Return whether a Host header is an address, a local name, or one of `names`; its port may be any."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1].strip("[]").lower().removesuffix(".")
    return "." not in name or _is_address(name) or _is_below(name, _LOCAL_DOMAINS) or name in names


def same_origin(origin: str, host: str) -> bool:
    """Return whether an Origin header has the name and port of a Host header, whatever its scheme."""
    try:
        parts, match = urlsplit(origin), _HOST.fullmatch(host)
        default = _DEFAULT_PORTS[parts.scheme]
        port = parts.port or default
    except (ValueError, KeyError):  # also "null", which browsers send for files and sandboxed frames
        return False
    if match is None:
        return False
    return parts.hostname == match[1].strip("[]").lower() and port == int(match[2] or default)


def host_of(origin: str) -> str:
    """Return the host name of an Origin header, "" if it has none."""
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


def _is_below(name: str, domains: Iterable[str]) -> bool:
    return any(name.endswith(f".{domain}") for domain in domains)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _answer(send: Send, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"status": status, "error": message}).encode()
    length = (b"content-length", str(len(body)).encode())
    start = [(b"content-type", b"application/json"), length, *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
