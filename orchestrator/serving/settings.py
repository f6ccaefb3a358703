"""What `mirage serve` may be told, with its defaults and limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from orchestrator.errors import ServiceError
from orchestrator.imaging.photos import LIMITS

MEGABYTE = 1_000_000
MEGAPIXEL = 1_000_000


@dataclass(frozen=True)
class Settings:
    """How one service listens, what it refuses, and how far it grows."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_bytes: int = 64 * MEGABYTE
    """Of one image file."""
    max_pixels: int = 24 * MEGAPIXEL
    """Of one image; looked up in its header, before anything is decoded."""
    queue: int = 16
    """Requests that may be inside at a time, waiting or being restored; the next one is told to come back."""
    timeout_seconds: float = 900.0
    """From the last byte of a request to its answer."""
    upload_seconds: float = 120.0
    """From a request's head to its last byte."""
    max_batch: int = 4
    min_replicas: int = 1
    max_replicas: int = 1
    device: str = "cpu"
    threads: int = 0
    """Of a replica; 0 shares the machine's cores among `max_replicas`."""
    poll_seconds: float = 3.0
    """How often the registry is asked where the alias points."""

    def __post_init__(self) -> None:
        for flag, value, most in (
            ("--max-megabytes", self.max_bytes / MEGABYTE, LIMITS.bytes / MEGABYTE),
            ("--max-megapixels", self.max_pixels / MEGAPIXEL, math.ceil(LIMITS.pixels / MEGAPIXEL)),
        ):
            if not 0 < value <= most:
                raise ServiceError(f"{flag} {value:g}: more than 0 and at most {most:.0f}.")
        for name, low in {"queue": 1, "max_batch": 1, "min_replicas": 1, "threads": 0}.items():
            if getattr(self, name) < low:
                raise ServiceError(f"{_flag(name)} {getattr(self, name)}: at least {low}.")
        for name in ("timeout_seconds", "upload_seconds", "poll_seconds"):
            if getattr(self, name) <= 0:
                raise ServiceError(f"{_flag(name)} {getattr(self, name):g}: more than 0 seconds.")
        if self.max_replicas < self.min_replicas:
            raise ServiceError(
                f"--max-replicas {self.max_replicas}: at least --min-replicas, {self.min_replicas}."
            )

    def at(self, port: int) -> Settings:
        """Return the same with the port that the system chose where 0 was asked for."""
        return replace(self, port=port)


def _flag(name: str) -> str:
    return "--" + name.removesuffix("_seconds").replace("_", "-")
