"""Image files in: 8-bit RGB or one clear error that names the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import UnidentifiedImageError

from shards.errors import PackError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
_READABLE = {"RGB", "L", "P", "1"}


def read_image(path: Path) -> NDArray[np.uint8]:
    """Pixels of a file, (h, w, 3) uint8 RGB; grey becomes three equal channels.

    16-bit, alpha and CMYK files are refused rather than converted: what they lose would be silent.
    Orientation tags are not applied, since the published pairs were made without them.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PilImage.DecompressionBombWarning)
            with PilImage.open(path) as image:
                if image.mode not in _READABLE or "transparency" in image.info:
                    raise PackError(f"{path}: mode {image.mode} is not 8-bit grey or RGB. Convert it first.")
                return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise PackError(f"{path}: there is no such file.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise PackError(
            f"{path}: not a readable image ({error}). Replace the file or take it away."
        ) from error
    except (PilImage.DecompressionBombError, PilImage.DecompressionBombWarning) as error:
        raise PackError(f"{path}: {error}. Nothing photographic is that large; take it away.") from error


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder and its subfolders, sorted; hidden files are left out."""
    if not folder.is_dir():
        raise PackError(f"{folder}: there is no such folder.")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts[-2:])
    )
    if not found:
        raise PackError(f"{folder}: no image files ({', '.join(SUFFIXES)}).")
    return found


def halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half the size, each pixel the mean of four: takes the compression artefacts out of a JPEG."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    quads = image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    mean: NDArray[np.uint8] = np.round(quads.mean(axis=(1, 3))).astype(np.uint8)
    return mean
