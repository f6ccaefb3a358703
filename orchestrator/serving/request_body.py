"""Read the image of a request: a raw body or the first file of a multipart form, up to a limit."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

_FORM = re.compile(r'multipart/form-data\s*;.*?boundary="?([^";]{1,70})"?', re.IGNORECASE)
_FORM_OVERHEAD = 16 * 1024
"""Bytes of a form besides its file."""


class BodyError(Exception):
    """A body without a usable image; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(
    chunks: AsyncIterator[bytes], declared: str | None, content_type: str, max_bytes: int
) -> bytes:
    """Return the image's bytes, holding at most `max_bytes` and a form's overhead. Raises BodyError.

    `declared` is the Content-Length header.
    """
    boundary = _FORM.match(content_type)
    allowed = max_bytes + (_FORM_OVERHEAD if boundary else 0)
    if declared is not None and declared.isdigit() and int(declared) > allowed:
        await _discard(chunks, allowed)
        raise _too_large(int(declared), max_bytes)
    parts: list[bytes] = []
    length = 0
    async for chunk in chunks:
        length += len(chunk)
        if length > allowed:
            await _discard(chunks, allowed)
            raise _too_large(length, max_bytes)
        parts.append(chunk)
    body = b"".join(parts)
    image = first_file(body, boundary.group(1).encode()) if boundary else body
    if len(image) > max_bytes:
        raise _too_large(len(image), max_bytes)
    if not image:
        raise BodyError(
            400, "The request has no image. Send its bytes as the body, or as the file of a form."
        )
    return image


def first_file(body: bytes, boundary: bytes) -> bytes:
    """Return the first part of a multipart form that has a file name. Raises BodyError."""
    delimiter = b"--" + boundary
    at = body.find(delimiter)
    while at >= 0:
        head_end = body.find(b"\r\n\r\n", at)
        following = body.find(b"\r\n" + delimiter, at + len(delimiter))
        if head_end < 0 or following < 0:
            break
        if re.search(rb"filename\*?=", body[at:head_end], re.IGNORECASE):
            return body[head_end + 4 : following]
        at = following + 2
    raise BodyError(400, "The form has no file, or is incomplete. Send one part with a file name.")


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
