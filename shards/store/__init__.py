"""Where objects live: a local folder or an S3 bucket, behind one small protocol.

Objects are write-once: a key means the same bytes for ever, so a reader can never meet half of an old
object and half of a new one (real S3 servers allow that on overwriting). The only mutable objects are
*pointers*: tiny, carrying their own checksum, and read again when it does not fit. Nothing here relies on
conditional requests, ETags, status 206 or page sizes, since servers differ in all of them.

    protocol  what a store is            once     objects are written once, and read whole
    local     a folder                   files    a file is whole or not there; its errors in words
    s3        a bucket, by boto3         retry    what is tried again, what is refused, in words
                                         pointer  the one thing that moves
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
    """Store at `s3://bucket/prefix`, `file:///folder` or a plain path."""
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")  # a key may hold `?` and `#`
        if not bucket:
            raise StoreError(f"{uri!r} names no bucket; write s3://bucket/prefix.")
        return S3Store(bucket, prefix.strip("/"))
    if uri.startswith("file://"):
        return LocalStore(Path(unquote(urlsplit(uri).path)))
    if "://" in uri:
        raise StoreError(f"{uri!r}: only s3://bucket/prefix, file:///folder and plain paths are understood.")
    return LocalStore(Path(uri))
