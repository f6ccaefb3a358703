"""The four of torchvision's transforms that the release's dataset class uses, with the same results and the same work.

They stand in where torchvision is not installed, which is preferred when it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Compose:
    """One transform after another."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        """Apply them in order."""
        for transform in self.transforms:
            image = transform(image)
        return image


class ToPILImage:
    """(h, w, 3) uint8 to a PIL image."""

    def __call__(self, image: Any) -> Image.Image:
        """Convert."""
        return Image.fromarray(image)


class RandomCrop:
    """A uniform square window of a PIL image."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        """Draw a window and cut."""
        width, height = image.size
        top, left = (int(torch.randint(0, side - self.size + 1, (1,)).item()) for side in (height, width))
        return image.crop((left, top, left + self.size, top + self.size))


class ToTensor:
    """(h, w, 3) uint8 to (3, h, w) float32 in [0, 1]."""

    def __call__(self, image: Any) -> Tensor:
        """Convert and divide."""
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1)).contiguous()
        return pixels.to(torch.float32).div(255)


TRANSFORMS = {t.__name__: t for t in (Compose, ToPILImage, RandomCrop, ToTensor)}
