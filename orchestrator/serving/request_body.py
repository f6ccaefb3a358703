"""Read the image of a request: a raw body or the first file of a multipart form, up to a limit."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from itertools import pairwise

_FORM = re.compile(r'multipart/form-data\s*;.*?boundary="?([^";]{1,70})"?', re.IGNORECASE)
_ANY_FORM = re.compile(r"multipart/", re.IGNORECASE)
_FORM_OVERHEAD = 16 * 1024
_MAX_PARTS = 100
"""Bytes of a form besides its file."""


class BodyError(Exception):
    """A body without a usable image; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(
    chunks: AsyncIterator[bytes],
    declared: str | None,
    content_type: str,
    max_bytes: int,
    *,
    waits: bool = False,
) -> bytes:
    """Return the image's bytes, holding at most `max_bytes` and a form's overhead. Raises BodyError.

    `declared` is the Content-Length header. `waits`: the client sends nothing before it is asked to.
    """
    boundary = _FORM.match(content_type)
    allowed = max_bytes + (_FORM_OVERHEAD if boundary else 0)
    if declared is not None and re.fullmatch(r"[0-9]{1,20}", declared) and int(declared) > allowed:
        if not waits:
            await _discard(chunks, allowed)
        raise _too_large(int(declared), max_bytes)
    if boundary is None and _ANY_FORM.match(content_type):
        if not waits:
            await _discard(chunks, allowed)
        raise BodyError(400, "The form's Content-Type is not multipart/form-data with a boundary.")
    parts: list[bytes] = []
    length = 0
    async for chunk in chunks:
        length += len(chunk)
        if length > allowed:
            await _discard(chunks, allowed)
            raise _too_large(length, max_bytes)
        parts.append(chunk)
    body = b"".join(parts)
    image = first_file(body, boundary.group(1).encode("latin-1", "replace")) if boundary else body
    if len(image) > max_bytes:
        raise _too_large(len(image), max_bytes)
    if not image:
        raise BodyError(
            400, "The request has no image. Send its bytes as the body, or as the file of a form."
        )
    return image


def first_file(body: bytes, boundary: bytes) -> bytes:
    """Return the first file of a multipart form that is not empty, b"" if all are. Raises BodyError."""
    delimiters = re.finditer(rb"(?:\A|\r\n)--" + re.escape(boundary) + rb"(?:--)?[ \t]*(?=\r\n|\Z)", body)
    found = None
    for number, (start, end) in enumerate(pairwise(delimiters), 1):
        if number > _MAX_PARTS:  # each costs time in which nobody else is answered
            raise BodyError(400, f"The form has more than {_MAX_PARTS} parts. Send one image.")
        head, _, content = body[start.end() + 2 : end.start()].partition(b"\r\n\r\n")
        if _names_file(head):
            found = content
            if content:  # browsers send an empty file for an input that was left empty
                break
    if found is None:
        raise BodyError(400, "The form has no file, or is incomplete. Send one part with a file name.")
    return found


def _names_file(head: bytes) -> bool:
    """Return whether the head of a part has a file name; quoted values may hold anything."""
    if len(head) > _FORM_OVERHEAD:
        return False
    return re.search(rb";\s*filename\*?\s*=", re.sub(rb'"[^"]*"', b'""', head), re.IGNORECASE) is not None


async def paced(
    chunks: AsyncIterator[bytes], bytes_per_second: float, window_seconds: float, seconds: float
) -> AsyncIterator[bytes]:
    """Yield `chunks` as long as they arrive at this rate, measured over a window, and within `seconds` in all.

    Raises BodyError.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    received, window_end = 0, min(loop.time() + window_seconds, end)
    while True:
        try:
            async with asyncio.timeout_at(window_end):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            if window_end == end:
                raise BodyError(408, f"The image did not arrive within {seconds:g} s.") from None
            raise BodyError(
                408, f"The image arrives at less than {bytes_per_second:g} bytes per second. Send it again."
            ) from None
        yield chunk
        received += len(chunk)
        if received >= bytes_per_second * window_seconds:
            received, window_end = 0, min(loop.time() + window_seconds, end)


async def _discard(chunks: AsyncIterator[bytes], limit: int) -> None:
    """Read up to `limit` more bytes: most clients read the response only after they have sent all."""
    length = 0
    async for chunk in chunks:
        length += len(chunk)
        if length > limit:
            return


def _too_large(length: int, max_bytes: int) -> BodyError:
    return BodyError(
        413,
        f"The image has at least {length:,} bytes; the limit is {max_bytes:,}. "
        "Compress it more, or make it smaller.",
    )
