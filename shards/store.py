"""Where objects live: a local folder or an S3 bucket, behind one small protocol.

Objects are write-once: a key means the same bytes for ever, so a reader can never meet half of an old
object and half of a new one (real S3 servers allow that on overwriting). The only mutable objects are
*pointers*: tiny, carrying their own checksum, and read again when it does not fit. Nothing here relies on
conditional requests, ETags, status 206 or page sizes, since servers differ in all of them.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from shards.errors import CorruptObjectError, MissingObjectError, StoreError, UnreachableStoreError

if TYPE_CHECKING:
    from botocore.client import BaseClient

log = logging.getLogger(__name__)
T = TypeVar("T")

_BLOCK = 8 << 20
_ATTEMPTS = 4
_DIGEST = 64  # hexadecimal characters of a sha256
_BUSY = {429, 500, 502, 503, 504}  # HTTP statuses of a server that may answer the same request later


class Store(Protocol):
    """What the rest of the package asks of storage. Keys are relative, with `/` between their parts."""

    uri: str

    def read(self, key: str) -> bytes:
        """All bytes of an object."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start` on."""

    def write(self, key: str, data: bytes) -> None:
        """Write once: the same bytes again are fine, other bytes under the same key are an error."""

    def write_file(self, key: str, path: Path) -> None:
        """`write` for a file of any size, in bounded memory."""

    def read_pointer(self, key: str) -> bytes | None:
        """Content of a mutable pointer, None if it was never written."""

    def write_pointer(self, key: str, data: bytes) -> None:
        """Move a pointer; readers see the old content or the new one."""

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys that start with `prefix`."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    def download(self, key: str, path: Path) -> None:
        """Copy an object to a local file, in bounded memory. The file is complete when this returns."""

    def ensure_bucket(self) -> None:
        """Create the folder or bucket when it is not there yet."""


def open_store(uri: str) -> Store:
    """Store at `s3://bucket/prefix`, `file:///folder` or a plain path."""
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise StoreError(f"{uri!r} names no bucket; write s3://bucket/prefix.")
        return S3Store(parts.netloc, parts.path.strip("/"))
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)))
    if "://" in uri:
        raise StoreError(f"{uri!r}: only s3://bucket/prefix, file:///folder and plain paths are understood.")
    return LocalStore(Path(uri))


class LocalStore:
    """Objects as plain files of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.uri = str(self.root)

    def path(self, key: str) -> Path:
        """File that holds an object."""
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise StoreError(f"{key!r} is not a key of a store: it must be relative and without '..'.")
        return self.root / key

    def read(self, key: str) -> bytes:
        """All bytes of an object."""
        with self._explained(key):
            return self.path(key).read_bytes()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start` on."""
        with self._explained(key), self.path(key).open("rb") as file:
            file.seek(start)
            data = file.read(length)
        return _complete(data, length, key, self.uri)

    def write(self, key: str, data: bytes) -> None:
        """Write once."""
        path = self.path(key)
        with self._explained(key):
            if path.exists():
                if path.read_bytes() != data:
                    raise _taken(key, self.uri)
                return
            _replace(path, lambda file: file.write(data))

    def write_file(self, key: str, path: Path) -> None:
        """Write once from a file."""
        target = self.path(key)
        with self._explained(key), path.open("rb") as source:
            if target.exists():
                with target.open("rb") as present:
                    if not _same(_blocks(source), _blocks(present)):
                        raise _taken(key, self.uri)
                return
            _replace(target, lambda file: _copy(source, file))

    def read_pointer(self, key: str) -> bytes | None:
        """Content of a mutable pointer."""
        return _read_pointer(self, key)

    def write_pointer(self, key: str, data: bytes) -> None:
        """Move a pointer."""
        sealed = _seal(data)
        with self._explained(key):
            _replace(self.path(key), lambda file: file.write(sealed))

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        with self._explained(key):
            return self.path(key).is_file()

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys that start with `prefix`."""
        base = self.root / prefix.rpartition("/")[0]
        with self._explained(prefix):
            files = (p for p in base.rglob("*") if p.is_file() and not p.name.startswith(".tmp-"))
            keys = (file.relative_to(self.root).as_posix() for file in files)
            return sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._explained(key):
            self.path(key).unlink(missing_ok=True)

    def download(self, key: str, path: Path) -> None:
        """Copy an object to a local file."""
        with self._explained(key), self.path(key).open("rb") as source:
            _replace(path, lambda file: _copy(source, file))

    def ensure_bucket(self) -> None:
        """Create the folder."""
        with self._explained(""):
            self.root.mkdir(parents=True, exist_ok=True)

    def _explained(self, key: str) -> _Explained:
        return _Explained(self.uri, key)


class S3Store:
    """Objects of one bucket under one prefix, by boto3.

    Credentials, region and endpoint come from the standard AWS variables and files (`AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, ...). The client is made on first use and again after a
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
        """All bytes of an object."""
        return self._attempt(key, lambda client: self._body(client, key))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start` on."""
        span = f"bytes={start}-{start + length - 1}"
        data = self._attempt(key, lambda client: self._body(client, key, Range=span))
        return _complete(data, length, key, self.uri)

    def write(self, key: str, data: bytes) -> None:
        """Write once."""
        size = self._size(key)
        if size is None:
            self._put(key, data)
        elif size != len(data) or self.read(key) != data:
            raise _taken(key, self.uri)

    def write_file(self, key: str, path: Path) -> None:
        """Write once from a file, in parts when it is large."""
        size = self._size(key)
        if size is None:
            self._attempt(key, lambda client: client.upload_file(str(path), self.bucket, self._full(key)))
            return
        with path.open("rb") as source:
            remote = (
                self.read_range(key, start, min(_BLOCK, size - start)) for start in range(0, size, _BLOCK)
            )
            if size != path.stat().st_size or not _same(_blocks(source), remote):
                raise _taken(key, self.uri)

    def read_pointer(self, key: str) -> bytes | None:
        """Content of a mutable pointer."""
        return _read_pointer(self, key)

    def write_pointer(self, key: str, data: bytes) -> None:
        """Move a pointer."""
        self._put(key, _seal(data))

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self._size(key) is not None

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys that start with `prefix`."""

        def pages(client: Any) -> list[str]:
            found = client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._full(prefix)
            )
            return [item["Key"] for page in found for item in page.get("Contents", [])]

        keys = self._attempt(prefix, pages)
        skip = len(self.prefix) + 1 if self.prefix else 0
        return sorted(key[skip:] for key in keys)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._attempt(key, lambda client: client.delete_object(Bucket=self.bucket, Key=self._full(key)))

    def download(self, key: str, path: Path) -> None:
        """Copy an object to a local file."""

        def fetch(client: Any) -> None:
            answer = client.get_object(Bucket=self.bucket, Key=self._full(key))
            expected = int(answer["ContentLength"])
            size = _replace(path, lambda file: sum(map(file.write, answer["Body"].iter_chunks(_BLOCK))))
            if size != expected:
                path.unlink()
                raise _IncompleteError(f"{size} of {expected} bytes arrived")

        with _Explained(str(path.parent), path.name):
            self._attempt(key, fetch)

    def ensure_bucket(self) -> None:
        """Create the bucket when it is not there yet."""

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
            # An account may use a bucket without the right to make one; another process may be faster.
            self._attempt("", lambda client: client.list_objects_v2(Bucket=self.bucket, MaxKeys=1))

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _body(self, client: Any, key: str, **span: str) -> bytes:
        answer = client.get_object(Bucket=self.bucket, Key=self._full(key), **span)
        data: bytes = answer["Body"].read()
        if len(data) != answer["ContentLength"]:
            raise _IncompleteError(f"{len(data)} of {answer['ContentLength']} bytes arrived")
        return data

    def _put(self, key: str, data: bytes) -> None:
        self._attempt(
            key, lambda client: client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data)
        )

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
                self._client = (os.getpid(), _client())
            return self._client[1]

    def _attempt(self, key: str, action: Callable[[Any], T]) -> T:
        """Run `action` with the client; what fails on the way is tried again, a refusal is explained."""
        import botocore.exceptions as aws
        from boto3.exceptions import S3UploadFailedError

        broken = (
            aws.ConnectionError,
            aws.HTTPClientError,  # timed out, closed, cut off while the body was read
            aws.IncompleteReadError,
            _IncompleteError,
        )
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return action(self._connection())
            except broken as error:
                failure: Exception = error
            except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound) as error:
                raise StoreError(
                    f"{self.uri}: no credentials ({error}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
                ) from error
            except (aws.ClientError, S3UploadFailedError) as error:
                if _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode") not in _BUSY:
                    self._refused(key, error)
                failure = error
            except (aws.BotoCoreError, ValueError) as error:  # no S3 server, or no URL that could be one
                raise StoreError(
                    f"{self.uri}/{key}: {error}. Check AWS_ENDPOINT_URL and the other AWS variables."
                ) from error
            if attempt < _ATTEMPTS:
                log.info("%s of %s: %s; attempt %d of %d", key, self.uri, failure, attempt, _ATTEMPTS)
                time.sleep(0.2 * 2**attempt)
        raise UnreachableStoreError(
            f"{self.uri}/{key}: {self._endpoint()} did not answer after {_ATTEMPTS} attempts ({failure}). "
            "Check that the server runs and that AWS_ENDPOINT_URL is right."
        ) from failure

    def _refused(self, key: str, error: Exception) -> NoReturn:
        code = str(_response(error).get("Error", {}).get("Code", ""))
        where = f"{self.uri}/{key} at {self._endpoint()}"
        if code == "NoSuchBucket":
            raise StoreError(
                f"{where}: there is no bucket {self.bucket!r}. Create it or correct the URI."
            ) from error
        if code in ("NoSuchKey", "404"):
            raise MissingObjectError(f"{where}: there is no such object.") from error
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"):
            raise StoreError(
                f"{where}: wrong credentials ({code}). Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            ) from error
        if code in ("AccessDenied", "403"):
            raise StoreError(
                f"{where}: access denied. Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights on "
                "the bucket."
            ) from error
        raise StoreError(f"{where}: {error}") from error

    def _endpoint(self) -> str:
        return str(self._connection().meta.endpoint_url)


def _response(error: Exception) -> dict[str, Any]:
    """What the server answered; an upload in parts hides it one error deeper."""
    cause = error if hasattr(error, "response") else error.__context__
    response: dict[str, Any] = getattr(cause, "response", {})
    return response


class _IncompleteError(Exception):
    """A body shorter than announced; tried again."""


class _Explained:
    """Turns errors of the local file system into a `StoreError` that says what to do."""

    def __init__(self, uri: str, key: str) -> None:
        self.where = f"{uri}/{key}" if key else uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise MissingObjectError(f"{self.where}: there is no such object.") from error
        if isinstance(error, PermissionError):
            raise StoreError(
                f"{self.where}: permission denied. Make the folder readable and writable, or choose another."
            ) from error
        if isinstance(error, OSError):
            remedy = " Free some space." if error.errno == errno.ENOSPC else ""
            raise StoreError(f"{self.where}: {error.strerror or error}.{remedy}") from error


def _client() -> BaseClient:
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 1},  # `_attempt` repeats, and nothing else
        max_pool_connections=16,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()
    return session.client("s3", region_name=session.region_name or "us-east-1", config=config)


def _seal(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def _read_pointer(store: Store, key: str) -> bytes | None:
    for attempt in range(_ATTEMPTS):
        try:
            sealed = store.read(key)
        except MissingObjectError:
            return None
        data = sealed[_DIGEST + 1 :]
        if _seal(data) == sealed:
            return data
        time.sleep(0.1 * 2**attempt)  # a reader can meet a pointer that is being moved
    raise CorruptObjectError(
        f"{store.uri}/{key}: the pointer does not fit its own checksum. Publish again, or restore a copy."
    )


def _replace(path: Path, fill: Callable[[IO[bytes]], T]) -> T:
    """Fill a temporary file and rename it: a kill leaves all of `path` or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            result = fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return result


def _copy(source: IO[bytes], target: IO[bytes]) -> int:
    return sum(map(target.write, _blocks(source)))


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(_BLOCK), b"")


def _same(one: Iterator[bytes], other: Iterator[bytes]) -> bool:
    return all(a == b for a, b in itertools.zip_longest(one, other))


def _complete(data: bytes, length: int, key: str, uri: str) -> bytes:
    if len(data) != length:
        raise CorruptObjectError(
            f"{uri}/{key}: {len(data)} bytes where {length} were asked for; it is truncated."
        )
    return data


def _taken(key: str, uri: str) -> StoreError:
    return StoreError(
        f"{uri}/{key} already holds other bytes, and objects are written once. Delete it if it is damaged."
    )
