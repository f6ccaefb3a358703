"""One signed ListBuckets request: proof that an S3 server answers and accepts a pair of credentials.

The signature is AWS Signature Version 4 for an empty GET. It needs no S3 client, so that starting the
local cluster and `mirage doctor` stay quick.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import urllib.error
import urllib.request
from datetime import UTC, datetime
from urllib.parse import urlsplit

_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class S3ProbeError(Exception):
    """The endpoint did not answer, or refused; the message says which."""


def list_buckets(
    endpoint: str, access_key: str, secret_key: str, *, region: str, token: str | None, timeout_seconds: float
) -> list[str]:
    """Return the names of the buckets that these credentials see; raises `S3ProbeError`."""
    headers = sign(
        urlsplit(endpoint).netloc, access_key, secret_key, region=region, token=token, now=datetime.now(UTC)
    )
    request = urllib.request.Request(endpoint.rstrip("/") + "/", headers=headers)
    try:
        with opener(endpoint).open(request, timeout=timeout_seconds) as response:
            body = response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            code = re.search(r"<Code>(\w+)</Code>", error.read().decode(errors="replace"))
        raise S3ProbeError(f"HTTP {error.code}{f' {code[1]}' if code else ''}") from error
    except (OSError, ValueError) as error:
        raise S3ProbeError(str(getattr(error, "reason", error))) from error
    return re.findall(r"<Name>([^<]+)</Name>", body)


def opener(url: str) -> urllib.request.OpenerDirector:
    """Return a URL opener that goes to this machine directly even where a proxy is set."""
    if urlsplit(url).hostname in _LOOPBACK:
        return urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener()


def sign(
    host: str, access_key: str, secret_key: str, *, region: str, token: str | None, now: datetime
) -> dict[str, str]:
    """Return the headers that sign `GET /` on `host` at the time `now` (UTC)."""
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    signed = {"host": host, "x-amz-content-sha256": _EMPTY_SHA256, "x-amz-date": stamp}
    if token:
        signed["x-amz-security-token"] = token
    names = ";".join(signed)  # already in alphabetical order, as the signature wants them
    canonical = "\n".join(
        ["GET", "/", "", *(f"{k}:{v}" for k, v in signed.items()), "", names, _EMPTY_SHA256]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, digest])
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return {**{k: v for k, v in signed.items() if k != "host"}, "Authorization": authorization}
