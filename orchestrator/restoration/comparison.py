"""Before and after: a sheet of photographs beside their results, read back from the files that were written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from orchestrator.errors import PhotoError
from orchestrator.imaging.contact_sheet import image_grid
from orchestrator.imaging.photos import Photo, decode
from orchestrator.restoration.locations import Place

MOST_ROWS = 20
CELL_PIXELS = 640
_LABEL_CHARACTERS = 28
_ORIENTATION = 274


def comparison(pairs: Sequence[tuple[Place, Place]], out: Path) -> Path:
    """Write a PNG with a row per (photograph, result), of the first `MOST_ROWS`. Raises PhotoError."""
    rows = []
    for pair in pairs[:MOST_ROWS]:
        rows.append([_upright(decode(place.store.read(place.key), str(place))) for place in pair])
    labels = [_short(result.key) for _, result in pairs[:MOST_ROWS]]
    page = image_grid(rows, ("before", "after"), labels, cell=CELL_PIXELS)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        page.save(out, "PNG")
    except OSError as error:
        raise PhotoError(f"--compare {out}: cannot be written ({error.strerror})") from error
    return out


def _upright(photo: Photo) -> NDArray[np.uint8]:
    """Return (h, w, 3) as a viewer shows it: turned as the tags say, and no larger than a cell of the sheet."""
    image = Image.fromarray(np.rint(np.moveaxis(photo.pixels, 0, 2) * 255).astype(np.uint8))
    tags = Image.Exif()
    tags.load(photo.exif)
    if _ORIENTATION in tags:
        image.getexif()[_ORIENTATION] = tags[_ORIENTATION]
        ImageOps.exif_transpose(image, in_place=True)
    image.thumbnail((CELL_PIXELS, 2 * CELL_PIXELS), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _short(key: str) -> str:
    return key if len(key) <= _LABEL_CHARACTERS else f"…{key[1 - _LABEL_CHARACTERS :]}"
