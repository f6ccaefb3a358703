"""What a manifest says of one sample, one image and one shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ORIGINAL = "original"
"""Encoding of an image that is the unchanged source file."""
Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Member:
    """One image inside a shard."""

    shard: int
    """Index of the shard in the manifest."""
    offset: int
    """Offset of the image's first byte in the shard."""
    size: int
    crc32: int
    encoding: str
    """`tiles-qoi`, `tiles-webp`, `jpeg-intervals`, or `original` (the unchanged source file)."""
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One sample. Rows with degradation `noise` have a clean image only."""

    id: str
    split: Split
    degradation: str
    degraded: Member | None
    clean: Member
    source: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file of a dataset."""

    key: str
    size: int
    sha256: str
