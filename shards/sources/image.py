"""References to source images: small, picklable, and equal when they refer to the same image.

The process that packs a shard, on this machine or another, reads the pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.degrade import degrade
from shards.errors import PackError
from shards.images import halve, read_header, read_image

Image = NDArray[np.uint8]


class SourceImage(Protocol):
    """Protocol of a reference to an image of a source."""

    @property
    def name(self) -> str:
        """Origin of the image, for messages."""

    @property
    def file(self) -> Path | None:
        """File that holds exactly this image; None when it is cropped, computed or part of a larger file."""

    @property
    def cache_key(self) -> str:
        """Text that changes when the image changes; a resumed packing skips images whose key is unchanged."""

    def size(self) -> tuple[int, int]:
        """Return height and width in pixels, without decoding. Raises PackError."""

    def pixels(self) -> Image:
        """Return all pixels, (h, w, 3) uint8 RGB, read-only. Raises PackError."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A whole image file."""

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def file(self) -> Path:
        """The path."""
        return self.path

    @property
    def cache_key(self) -> str:
        """Path, size in bytes and modification time."""
        return _stamp(self.path)

    def size(self) -> tuple[int, int]:
        """Return height and width from the file's header."""
        header = read_header(self.path)
        return header.height, header.width

    def pixels(self) -> Image:
        """Return all pixels; the last few files are cached."""
        return _read(self.path, _stamp(self.path))


class _NoFile:
    """An image without a file of its own: it is cropped, computed or part of a larger file."""

    __slots__ = ()

    @property
    def file(self) -> None:
        """None."""
        return None


@dataclass(frozen=True, slots=True)
class CroppedImage(_NoFile):
    """A window of another image."""

    whole: SourceImage
    top: int
    left: int
    height: int
    width: int
    of: tuple[int, int] | None = None
    """Required height and width of the whole image; None: any that contains the window."""

    @property
    def name(self) -> str:
        """The image and the window."""
        return f"{self.whole.name} at ({self.left}, {self.top})"

    @property
    def cache_key(self) -> str:
        """Key of the whole image, and the window."""
        return f"{self.whole.cache_key} {self.top},{self.left},{self.height},{self.width}"

    def size(self) -> tuple[int, int]:
        """Return height and width of the window. Raises PackError when the image does not contain it."""
        height, width = self.whole.size()
        if self.of is not None and (height, width) != self.of:
            raise PackError(
                f"{self.whole.name}: {width} x {height} pixels; windows are cut from {self.of[1]} x {self.of[0]}."
            )
        if self.top + self.height > height or self.left + self.width > width:
            raise PackError(f"{self.whole.name}: {width} x {height} pixels, too small for its windows.")
        return self.height, self.width

    def pixels(self) -> Image:
        """Return the pixels of the window."""
        return self.whole.pixels()[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True, slots=True)
class HalvedImage(_NoFile):
    """Another image at half size, which removes the compression artefacts of a JPEG."""

    whole: SourceImage

    @property
    def name(self) -> str:
        """Name of the whole image."""
        return self.whole.name

    @property
    def cache_key(self) -> str:
        """Key of the whole image, marked as halved."""
        return f"{self.whole.cache_key} halved"

    def size(self) -> tuple[int, int]:
        """Return half of the image's height and width."""
        height, width = self.whole.size()
        return height // 2, width // 2

    def pixels(self) -> Image:
        """Return the image with each pixel the mean of four."""
        return halve(self.whole.pixels())


@dataclass(frozen=True, slots=True)
class DegradedImage(_NoFile):
    """Another image after a synthetic degradation (`shards.degrade`)."""

    clean: SourceImage
    degradation: str
    seed: int
    draw: str
    """Name of this random draw; another name gives another draw."""

    @property
    def name(self) -> str:
        """The clean image and the degradation."""
        return f"{self.clean.name} with {self.degradation}"

    @property
    def cache_key(self) -> str:
        """Key of the clean image, and the draw."""
        return f"{self.clean.cache_key} {self.degradation},{self.seed},{self.draw}"

    def size(self) -> tuple[int, int]:
        """Return the clean image's height and width."""
        return self.clean.size()

    def pixels(self) -> Image:
        """Return the degraded pixels."""
        return degrade(self.clean.pixels(), self.degradation, self.seed, self.draw)


@dataclass(frozen=True, slots=True)
class MatlabImage(_NoFile):
    """One image of a MATLAB array [N, h, w, 3] of 8 bits."""

    path: Path
    variable: str
    index: int

    @property
    def name(self) -> str:
        """File, variable and index."""
        return f"{self.path}: {self.variable}[{self.index}]"

    @property
    def cache_key(self) -> str:
        """Key of the file, and the index."""
        return f"{_stamp(self.path)} {self.variable}[{self.index}]"

    def size(self) -> tuple[int, int]:
        """Return height and width."""
        height, width = matlab_shape(self.path, self.variable)[1:3]
        return height, width

    def pixels(self) -> Image:
        """Return the image at the index."""
        image: Image = np.ascontiguousarray(matlab_array(self.path, self.variable)[self.index])
        return image


def matlab_array(path: Path, variable: str) -> NDArray[Any]:
    """Return the array [N, h, w, 3] of a MATLAB file; the last two are cached. Raises PackError."""
    return _matlab(path, variable, _stamp(path))


def matlab_shape(path: Path, variable: str) -> tuple[int, ...]:
    """Return the shape of an array of a MATLAB file, without reading it. Raises PackError."""
    with _explained(path):
        from scipy.io import whosmat

        shapes = {name: tuple(shape) for name, shape, _ in whosmat(path)}
    if len(shapes.get(variable, ())) != 4:
        raise PackError(
            f"{path}: variable {variable!r}, an array [N, h, w, 3], is missing; the file has: "
            f"{', '.join(f'{name} {shape}' for name, shape in shapes.items()) or 'none'}."
        )
    return shapes[variable]


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SciPy's exceptions into errors that name the file."""
    try:
        yield
    except NotImplementedError as error:  # SciPy raises it for MATLAB 7.3 files
        raise PackError(
            f"{path}: MATLAB 7.3 files are not read. Save it with -v7, or as PNG files."
        ) from error
    except (OSError, ValueError, TypeError, LookupError, EOFError, zlib.error) as error:
        raise PackError(f"{path}: not a readable MATLAB file ({error}). Download it again.") from error


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError as error:
        raise PackError(f"{path}: cannot be read ({error.strerror}).") from error
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


@lru_cache(maxsize=4)
def _read(path: Path, stamp: str) -> Image:
    image = read_image(path)
    image.setflags(write=False)
    return image


@lru_cache(maxsize=2)
def _matlab(path: Path, variable: str, stamp: str) -> NDArray[Any]:
    with _explained(path):
        from scipy.io import loadmat

        array = loadmat(path, variable_names=[variable]).get(variable)
    if array is None or array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8:
        shown = "absent" if array is None else f"{array.dtype} of shape {array.shape}"
        raise PackError(
            f"{path}: variable {variable!r} is {shown}; an array [N, h, w, 3] of 8 bits is needed."
        )
    result: NDArray[Any] = array
    return result
