"""Retries of S3 requests, and error messages for their failures.

A request to an unreachable or busy server is retried with exponential backoff. A refused request is not retried.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeVar

from shards.errors import MissingObjectError, StoreError, UnreachableStoreError
from shards.store.conditional import ConditionFailedError

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 4
"""Number of attempts before a request fails."""

_FIRST_PAUSE_SECONDS = 0.4
_BUSY = {429, 500, 502, 503, 504}  # HTTP statuses of a server that may answer the same request later


class IncompleteError(Exception):
    """A response body shorter than announced; the request is retried."""


class RequestTarget(Protocol):
    """Protocol of the target of a request, for messages."""

    uri: str
    bucket: str

    def endpoint(self) -> str:
        """Return the URL of the server."""


def with_retries(place: RequestTarget, key: str, action: Callable[[], T]) -> T:
    """Run `action` with retries. Raises UnreachableStoreError, MissingObjectError or StoreError."""
    import botocore.exceptions as aws
    from boto3.exceptions import S3UploadFailedError
    from urllib3.exceptions import ProtocolError

    broken = (
        ProtocolError,  # a connection reset during a read, which botocore does not wrap
        aws.ConnectionError,
        aws.HTTPClientError,  # timed out, closed, cut off while the body was read
        aws.IncompleteReadError,
        IncompleteError,
    )
    for number in range(ATTEMPTS):
        try:
            return action()
        except broken as error:
            failure: Exception = error
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound) as error:
            raise StoreError(
                f"{place.uri}: no credentials ({error}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or start the store of this machine: mirage up."
            ) from error
        except (aws.ClientError, S3UploadFailedError) as error:
            if _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode") not in _BUSY:
                _refused(place, key, error, retried=number > 0)
            failure = error
        except (aws.BotoCoreError, ValueError) as error:  # not an S3 server, or not a URL
            raise StoreError(
                f"{place.uri}/{key}: {error}. Check AWS_ENDPOINT_URL and the other AWS variables."
            ) from error
        if number < ATTEMPTS - 1:
            log.info("%s of %s: %s; with_retries %d of %d", key, place.uri, failure, number + 1, ATTEMPTS)
            time.sleep(_FIRST_PAUSE_SECONDS * 2**number)
    raise UnreachableStoreError(
        f"{place.uri}/{key}: {place.endpoint()} did not answer after {ATTEMPTS} attempts ({failure}). "
        "Check that the server runs and that AWS_ENDPOINT_URL is right."
    ) from failure


def _refused(place: RequestTarget, key: str, error: Exception, *, retried: bool) -> NoReturn:
    code = str(_response(error).get("Error", {}).get("Code", ""))
    where = f"{place.uri}/{key} at {place.endpoint()}"
    if code == "NoSuchBucket":
        raise StoreError(
            f"{where}: there is no bucket {place.bucket!r}. Create it or correct the URI."
        ) from error
    if code in ("PreconditionFailed", "412"):
        raise ConditionFailedError(f"{where}: the object is not as the condition says.", retried) from error
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


def _response(error: Exception) -> dict[str, Any]:
    """Return the server's response; for multipart uploads it is in the exception's context."""
    cause = error if hasattr(error, "response") else error.__context__
    response: dict[str, Any] = getattr(cause, "response", {})
    return response
