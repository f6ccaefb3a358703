"""Check that what answered a request is an S3 server, and that its bytes fit the checksums that it gives.

A login page, a proxy or another web server may answer with status 200. boto3 then reports success, or fails far away.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from shards.store.retry import DamagedAnswerError, MalformedAnswerError

log = logging.getLogger(__name__)

_REQUIRED = {
    "GetObject": {"ContentLength", "LastModified", "ETag"},
    "HeadObject": {"ContentLength", "LastModified"},
    "PutObject": {"ETag"},
    "UploadPart": {"ETag"},
    "CreateMultipartUpload": {"UploadId"},
    "CompleteMultipartUpload": {"ETag"},
    "ListObjectsV2": {"IsTruncated"},
    "ListBuckets": {"Buckets"},
}
"""What the answer to an operation holds, if it succeeded."""
_STATUSES = {"GetObject": {200, 206}, "DeleteObject": {200, 204}, "AbortMultipartUpload": {200, 204}}
_ALIKE = 4
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')

_etag_is_md5: dict[str, bool] = {}
"""Whether the ETags of an endpoint are MD5 digests, as far as seen: S3 does not promise it."""


def watch(events: Any) -> None:
    """Check the answers to all requests of a client, given its event system."""
    for operation in (
        *_REQUIRED,
        "DeleteObject",
    ):  # named, to come before a handler of botocore for all operations
        events.register_first(f"before-parse.s3.{operation}", _refuse_page)
    events.register("after-call.s3", check_answer)
    for operation in ("HeadBucket", "ListBuckets"):
        events.register_first(f"needs-retry.s3.{operation}", _end_redirects)


def _refuse_page(operation_model: Any, response_dict: Mapping[str, Any], **_: object) -> None:
    """Raise MalformedAnswerError for a web page that came with status 200.

    botocore has made status 500 of it. A page of a server that really failed says so.
    """
    status, headers, body = (response_dict[name] for name in ("status_code", "headers", "body"))
    is_page = isinstance(body, bytes) and body[:15].lstrip().lower().startswith((b"<!doctype", b"<html"))
    if is_page and (status < 300 or (status == 500 and b"500" not in body)):
        raise MalformedAnswerError(
            _summary(operation_model.name, min(status, 200), headers.get("content-type", ""))
        )


def _summary(operation: str, status: int, kind: str) -> str:
    return f"{operation} was answered with HTTP {status}" + f" and a body of type {kind}" * bool(kind)


def check_answer(http_response: Any, parsed: Mapping[str, Any], model: Any, **_: object) -> None:
    """Raise MalformedAnswerError unless a successful answer is one of an S3 server."""
    status = http_response.status_code
    if status >= 300:
        return
    name, kind = model.name, http_response.headers.get("content-type", "")
    what = _summary(name, status, kind)
    # Some servers call an empty body text/html. A body that is streamed has not been read yet.
    has_body = model.has_streaming_output or name.startswith("Head") or bool(http_response.content.strip())
    is_page = kind.lower().startswith("text/html") and not is_signed(http_response.headers) and has_body
    if missing := _REQUIRED.get(name, set()) - parsed.keys():
        what += f", without {', '.join(sorted(missing))}"
    wrong_status = status not in _STATUSES.get(name, {200} if name in _REQUIRED else {status})
    if missing or is_page or wrong_status or (name == "DeleteObject" and has_body):
        if "Body" in parsed:
            parsed["Body"].close()
        raise MalformedAnswerError(what)


def is_signed(headers: Mapping[str, str]) -> bool:
    """Return whether an answer has a header that only S3 servers send; some of them send none."""
    return any(name.lower().startswith("x-amz-") for name in headers)


class BodyCheck:
    """Check of one object's bytes against its ETag, which most servers make the MD5 of an object sent in one part."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def check(self, endpoint: str, answer: Mapping[str, Any], found: str) -> None:
        """Raise DamagedAnswerError if bytes with this MD5 do not fit the ETag.

        Bytes that arrive several times alike are believed if the ETag of this server never was an MD5.
        """
        match = _MD5.fullmatch(answer["ETag"])
        encrypted = "SSECustomerAlgorithm" in answer or "kms" in answer.get("ServerSideEncryption", "")
        if match is None or encrypted:
            return
        if match[1] == found:
            _etag_is_md5[endpoint] = True
            return
        known = _etag_is_md5.get(endpoint)
        self._seen[found] += 1
        if known is False or (known is None and self._seen[found] >= _ALIKE):
            if known is None:
                log.warning(
                    "%s: its ETags are no MD5 digests, so they cannot be used to check bytes", endpoint
                )
            _etag_is_md5[endpoint] = False
            return
        raise DamagedAnswerError(f"their MD5 is {found}, the ETag {match[1]}")


def learn(endpoint: str, answer: Mapping[str, Any], md5: str) -> None:
    """Note from the answer to a write whether the ETags of a server are MD5 digests."""
    if answer["ETag"].strip('"') == md5:
        _etag_is_md5[endpoint] = True


def _end_redirects(response: Any, operation: Any, **_: object) -> None:
    """Stop botocore from asking for the region of a bucket when that question is redirected, or there is no bucket."""
    from botocore.exceptions import ClientError

    if response is None or response[0].status_code not in (301, 302, 307, 308):
        return
    if "x-amz-bucket-region" not in response[0].headers:
        raise ClientError(response[1], operation.name)
