"""Contact sheet of photographs beside their results, read from the written files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from orchestrator.imaging.contact_sheet import image_grid
from orchestrator.imaging.convert import encode_png
from orchestrator.imaging.photos import Photo, decode
from orchestrator.outputs import write_output
from orchestrator.restoration.locations import ObjectLocation

MAX_ROWS = 20
CELL_PIXELS = 640
_LABEL_CHARACTERS = 28
_ORIENTATION = 274


def comparison(pairs: Sequence[tuple[ObjectLocation, ObjectLocation]], out: Path) -> Path:
    """Write a PNG with one row per (photograph, result), for the first `MAX_ROWS`. Raises PhotoError, OutputError."""
    rows = []
    for pair in pairs[:MAX_ROWS]:
        rows.append([_upright(decode(location.store.read(location.key), str(location))) for location in pair])
    labels = [_short(result.key) for _, result in pairs[:MAX_ROWS]]
    page = image_grid(rows, ("before", "after"), labels, cell=CELL_PIXELS)
    return write_output(out, encode_png(page))


def _upright(photo: Photo) -> NDArray[np.uint8]:
    """Return the pixels (h, w, 3) with the EXIF orientation applied, reduced to a cell of the sheet."""
    image = Image.fromarray(np.rint(np.moveaxis(photo.pixels, 0, 2) * 255).astype(np.uint8))
    image.getexif()[_ORIENTATION] = photo.metadata.orientation
    ImageOps.exif_transpose(image, in_place=True)
    image.thumbnail((CELL_PIXELS, 2 * CELL_PIXELS), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _short(key: str) -> str:
    return key if len(key) <= _LABEL_CHARACTERS else f"…{key[1 - _LABEL_CHARACTERS :]}"
