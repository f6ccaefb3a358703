"""Read image files as 8-bit RGB, or raise an error that names the file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import UnidentifiedImageError

from shards.errors import PackError
from shards.filesystem import files_below, open_regular, read_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
"""Formats that are opened, whatever the suffix. Pillow knows others, and runs a program to read PostScript."""
MAX_PIXELS = 89_478_485
"""Maximum height times width: the number from which Pillow warns of a decompression bomb."""

# Pillow's warning is no error, and a filter that makes it one is shared by all threads: `_open` checks the size.
warnings.filterwarnings("ignore", category=PilImage.DecompressionBombWarning)

# Tags of TIFF.
_WIDTH, _HEIGHT = 256, 257
_STRIP_OFFSETS, _CHANNELS, _ROWS_PER_STRIP, _PLANAR = 273, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 322, 323, 324
_SEPARATE = 2
"""Value of _PLANAR where each channel has strips of its own."""

_READABLE = {"RGB", "L", "P", "1"}


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an image file."""

    height: int
    width: int
    format: str
    """Format as Pillow names it: PNG, JPEG ..."""
    mode: str
    """Mode as Pillow names it, with the suffix `;16` when a channel has 16 bits."""
    plain: bool
    """Whether the image is 8-bit grey or RGB without alpha."""


def read_header(path: Path) -> ImageHeader:
    """Read the header of a file, without its pixels. Raises PackError."""
    with _explained(str(path)), open_regular(path) as file, _open(file) as image:
        return _header(image)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of a file, (h, w, 3) uint8 RGB; grey becomes three equal channels. Raises PackError.

    16-bit, alpha and CMYK files are refused: a conversion would lose information silently. Orientation tags are not
    applied, since the published pairs were made without them.
    """
    with _explained(str(path)), open_regular(path) as file, _open(file) as image:
        return _rgb(image, str(path))


def decode_image(data: bytes, where: str) -> NDArray[np.uint8]:
    """Do `read_image` on the bytes of a file; `where` names them in errors."""
    with _explained(where), _open(io.BytesIO(data)) as image:
        return _rgb(image, where)


def reduce_image(data: bytes, where: str) -> NDArray[np.uint8]:
    """Return any image reduced to (h, w, 3) uint8 RGB for display: alpha and the lower of 16 bits are lost."""
    with _explained(where), _open(io.BytesIO(data)) as image:
        if not image.mode.startswith(("I", "F")):
            return np.array(image.convert("RGB"))
        grey = np.asarray(image, np.float64)
        white = 65_535 if image.mode.startswith("I") else max(float(grey.max()), 1e-6)
        shown: NDArray[np.uint8] = (np.clip(grey / white, 0, 1) * 255).astype(np.uint8)
        return np.repeat(shown[..., None], 3, axis=2)


def read_bytes(path: Path) -> bytes:
    """Return all bytes of a file. Raises PackError."""
    try:
        return read_regular(path)
    except OSError as error:
        raise PackError(f"{path}: cannot be read ({error.strerror}).") from error


def read_samples(data: bytes, where: str) -> NDArray[Any]:
    """Return all samples of a file with its own channels and depth (RGBA, 16-bit RGB ...); plain files as RGB."""
    with _explained(where), _open(io.BytesIO(data)) as image:
        header = _header(image)
        if header.plain:
            return _rgb(image, where)
        if header.format == "PNG":
            import imagecodecs

            samples: NDArray[Any] = imagecodecs.png_decode(data)
            return samples
        if header.mode.endswith(";16"):
            raise PackError(
                f"{where}: {header.format} files of 16-bit colour are not read. Save them as PNG."
            )
        image.load()
        return np.asarray(image)


def list_images(folder: Path) -> list[Path]:
    """Return the sorted image files of a folder and its subfolders, as `files_below` finds them. Raises PackError."""
    if not folder.is_dir():
        raise PackError(f"{folder}: there is no such folder.")
    found = sorted(folder / name for name in files_below(folder, SUFFIXES))
    if not found:
        raise PackError(f"{folder}: no image files ({', '.join(SUFFIXES)}).")
    return found


def halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image at half size, each pixel the mean of four; this removes JPEG compression artefacts."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    quads = image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    mean: NDArray[np.uint8] = np.round(quads.mean(axis=(1, 3))).astype(np.uint8)
    return mean


def _header(image: PilImage.Image) -> ImageHeader:
    deep = _is_deep(image)
    plain = image.mode in _READABLE and "transparency" not in image.info and not deep
    mode = f"{image.mode};16" if deep and not image.mode.startswith("I") else image.mode
    return ImageHeader(image.height, image.width, str(image.format), mode, plain)


def _is_deep(image: PilImage.Image) -> bool:
    """Return whether a channel has more than 8 bits in the file; Pillow opens 16-bit RGB files as 8-bit."""
    stored_as = str(getattr(image, "tile", ""))  # how Pillow will unpack it: RGB;16B
    return image.mode.startswith(("I", "F")) or ";16" in stored_as


def _rgb(image: PilImage.Image, where: str) -> NDArray[np.uint8]:
    header = _header(image)
    if not header.plain:
        raise PackError(
            f"{where}: mode {header.mode} is not 8-bit grey or RGB. Convert it first, or keep the files as "
            "they are with --encoding original."
        )
    return np.array(image.convert("RGB"))


@contextmanager
def _open(file: BinaryIO) -> Iterator[PilImage.Image]:
    with PilImage.open(file, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise PilImage.DecompressionBombError(
                f"{image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS:,}"
            )
        if image.format == "TIFF":
            _check_complete(image)
        yield image


def _check_complete(image: Any) -> None:
    """Raise ValueError if a TIFF has too few strips or tiles: Pillow leaves their pixels black."""
    tags = image.tag_v2
    columns, rows = (
        tags[_WIDTH],
        tags[_HEIGHT],
    )  # as stored: Pillow's are exchanged if the image is to be turned
    offsets, width, height = _STRIP_OFFSETS, columns, tags.get(_ROWS_PER_STRIP) or rows
    if _TILE_OFFSETS in tags:
        offsets, width, height = _TILE_OFFSETS, tags[_TILE_WIDTH], tags[_TILE_HEIGHT]
    planes = tags.get(_CHANNELS, 1) if tags.get(_PLANAR) == _SEPARATE else 1
    needed = planes * -(-columns // width) * -(-rows // height)
    missing = needed - sum(map(bool, tags.get(offsets, ())))
    if missing > 0:
        raise ValueError(f"{missing} of {needed} parts of its pixels are missing")


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn the exceptions of a broken file into an error that names it."""
    try:
        yield
    except PackError:
        raise
    except FileNotFoundError as error:
        raise PackError(f"{where}: there is no such file.") from error
    except PilImage.DecompressionBombError as error:
        raise PackError(f"{where}: {error}. No photograph is that large; remove it.") from error
    except UnidentifiedImageError as error:
        raise PackError(
            f"{where}: not a readable image (not one of {', '.join(FORMATS)}). Replace or remove the file."
        ) from error
    except Exception as error:  # decoders raise errors of any type for damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PackError(f"{where}: not a readable image ({reason}). Replace or remove the file.") from error
