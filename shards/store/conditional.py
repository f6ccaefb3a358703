"""Writes to S3 that happen only if nobody else was faster.

Servers with conditional requests (AWS, MinIO, Ceph and others) decide themselves which of two writers is first. Some
servers ignore the conditions, as `rclone serve s3` does, so each process asks once (`obeys_conditions`). Without them,
a lock file decides among the processes of one user on one machine. Among machines the last writer wins, and each writer
reads the object again after a pause: both can be told that they won only if a write takes longer than this pause.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from shards.errors import ShardsError, StoreError
from shards.store.files import locked, translate_os_errors

log = logging.getLogger(__name__)

SETTLE_SECONDS = 2.0
"""Pause before an object is read again on servers without conditional requests."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOCKS = 256


class ConditionFailedError(ShardsError):
    """A conditional request that the server refused, since the object is not as the condition says."""

    def __init__(self, message: str, retried: bool) -> None:
        super().__init__(message)
        self.retried = retried
        """Whether an earlier attempt failed, which may have changed the object."""


def obeys_conditions(put: Callable[..., bool], delete: Callable[[str], None]) -> bool:
    """Return whether the server obeys `If-None-Match`, by writing a small object and deleting it."""
    key = f".condition-{uuid.uuid4().hex}"
    put(key, b"written")
    try:
        return not put(key, b"created", IfNoneMatch="*")
    except StoreError as error:  # such as 501, not implemented
        log.info("If-None-Match is not understood: %s", error)
        return False
    finally:
        with suppress(StoreError):  # the right to write is enough
            delete(key)


@contextmanager
def machine_lock(bucket: str, key: str) -> Iterator[None]:
    """Hold the lock of an object among the processes of this user on this machine."""
    folder = Path(f"/tmp/mirage-object-locks-{os.getuid()}")  # not TMPDIR, which may differ among processes
    digest = hashlib.sha256(f"{bucket}/{key}".encode()).digest()
    with ExitStack() as stack:
        with translate_os_errors(str(folder), ""):
            folder.mkdir(mode=0o700, exist_ok=True)
            stack.enter_context(locked(folder / str(digest[0] % _LOCKS)))
        yield


def settle(endpoint: str) -> None:
    """Wait for the writes that other machines may have begun; a server on loopback serves this machine only."""
    if urlsplit(endpoint).hostname not in _LOOPBACK:
        time.sleep(SETTLE_SECONDS)
