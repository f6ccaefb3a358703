"""The image inside a request: a raw body or the first file of a multipart form, never more than allowed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

_FORM = re.compile(r'multipart/form-data\s*;.*?boundary="?([^";]{1,70})"?', re.IGNORECASE)
_FORM_OVERHEAD = 16 * 1024
"""Bytes that a form may have around its file."""


class BodyError(Exception):
    """A body that cannot be taken; `status` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(
    chunks: AsyncIterator[bytes], declared: str | None, content_type: str, max_bytes: int
) -> bytes:
    """Return the image's bytes. Raises BodyError; at most `max_bytes` and a form's overhead are ever held."""
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
        raise BodyError(400, "The request holds no image. Send its bytes as the body, or as a form's file.")
    return image


def first_file(body: bytes, boundary: bytes) -> bytes:
    """Return the first part of a multipart form that has a file name. Raises BodyError."""
    mark = b"--" + boundary
    at = body.find(mark)
    while at >= 0:
        head_end = body.find(b"\r\n\r\n", at)
        following = body.find(b"\r\n" + mark, at + len(mark))
        if head_end < 0 or following < 0:
            break
        if re.search(rb"filename\*?=", body[at:head_end], re.IGNORECASE):
            return body[head_end + 4 : following]
        at = following + 2
    raise BodyError(400, "The form holds no file, or is cut short. Send one part with a file name.")


async def _discard(chunks: AsyncIterator[bytes], limit: int) -> None:
    """Read on for a while: a client that is still sending would not see the answer."""
    length = 0
    async for chunk in chunks:
        length += len(chunk)
        if length > limit:
            return


def _too_large(length: int, max_bytes: int) -> BodyError:
    return BodyError(
        413,
        f"The image has at least {length:,} bytes; this service takes up to {max_bytes:,}. "
        "Save it with stronger compression, or smaller.",
    )
