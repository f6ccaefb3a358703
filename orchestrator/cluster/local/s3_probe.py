"""One ListBuckets request: whether an S3 server answers and accepts a pair of credentials."""

from __future__ import annotations

from urllib.parse import urlsplit

from orchestrator.cluster.local.ports import LOOPBACK_HOSTS


class S3ProbeError(Exception):
    """The endpoint did not answer, or refused the request; the message says which."""


def list_buckets(
    endpoint: str, access_key: str, secret_key: str, *, region: str, token: str | None, timeout_seconds: float
) -> list[str]:
    """Return the names of the buckets that these credentials see; raises `S3ProbeError`."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(
        s3={"addressing_style": "path"},
        connect_timeout=timeout_seconds,
        read_timeout=timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": 1},
        proxies={} if urlsplit(endpoint).hostname in LOOPBACK_HOSTS else None,
    )
    try:
        client = boto3.client(
            "s3",
            region_name=region,
            endpoint_url=endpoint,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            aws_session_token=token,
            config=config,
        )
        return [bucket["Name"] for bucket in client.list_buckets().get("Buckets", [])]
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        raise S3ProbeError(f"HTTP {status} {error.response['Error']['Code']}") from error
    except (BotoCoreError, ValueError) as error:
        raise S3ProbeError(str(error)) from error
