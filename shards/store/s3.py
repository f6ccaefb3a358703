"""A store in an S3 bucket. Only this module and `retry` (for its exceptions) import boto3."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from shards.errors import MissingObjectError, StoreError, UnreachableStoreError
from shards.store import conditional, files, pointer, retry, write_once
from shards.store.conditional import ConditionFailedError
from shards.store.files import blocks, translate_os_errors, write_atomically
from shards.store.protocol import ObjectStat

if TYPE_CHECKING:
    from botocore.client import BaseClient

log = logging.getLogger(__name__)
T = TypeVar("T")

PART = 16 << 20
"""Size in bytes above which an object is uploaded in parts of this size, four at a time."""

_OBEYS_CONDITIONS: dict[tuple[int, str, str], bool] = {}
"""Whether the server of a process, an endpoint and a bucket obeys conditional requests."""


class S3Store:
    """Objects of one bucket under one prefix.

    Credentials, region and endpoint come from the standard AWS variables and files (`AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, ...). The client is created on first use and again after a
    fork, so a store can be pickled and sent to other processes.
    """

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self.bucket, self.prefix = bucket, prefix
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._lock = threading.Lock()
        self._client: tuple[int, BaseClient] | None = None

    def __reduce__(self) -> tuple[type[S3Store], tuple[str, str]]:
        return S3Store, (self.bucket, self.prefix)

    def read(self, key: str) -> bytes:
        """Return all bytes of an object."""
        return self._attempt(key, lambda client: self._body(client, key))[1]

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes of an object from `start` on."""
        if length == 0:
            return b""  # HTTP has no empty range
        span = f"bytes={start}-{start + length - 1}"
        _, data = self._attempt(key, lambda client: self._body(client, key, Range=span))
        return write_once.check_length(data, length, key, self.uri)

    def write(self, key: str, data: bytes) -> None:
        """Write an object once."""
        if self._create(key, lambda: io.BytesIO(data), len(data)):
            return
        if self._size(key) != len(data) or self.read(key) != data:
            raise write_once.conflict(key, self.uri)

    def write_file(self, key: str, path: Path) -> None:
        """Write an object once from a file, in parts when it is large."""
        length = path.stat().st_size
        if self._create(key, lambda: path.open("rb"), length):
            return
        with path.open("rb") as source:
            starts = range(0, length, files.BLOCK)
            remote = (self.read_range(key, start, min(files.BLOCK, length - start)) for start in starts)
            if length != self._size(key) or not write_once.equal_blocks(blocks(source), remote):
                raise write_once.conflict(key, self.uri)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object if there is none; return whether this call wrote it."""
        return self._create(key, lambda: io.BytesIO(data), len(data)) and self._has_settled(key, data)

    def replace(self, key: str, old: bytes, new: bytes) -> bool:
        """Replace an object if it holds `old`; return whether this call did."""
        if self._obeys_conditions():
            return self._replace(key, old, new)
        with conditional.machine_lock(self.bucket, self._full(key)):
            return self._replace(key, old, new) and self._has_settled(key, new)

    def read_pointer(self, key: str) -> bytes | None:
        """Return the content of a mutable pointer."""
        return pointer.read_pointer(self, key)

    def write_pointer(self, key: str, data: bytes) -> None:
        """Replace the content of a pointer."""
        self._put(key, pointer.seal(data))

    def exists(self, key: str) -> bool:
        """Return whether an object exists."""
        return self._size(key) is not None

    def stat(self, key: str) -> ObjectStat:
        """Return size and age of an object."""
        head = self._attempt(key, lambda client: client.head_object(Bucket=self.bucket, Key=self._full(key)))
        return ObjectStat(int(head["ContentLength"]), head["LastModified"].timestamp())

    def list(self, prefix: str = "") -> list[str]:
        """Return the sorted keys that start with `prefix`."""

        def pages(client: Any) -> list[str]:
            found = client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._full(prefix)
            )
            return [item["Key"] for page in found for item in page.get("Contents", [])]

        keys = self._attempt(prefix, pages)
        skip = len(self.prefix) + 1 if self.prefix else 0
        return sorted(key[skip:] for key in keys)

    def unfinished(self) -> Sequence[str]:
        """Return nothing: objects appear whole, and parts of killed uploads expire by the bucket's own rule."""
        return []

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._attempt(key, lambda client: client.delete_object(Bucket=self.bucket, Key=self._full(key)))

    def download(self, key: str, path: Path) -> None:
        """Copy an object to a local file."""

        def fetch(client: Any) -> None:
            answer = client.get_object(Bucket=self.bucket, Key=self._full(key))
            expected = int(answer["ContentLength"])

            def fill(file: IO[bytes]) -> None:
                size = sum(map(file.write, answer["Body"].iter_chunks(files.BLOCK)))
                if size != expected:
                    raise retry.IncompleteError(f"{size} of {expected} bytes arrived")

            write_atomically(path, fill)

        with translate_os_errors(str(path.parent), path.name):
            self._attempt(key, fetch)

    def reconnect(self) -> None:
        """Close all connections; the next request opens a new one."""
        self._connection().close()

    def ensure_bucket(self) -> None:
        """Create the bucket if it does not exist."""

        def make(client: Any) -> None:
            names = [bucket["Name"] for bucket in client.list_buckets().get("Buckets", [])]
            if self.bucket not in names:
                client.create_bucket(Bucket=self.bucket)
                log.info("created bucket %s", self.bucket)

        try:
            self._attempt("", make)
        except UnreachableStoreError:
            raise
        except StoreError:
            # The account may lack the right to create buckets, or another process was faster.
            self._attempt("", lambda client: client.list_objects_v2(Bucket=self.bucket, MaxKeys=1))

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _body(self, client: Any, key: str, **span: str) -> tuple[dict[str, Any], bytes]:
        answer = client.get_object(Bucket=self.bucket, Key=self._full(key), **span)
        data: bytes = answer["Body"].read()
        if len(data) != answer["ContentLength"]:
            raise retry.IncompleteError(f"{len(data)} of {answer['ContentLength']} bytes arrived")
        return answer, data

    def _create(self, key: str, source: Callable[[], IO[bytes]], size: int) -> bool:
        """Upload an object if there is none; return whether this call did."""
        if self._size(key) is not None:
            return False
        if self._obeys_conditions():
            return self._send(key, source, size, IfNoneMatch="*")
        with conditional.machine_lock(self.bucket, self._full(key)):
            return self._size(key) is None and self._send(key, source, size)

    def _replace(self, key: str, old: bytes, new: bytes) -> bool:
        try:
            answer, data = self._attempt(key, lambda client: self._body(client, key))
            return data == old and self._put(key, new, IfMatch=answer["ETag"])
        except MissingObjectError:
            return False

    def _has_settled(self, key: str, data: bytes) -> bool:
        """Return whether an object that was just written still holds these bytes once other writes have ended."""
        if self._obeys_conditions():
            return True
        conditional.settle(self.endpoint())
        return self.read(key) == data

    def _obeys_conditions(self) -> bool:
        """Return whether the server obeys conditional requests; ask it once in each process."""
        place = (os.getpid(), self.endpoint(), self.bucket)
        if place not in _OBEYS_CONDITIONS:
            _OBEYS_CONDITIONS[place] = conditional.obeys_conditions(self._put, self.delete)
            if not _OBEYS_CONDITIONS[place]:
                log.info("%s ignores conditional requests: lock files are used instead", self.endpoint())
        return _OBEYS_CONDITIONS[place]

    def _send(self, key: str, source: Callable[[], IO[bytes]], size: int, **condition: str) -> bool:
        """Upload, in parts when it is large; return whether the condition was met.

        The parts of a failed upload are removed.
        """
        if size <= PART:
            with source() as content:
                return self._put(key, content.read(), **condition)
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)

        def send(client: Any) -> None:
            with source() as content:
                client.upload_fileobj(content, self.bucket, self._full(key), Config=config)

        try:
            self._attempt(key, send)
        except ConditionFailedError:
            return False  # or an earlier attempt of this call wrote it: `write_file` compares the bytes
        return True

    def _put(self, key: str, data: bytes, **condition: str) -> bool:
        """Write an object; return whether the condition was met."""

        def send(client: Any) -> None:
            client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data, **condition)

        try:
            self._attempt(key, send)
        except ConditionFailedError as error:
            return error.retried and self.read(key) == data  # an earlier attempt may have written it
        return True

    def _size(self, key: str) -> int | None:
        try:
            head = self._attempt(
                key, lambda client: client.head_object(Bucket=self.bucket, Key=self._full(key))
            )
        except MissingObjectError:
            return None
        return int(head["ContentLength"])

    def _connection(self) -> Any:
        with self._lock:
            if self._client is None or self._client[0] != os.getpid():
                client = _client()
                client.meta.events.register("before-parameter-build.s3.CompleteMultipartUpload", self._once)
                self._client = (os.getpid(), client)
            return self._client[1]

    def _once(self, params: dict[str, Any], **_: object) -> None:
        """Make the end of an upload in parts conditional, which `upload_fileobj` cannot."""
        if self._obeys_conditions():
            params["IfNoneMatch"] = "*"

    def _attempt(self, key: str, action: Callable[[Any], T]) -> T:
        return retry.with_retries(self, key, lambda: action(self._connection()))

    def endpoint(self) -> str:
        """Return the URL of the server, for messages."""
        return str(self._connection().meta.endpoint_url)


def _client() -> BaseClient:
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 1},  # only `_attempt` retries
        max_pool_connections=16,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()
    return session.client("s3", region_name=session.region_name or "us-east-1", config=config)
