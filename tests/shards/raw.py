"""Small cuts of real photographs, laid out on disk exactly as the public datasets are."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from shards.photographs import PHOTOGRAPHS, read_photograph

_NAMES = ("chelsea", "china", "coffee", "rocket", "astronaut", "flower", "motorcycle_left", "hubble")


@cache
def _photographs() -> tuple[np.ndarray, ...]:
    return tuple(read_photograph(p) for p in PHOTOGRAPHS if p.name in _NAMES)


def cut(number: int, height: int = 40, width: int = 48) -> np.ndarray:
    """The `number`-th cut: another place of another photograph each time; tiled where photographs are smaller."""
    image = _photographs()[number % len(_NAMES)]
    times = (-(-height // image.shape[0]), -(-width // image.shape[1]), 1)
    image = np.tile(image, times)
    step = number // len(_NAMES)
    top = (step * 37) % (image.shape[0] - height + 1)
    left = (step * 61) % (image.shape[1] - width + 1)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def harmed(pixels: np.ndarray, strength: int = 1) -> np.ndarray:
    """A degraded twin: darker the more `strength` there is."""
    return (pixels // (1 + strength)).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix in (".jpg", ".jpeg") else {}))


def lay_clean(root: Path, names: Iterable[str], size: tuple[int, int] = (40, 48)) -> None:
    """Clean photographs under these names."""
    for number, name in enumerate(names):
        save(root / name, cut(number, *size))


def lay_pairs(root: Path, pairs: Iterable[tuple[str, str]], size: tuple[int, int] = (40, 48)) -> None:
    """(degraded, clean) files; those with the same clean name share its photograph."""
    cleans: dict[str, np.ndarray] = {}
    for number, (degraded, clean) in enumerate(pairs):
        if clean not in cleans:
            cleans[clean] = cut(len(cleans), *size)
            save(root / clean, cleans[clean])
        save(root / degraded, harmed(cleans[clean], 1 + number % 5))


def seal_jpeg(data: bytearray) -> None:
    """Write all checksums in a JPEG of intervals again, as whoever wants to break its reader does."""
    at = 20  # behind JFIF
    if len(data) < at + 36:
        return
    length, *_, tables, _, place = struct.unpack_from(">xxH8sIIII", data, at)
    scan, end = place, min(at + 2 + length, len(data))
    for entry in range(at + 36, end - 3, 4):
        (size,) = struct.unpack_from(">H", data, entry)
        struct.pack_into(">H", data, entry + 2, zlib.crc32(data[place : place + size]) & 0xFFFF)
        place += size
    crc = zlib.crc32(data[tables:scan], zlib.crc32(data[at + 16 : end], zlib.crc32(data[:at])))
    struct.pack_into(">I", data, at + 12, crc)
