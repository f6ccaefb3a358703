"""An image in memory as a source image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from shards.sources.image import Image


@dataclass(frozen=True, slots=True, eq=False)
class InMemoryImage:
    """An image in memory."""

    image: Image
    name: str = "an image in memory"

    @property
    def file(self) -> None:
        """None."""
        return None

    @property
    def cache_key(self) -> str:
        """Digest of the pixels."""
        return hashlib.sha256(self.image.tobytes()).hexdigest()

    def size(self) -> tuple[int, int]:
        """Return height and width."""
        height, width = self.image.shape[:2]
        return int(height), int(width)

    def pixels(self) -> Image:
        """Return the image."""
        return self.image
