"""The four torchvision transforms of the release's dataset class, with the same results and the same cost.

They replace torchvision where it is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Compose:
    """Applies transforms in order."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        """Return the transformed image."""
        for transform in self.transforms:
            image = transform(image)
        return image


class ToPILImage:
    """Converts (h, w, 3) uint8 to a PIL image."""

    def __call__(self, image: Any) -> Image.Image:
        """Return the PIL image."""
        return Image.fromarray(image)


class RandomCrop:
    """Cuts a square out of a PIL image at a uniformly distributed place."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the crop."""
        width, height = image.size
        top, left = (int(torch.randint(0, side - self.size + 1, (1,)).item()) for side in (height, width))
        return image.crop((left, top, left + self.size, top + self.size))


class ToTensor:
    """Converts (h, w, 3) uint8 to (3, h, w) float32 in [0, 1]."""

    def __call__(self, image: Any) -> Tensor:
        """Return the tensor."""
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1)).contiguous()
        return pixels.to(torch.float32).div(255)


TRANSFORMS = {t.__name__: t for t in (Compose, ToPILImage, RandomCrop, ToTensor)}
