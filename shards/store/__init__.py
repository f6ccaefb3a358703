"""Object stores: a local folder or an S3 bucket behind one small protocol.

Objects are write-once: a key always has the same bytes, so a reader never sees a mixture of an old and a new object,
which S3 servers allow when an object is overwritten. The only mutable objects are *pointers*, which are small and carry
their own checksum, and *leases*, which `create` and `replace` change for one caller at a time. Nothing needs a server
with conditional requests, status 206 or a certain page size, since servers differ; where conditional requests are
obeyed, they decide which of two writers is first.

    protocol  interface of a store       write_once   checks of write-once objects
    local     a folder                   files        atomic writes of local files
    s3        an S3 bucket               retry        retries and error messages of S3
    pointer   mutable pointers           conditional  conditional writes, and locks where a server has none
    checked   reads with a checksum      answers      whether an S3 server answered, and with whole bytes
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from shards.errors import StoreError
from shards.store.local import LocalStore
from shards.store.protocol import Store
from shards.store.s3 import S3Store

__all__ = ["LocalStore", "S3Store", "Store", "open_store"]


def open_store(uri: str) -> Store:
    """Return the store at `s3://bucket/prefix`, `file:///folder` or a plain path. Raises StoreError."""
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")  # a key may hold `?` and `#`
        if not bucket:
            raise StoreError(f"{uri!r} names no bucket; write s3://bucket/prefix.")
        return S3Store(bucket, prefix.strip("/"))
    if uri.startswith("file://"):
        return LocalStore(Path(unquote(urlsplit(uri).path)))
    if "://" in uri:
        raise StoreError(f"{uri!r}: only s3://bucket/prefix, file:///folder and plain paths are supported.")
    return LocalStore(Path(uri))
