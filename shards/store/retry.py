"""Retries of S3 requests, and error messages for their failures.

The code of a failure tells whether another attempt may help, not its HTTP status alone:

    passing    no answer, server errors, throttling, time-outs      tried again for RETRY_MINUTES
               expired credentials, or none where there were some   the same, with credentials that are read again
    doubtful   denied, redirected, not S3                           the same if this process was allowed it before,
                                                                    otherwise for a few seconds
    damaged    bytes that do not fit their checksum                 tried again for a few seconds
    final      everything else                                      an error at once

Pauses grow exponentially with full jitter, and are at least what the server's `Retry-After` asks for. The retries of
botocore cover neither reading a body, nor the doubtful ones, nor expired credentials, nor a budget in minutes, so this
module is the only one that retries, unless the user's AWS configuration asks for botocore's retries too.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol, TypeVar

from shards.errors import (
    CorruptObjectError,
    MissingObjectError,
    ShardsError,
    StoreError,
    UnreachableStoreError,
)
from shards.store.conditional import ConditionFailedError

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_MINUTES = 2.0
"""Minutes in which passing failures of one request are tried again; the variable below replaces it."""
VARIABLE = "MIRAGE_STORE_RETRY_MINUTES"
DOUBTFUL_SECONDS = 8.0

_FIRST_PAUSE_SECONDS = 0.4
_LONGEST_PAUSE_SECONDS = 20.0
_PASSING = {
    "InternalError",
    "RequestTimeout",
    "RequestTimeoutException",
    "PriorRequestNotComplete",
    "ServiceUnavailable",
    "SlowDown",
    "TooManyRequests",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "LimitExceededException",
    "OperationAborted",
    "ConditionalRequestConflict",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_DAMAGED = {"BadDigest", "InvalidDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}
_WRONG_CREDENTIALS = {
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "AuthorizationHeaderMalformed",
}
_RIGHTS = {
    "HeadObject": "s3:GetObject, and s3:ListBucket to be told that an object is missing",
    "GetObject": "s3:GetObject, and s3:ListBucket to be told that an object is missing",
    "ListObjectsV2": "s3:ListBucket",
    "DeleteObject": "s3:DeleteObject",
    "ListBuckets": "s3:ListAllMyBuckets",
    "CreateBucket": "s3:CreateBucket",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
}
"""Rights that an operation needs; others need s3:PutObject."""

_answered: set[str] = set()
"""Endpoints that have answered this process; one that never did is more likely wrong than away."""
_allowed: set[tuple[str, str]] = set()
"""Stores and the rights that this process has used there; a right that was there before may come back."""
_check: ContextVar[Callable[[], None] | None] = ContextVar("check", default=None)


class IncompleteError(Exception):
    """A response body shorter than announced; the request is retried."""


class DamagedAnswerError(Exception):
    """A response body that does not fit the checksum that the server gives."""


class MalformedAnswerError(Exception):
    """An answer that no S3 server gives; the message says what came."""


class RequestTarget(Protocol):
    """Protocol of the target of a request."""

    uri: str
    bucket: str

    def endpoint(self) -> str:
        """Return the URL of the server."""

    def reconnect(self) -> None:
        """Close all connections."""

    def renew(self) -> None:
        """Read credentials again and open new connections for the next request."""


@dataclass(frozen=True)
class _Failure:
    """What a failed attempt means."""

    kind: Literal["unreached", "passing", "doubtful", "damaged", "final"]
    error: ShardsError
    """Raised when no attempt is left."""
    repair: Literal["", "reconnect", "renew"] = ""
    """What is called on the target before the next attempt."""
    headers: Mapping[str, str] = field(default_factory=dict)
    right: str = ""
    """The right that the request needs, if its operation is known."""


@contextmanager
def checking_before_retries(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before each further attempt of a request in the block; what it raises ends the request.

    The requests of `check` itself are part of that attempt: if they fail, it has failed.
    """
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def _in_check() -> None:
    """Stand for `_check` while it runs."""


def note_success(place: RequestTarget, operation: str) -> None:
    """Remember that the server has allowed an operation."""
    _allowed.add((place.uri, _right(operation)))


def _right(operation: str) -> str:
    return _RIGHTS.get(operation, "s3:PutObject")


def budget_seconds() -> float:
    """Return for how long passing failures are tried again. Raises StoreError."""
    text = os.environ.get(VARIABLE, str(RETRY_MINUTES))
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes <= 24 * 60:
        raise StoreError(f"{VARIABLE} is {text!r}. Give minutes from 0 to 1440.")
    return 60 * minutes


def with_retries(place: RequestTarget, key: str, action: Callable[[], T]) -> T:
    """Run `action` with retries. Raises the ShardsError of its last failure."""
    check = _check.get()
    if check is _in_check:
        return action()
    budget = budget_seconds()
    began, paused = time.monotonic(), 0.0
    for number in itertools.count():
        try:
            if check and number:
                with checking_before_retries(_in_check):
                    check()
            answer = action()
            _answered.add(place.endpoint())
            return answer
        except Exception as error:
            failure = _failure(place, key, error, retried=number > 0)
            if failure is None:
                raise
            cause = error
        spent = max(time.monotonic() - began, paused)
        limit = min(budget, _longest(place, failure))
        pause = max(_jittered(number), _retry_after(failure.headers))
        if spent + pause > limit:
            if number and not isinstance(failure.error, (MissingObjectError, ConditionFailedError)):
                message = f"{failure.error} ({number + 1} attempts in {spent:.0f} s)"
                raise type(failure.error)(message) from cause
            raise failure.error from cause
        log.log(
            logging.WARNING if number == 2 else logging.INFO,
            *("%s Attempt %d follows.", failure.error, number + 2),
        )
        if failure.repair:
            getattr(place, failure.repair)()
        time.sleep(pause)
        paused += pause
    raise AssertionError("the loop ends by return or raise")


def _longest(place: RequestTarget, failure: _Failure) -> float:
    """Return for how many seconds a failure is tried again, if the budget allows it."""
    if failure.kind == "final":
        return 0.0
    was_allowed = any(uri == place.uri and failure.right in ("", right) for uri, right in tuple(_allowed))
    passing = failure.kind == "passing" or (failure.kind == "doubtful" and was_allowed)
    return math.inf if passing else DOUBTFUL_SECONDS


def _jittered(number: int) -> float:
    return random.uniform(0, min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**number))


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a `Retry-After` header asks for; 0 without one. A date is one of the server's clock."""
    text = headers.get("retry-after", "")
    try:
        if text.strip().isdigit():
            return float(text)
        return (parsedate_to_datetime(text) - parsedate_to_datetime(headers.get("date", ""))).total_seconds()
    except (ValueError, TypeError):
        return 0.0


def _failure(place: RequestTarget, key: str, error: Exception, *, retried: bool) -> _Failure | None:
    """Return what an exception means, None if it is not one of a request."""
    import botocore.exceptions as aws
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import ProtocolError

    where = f"{place.uri}/{key}"
    lasting = (aws.PartialCredentialsError, aws.ProfileNotFound)
    match error:
        case aws.FlexibleChecksumError() | DamagedAnswerError():
            message = (
                f"{where} at {place.endpoint()}: what arrives does not fit the server's checksum ({error})."
            )
            return _Failure("damaged", CorruptObjectError(f"{message} Restore it from a copy."), "reconnect")
        case MalformedAnswerError() | ResponseParserError():
            return _malformed(f"{where} at {place.endpoint()}", _line(error))
        case (
            ProtocolError()  # a connection reset during a read, which botocore does not wrap
            | aws.ConnectionError()
            | aws.HTTPClientError()  # timed out, closed, cut off while the body was read
            | aws.IncompleteReadError()
            | IncompleteError()
        ):
            message = (
                f"{where}: {place.endpoint()} did not answer ({error}). "
                "Check that the server runs and that AWS_ENDPOINT_URL is right."
            )
            kind: Literal["passing", "unreached"] = (
                "passing" if place.endpoint() in _answered else "unreached"
            )
            return _Failure(kind, UnreachableStoreError(message))
        case (
            aws.NoCredentialsError()
            | aws.PartialCredentialsError()
            | aws.ProfileNotFound()
            | aws.CredentialRetrievalError()
            | aws.TokenRetrievalError()
        ):
            # A role's or a program's answer may be missing for a moment while it renews them.
            had_some = not isinstance(error, lasting) and place.endpoint() in _answered
            message = (
                f"{place.uri}: no credentials ({error}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or start the store of this machine: mirage up."
            )
            return _Failure("passing" if had_some else "final", StoreError(message), "renew")
        case aws.ClientError():
            _answered.add(place.endpoint())
            return _refusal(place, key, error, retried)
        case aws.BotoCoreError() | ValueError():  # not a URL, a bucket name that cannot be one
            message = f"{where}: {error}. Check AWS_ENDPOINT_URL and the other AWS variables."
            return _Failure("final", StoreError(message))
    return None


def _refusal(place: RequestTarget, key: str, error: Exception, retried: bool) -> _Failure:
    """Return what the server's refusal means."""
    # For uploads in parts the refusal is in the exception's context.
    refused = error if hasattr(error, "response") else error.__context__
    response: dict[str, Any] = getattr(refused, "response", {})
    operation = str(getattr(refused, "operation_name", "request"))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    code = str(response.get("Error", {}).get("Code") or "")
    said = str(response.get("Error", {}).get("Message") or "").strip()
    why = f"{operation}: HTTP {status}" + f" {code}" * (not code.isdigit()) + f" ({said})" * bool(said)
    where = f"{place.uri}/{key} at {place.endpoint()}"
    right = _right(operation)

    if code in ("PreconditionFailed", "412") or status == 412:
        return _Failure("final", ConditionFailedError(f"{where}: {why}", retried))
    if code == "NoSuchBucket":
        message = f"{where}: there is no bucket {place.bucket!r}. Create it or correct the URI."
        return _Failure("final", StoreError(message))
    if code == "NoSuchKey" or (operation == "HeadObject" and status == 404):  # `S3Store` has asked GET too
        return _Failure("final", MissingObjectError(f"{where}: there is no such object."))
    if status == 404 and code in ("404", ""):
        return _malformed(where, why, right)
    if code in _EXPIRED:
        message = (
            f"{where}: the credentials have expired: {why}. Renew them where AWS finds them: a file or a role is read "
            "again, variables of a running process are not."
        )
        return _Failure("passing", StoreError(message), "renew", headers)
    if (
        code in _PASSING
        or "Throttl" in code
        or status in (408, 425, 429)
        or (status >= 500 and status != 501)
    ):
        message = f"{where}: the server is busy: {why}. Try again later, or raise {VARIABLE}."
        return _Failure("passing", UnreachableStoreError(message), "", headers)
    if code in _WRONG_CREDENTIALS:
        message = f"{where}: wrong credentials: {why}. Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        return _Failure("doubtful", StoreError(message), "renew", right=right)
    if code == "RequestTimeTooSkewed":
        message = f"{where}: the clocks of this machine and of the server differ too much: {why}. Set them."
        return _Failure("doubtful", StoreError(message), right=right)
    if "PathStyle" in code or code == "SecondLevelDomainForbidden":
        message = (
            f"{where}: {why}. This server wants the bucket in the host name: write `addressing_style = virtual` below "
            "`s3 =` in ~/.aws/config."
        )
        return _Failure("final", StoreError(message))
    if status == 403:
        message = (
            f"{where}: access denied: {why}. It needs the right {right}. Check it, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY."
        )
        return _Failure("doubtful", StoreError(message), "renew", right=right)
    if 300 <= status < 400:
        target = headers.get("location", "nowhere")
        message = f"{where}: {why} leads to {target}. Check AWS_ENDPOINT_URL and AWS_REGION."
        return _Failure("doubtful", StoreError(message), right=right)
    if operation == "HeadObject" and status == 400:  # GET worked, or it would have given a code
        return _Failure("doubtful", StoreError(f"{where}: {why}."), right=right)
    remedy = " A proxy before the server may limit the size of uploads." if status == 413 else ""
    kind: Literal["damaged", "final"] = "damaged" if code in _DAMAGED else "final"
    return _Failure(kind, StoreError(f"{where}: {why}.{remedy}"))


def _malformed(where: str, why: str, right: str = "") -> _Failure:
    message = (
        f"{where}: this is not the answer of an S3 server: {why}. Check AWS_ENDPOINT_URL, and whether a proxy or a "
        "login page answers instead."
    )
    return _Failure("doubtful", StoreError(message), right=right)


def _line(error: Exception) -> str:
    """Return the beginning of an error's text, in one line."""
    return " ".join(str(error).split())[:200]
