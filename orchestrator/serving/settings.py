"""Settings of a service, with their defaults and limits."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import ServiceError
from orchestrator.imaging.photos import LIMITS

MEGABYTE = 1_000_000
MEGAPIXEL = 1_000_000
POLL_SECONDS = 3.0
POLL_SECONDS_WITH_WEBHOOK = 60.0
"""Polling is then the fallback for deliveries that are lost."""


MAX_SECONDS = 10_000_000
"""Maximum of a time in the settings, four months: the operating system refuses longer waits."""


@dataclass(frozen=True)
class ServiceSettings:
    """Address, limits and replicas of one service."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_bytes: int = 64 * MEGABYTE
    """Size of one image file."""
    max_pixels: int = 24 * MEGAPIXEL
    """Pixels of one image, checked in its header before it is decoded."""
    max_in_flight: int = 16
    """Requests waiting or being restored; the next one gets HTTP 429."""
    timeout_seconds: float = 900.0
    """Time from the last byte of a request to its response."""
    upload_seconds: float = 120.0
    """Time from the head of a request to its last byte."""
    upload_rate: int = 4096
    """Least bytes per second of an upload, measured over `upload_window_seconds`."""
    upload_window_seconds: float = 10.0
    allow_hosts: tuple[str, ...] = ()
    """Host names of the service besides addresses, local names and its machine's name."""
    max_batch: int = 4
    """Images of one size that are restored together."""
    min_replicas: int = 1
    max_replicas: int = 1
    device: str = "cpu"
    threads: int = 0
    """CPU threads of a replica; 0 divides the machine's cores by `max_replicas`."""
    poll_seconds: float | None = None
    """Interval between two looks at the registry's alias; None: 3 s, or 60 s with a webhook."""

    def __post_init__(self) -> None:
        for flag, value, most in (
            ("--max-megabytes", self.max_bytes / MEGABYTE, LIMITS.bytes / MEGABYTE),
            ("--max-megapixels", self.max_pixels / MEGAPIXEL, math.ceil(LIMITS.pixels / MEGAPIXEL)),
        ):
            if not 0 < value <= most:
                raise ServiceError(f"{flag} {value:g}: must be more than 0 and at most {most:.0f}.")
        for name, low in {"max_in_flight": 1, "max_batch": 1, "min_replicas": 1, "threads": 0}.items():
            if getattr(self, name) < low:
                raise ServiceError(f"{_flag(name)} {getattr(self, name)}: must be at least {low}.")
        for host in self.allow_hosts:
            if not re.fullmatch(r"[a-z0-9._-]{1,253}", host):
                raise ServiceError(
                    f"--allow-host {host}: is not a host name. Give the name only, without scheme and port: "
                    "photos.example.org"
                )
        for name in ("timeout_seconds", "upload_seconds", "poll_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_SECONDS:
                raise ServiceError(
                    f"{_flag(name)} {value:g}: must be more than 0 and at most {MAX_SECONDS:,} seconds."
                )
        if self.max_replicas < self.min_replicas:
            raise ServiceError(
                f"--max-replicas {self.max_replicas}: must be at least --min-replicas, {self.min_replicas}."
            )

    @classmethod
    def from_flags(
        cls,
        *,
        max_megabytes: float,
        max_megapixels: float,
        allow_host: Sequence[str] | None = None,
        **others: Any,
    ) -> ServiceSettings:
        """Return the settings for values of the flags of `mirage serve`. Raises ServiceError."""
        return cls(
            allow_hosts=tuple(name.strip().lower() for name in allow_host or ()),
            max_bytes=_scaled("--max-megabytes", max_megabytes, MEGABYTE),
            max_pixels=_scaled("--max-megapixels", max_megapixels, MEGAPIXEL),
            **others,
        )

    @property
    def names(self) -> frozenset[str]:
        """Host names of the service, in lower case."""
        return frozenset({self.host.lower(), *self.allow_hosts})

    def poll_interval(self, has_webhook: bool) -> float:
        """Return the interval between two looks at the registry's alias [s]."""
        if self.poll_seconds is not None:
            return self.poll_seconds
        return POLL_SECONDS_WITH_WEBHOOK if has_webhook else POLL_SECONDS

    def at(self, port: int) -> ServiceSettings:
        """Return these settings with another port."""
        return replace(self, port=port)


def _scaled(flag: str, value: float, unit: int) -> int:
    if not abs(value) < 2**53 / unit:
        raise ServiceError(f"{flag} {value:g}: is too large, or not a number.")
    return int(value * unit)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
