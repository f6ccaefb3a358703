"""A store in an S3 bucket.

Its client is one of botocore: boto3 takes as long again to import, and is needed for uploads in parts only.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from shards.errors import MissingObjectError, StoreError, UnreachableStoreError
from shards.store import answers, conditional, files, pointer, retry, write_once
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
        return self._whole(key)[1]

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
        # Ranges have no checksum: a difference may have come on the way.
        if length != self._size(key) or not any(self._equals(key, path, length) for _ in range(2)):
            raise write_once.conflict(key, self.uri)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object if there is none; return whether this call wrote it."""
        return self._create(key, lambda: io.BytesIO(data), len(data)) and self._has_settled(key, data)

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
        head = self._attempt(key, lambda client: self._head(client, key))
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

        def remove(client: Any) -> None:
            answer = client.delete_object(Bucket=self.bucket, Key=self._full(key))["ResponseMetadata"]
            # Status 204 is all that an anonymous server says, and any server can say that.
            if not answers.is_signed(answer["HTTPHeaders"]) and self._size(key) is not None:
                raise retry.MalformedAnswerError(
                    f"DeleteObject was answered with HTTP {answer['HTTPStatusCode']}, and the object is still there"
                )

        self._attempt(key, remove)

    def download(self, key: str, path: Path) -> None:
        """Copy an object to a local file."""
        body = answers.BodyCheck()

        def fetch(client: Any) -> None:
            answer = client.get_object(Bucket=self.bucket, Key=self._full(key), ChecksumMode="ENABLED")
            expected = int(answer["ContentLength"])

            def fill(file: IO[bytes]) -> None:
                size, md5 = 0, hashlib.md5(usedforsecurity=False)
                for block in answer["Body"].iter_chunks(files.BLOCK):
                    size += file.write(block)
                    md5.update(block)
                if size != expected:
                    raise retry.IncompleteError(f"{size} of {expected} bytes arrived")
                body.check(client.meta.endpoint_url, answer, md5.hexdigest())

            write_atomically(path, fill)

        with translate_os_errors(str(path.parent), path.name):
            self._attempt(key, fetch)

    def reconnect(self) -> None:
        """Close all connections; the next request opens a new one."""
        self._connection().close()

    def renew(self) -> None:
        """Read credentials again and open new connections for the next request."""
        with self._lock:
            self._client = None

    def ensure_bucket(self) -> None:
        """Create the bucket if it does not exist."""

        def make(client: Any) -> None:
            names = [bucket["Name"] for bucket in client.list_buckets().get("Buckets", [])]
            if self.bucket not in names:
                client.create_bucket(Bucket=self.bucket)
                client.list_objects_v2(Bucket=self.bucket, MaxKeys=1)  # any server may say status 200
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

    def _body(self, client: Any, key: str, **query: str) -> tuple[dict[str, Any], bytes]:
        answer = client.get_object(Bucket=self.bucket, Key=self._full(key), **query)
        data: bytes = answer["Body"].read()
        if len(data) != answer["ContentLength"]:
            raise retry.IncompleteError(f"{len(data)} of {answer['ContentLength']} bytes arrived")
        return answer, data

    def _whole(self, key: str) -> tuple[dict[str, Any], bytes]:
        """Return the answer and all bytes of an object, checked as far as the server gives checksums."""
        body = answers.BodyCheck()

        def get(client: Any) -> tuple[dict[str, Any], bytes]:
            answer, data = self._body(client, key, ChecksumMode="ENABLED")
            body.check(client.meta.endpoint_url, answer, hashlib.md5(data, usedforsecurity=False).hexdigest())
            return answer, data

        return self._attempt(key, get)

    def _head(self, client: Any, key: str) -> dict[str, Any]:
        """Return size and time of an object.

        HEAD has no body, so GET is asked for the reason of a refusal, and whether it was a proxy that said 404.
        """
        from botocore.exceptions import ClientError

        place = {"Bucket": self.bucket, "Key": self._full(key)}
        try:
            head: dict[str, Any] = client.head_object(**place)
        except ClientError as error:
            code, answer = error.response["Error"].get("Code"), error.response["ResponseMetadata"]
            unclear = code == "404" and not answers.is_signed(answer["HTTPHeaders"])
            if unclear or code in ("400", "403"):
                client.get_object(**place)["Body"].close()
            if unclear:
                raise retry.MalformedAnswerError("HTTP 404 to HEAD, and GET finds the object") from error
            raise
        return head

    def _equals(self, key: str, path: Path, length: int) -> bool:
        """Return whether an object has the bytes of a file of the same length."""
        starts = range(0, length, files.BLOCK)
        with path.open("rb") as source:
            remote = (self.read_range(key, start, min(files.BLOCK, length - start)) for start in starts)
            return write_once.equal_blocks(blocks(source), remote)

    def _create(self, key: str, source: Callable[[], IO[bytes]], size: int) -> bool:
        """Upload an object if there is none; return whether this call did."""
        if size <= PART and self._obeys_conditions():
            return self._send(key, source, size, IfNoneMatch="*")
        if self._size(key) is not None:
            return False
        if self._obeys_conditions():
            return self._send(key, source, size, IfNoneMatch="*")
        with conditional.machine_lock(self.bucket, self._full(key)):
            return self._size(key) is None and self._send(key, source, size)

    def _has_settled(self, key: str, data: bytes) -> bool:
        """Return whether an object that was just written still holds these bytes once other writes have ended."""
        if self._obeys_conditions():
            return True
        conditional.settle(self.endpoint())
        return self.read(key) == data

    def _obeys_conditions(self) -> bool:
        """Return whether the server obeys conditional requests; ask it once in each process."""
        place = (os.getpid(), self._attempt("", lambda client: str(client.meta.endpoint_url)), self.bucket)
        if place not in _OBEYS_CONDITIONS:
            try:
                _OBEYS_CONDITIONS[place] = conditional.obeys_conditions(self._put, self.delete)
            except UnreachableStoreError:
                raise
            except StoreError as error:
                log.info("conditional requests cannot be tried: %s", error)
                return False  # the write itself tells what is wrong
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
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)

        def send(client: Any) -> None:
            with source() as content, create_transfer_manager(client, config) as manager:
                manager.upload(content, self.bucket, self._full(key)).result()

        try:
            self._attempt(key, send)
        except ConditionFailedError:
            return False  # or an earlier attempt of this call wrote it: `write_file` compares the bytes
        return True

    def _put(self, key: str, data: bytes, **condition: str) -> bool:
        """Write an object; return whether the condition was met."""

        digest = hashlib.md5(data, usedforsecurity=False)
        md5 = base64.b64encode(digest.digest()).decode()

        def send(client: Any) -> None:
            where = {"Bucket": self.bucket, "Key": self._full(key)}
            answer = client.put_object(**where, Body=data, ContentMD5=md5, **condition)
            answers.learn(client.meta.endpoint_url, answer, digest.hexdigest())

        try:
            self._attempt(key, send)
        except ConditionFailedError as error:
            return error.retried and self.read(key) == data  # an earlier attempt may have written it
        return True

    def _size(self, key: str) -> int | None:
        try:
            head = self._attempt(key, lambda client: self._head(client, key))
        except MissingObjectError:
            return None
        return int(head["ContentLength"])

    def _connection(self) -> Any:
        with self._lock:
            if self._client is None or self._client[0] != os.getpid():
                client = _client()
                client.meta.events.register("before-parameter-build.s3.CompleteMultipartUpload", self._once)
                client.meta.events.register_last("after-call.s3", self._note_success)
                self._client = (os.getpid(), client)
            return self._client[1]

    def _once(self, params: dict[str, Any], **_: object) -> None:
        """Make the end of an upload in parts conditional, which the upload cannot."""
        if self._obeys_conditions():
            params["IfNoneMatch"] = "*"

    def _note_success(self, http_response: Any, model: Any, **_: object) -> None:
        if http_response.status_code < 300:
            retry.note_success(self, model.name)

    def _attempt(self, key: str, action: Callable[[Any], T]) -> T:
        return retry.with_retries(self, key, lambda: action(self._connection()))

    def endpoint(self) -> str:
        """Return the URL of the server, for messages."""
        return str(self._connection().meta.endpoint_url)


@functools.cache
def _loader() -> Any:
    """Return a loader that keeps the description of S3, whose parsing takes most of a client's creation."""
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")


def _client() -> BaseClient:
    """Return a client with the user's AWS configuration: addressing style, region and retries are theirs if set."""
    import botocore.session
    from botocore.config import Config

    session = botocore.session.get_session()
    session.register_component("data_loader", _loader())
    profile = session.get_scoped_config()
    own_retries = "retry_mode" in profile or {"AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"} & os.environ.keys()
    options: dict[str, Any] = {}
    if not own_retries and session.get_config_variable("max_attempts") is None:
        options["retries"] = {"mode": "standard", "total_max_attempts": 1}  # only `_attempt` retries
    if "addressing_style" not in (session.get_config_variable("s3") or {}):
        options["s3"] = {"addressing_style": "path"}
    config = Config(
        signature_version="s3v4",
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=16,
        request_checksum_calculation="when_required",  # `Content-MD5` instead, which every server checks
        response_checksum_validation="when_required",  # asked for in reads of whole objects
        **options,
    )
    region = session.get_config_variable("region") or "us-east-1"
    client = session.create_client("s3", region_name=region, config=config)
    answers.watch(client.meta.events)
    return client
