"""Convert images between float tensors, 8-bit arrays and PNG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from orchestrator.errors import OutputError


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """Return an (h, w, 3) image as a PNG file."""
    return encode_png(Image.fromarray(image))


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """Return a float (3, h, w) image in [0, 1] as (h, w, 3) uint8, rounded."""
    rounded = image.detach().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(1, 2, 0).cpu().numpy())


def encode_png(picture: Image.Image) -> bytes:
    """Return a PIL image as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def encode_picture(picture: Image.Image, name: Path) -> bytes:
    """Return a PIL image as the kind of file that `name` says. Raises OutputError for one that Pillow cannot write."""
    kind = Image.registered_extensions().get(name.suffix.lower(), "")
    if kind not in ("PNG", "JPEG", "WEBP"):
        raise OutputError(f"{name}: pictures are written as .png, .jpg or .webp. Choose one of these.")
    file = io.BytesIO()
    picture.save(file, kind, **({} if kind == "PNG" else {"quality": 92}))
    return file.getvalue()


def to_float(image: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return an (h, w, 3) uint8 image as float (3, h, w) in [0, 1] on `device`."""
    return torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1).float().div_(255)
