"""Draw a grid of captioned images, for example degraded, restored and clean in each row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL_PIXELS = 320
GAP_PIXELS = 8
TEXT_PIXELS = 18
BACKGROUND, TEXT_COLOUR, CAPTION_COLOUR = (255, 255, 255), (20, 20, 20), (95, 95, 95)


def image_grid(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    titles: Sequence[str],
    row_labels: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    cell: int = CELL_PIXELS,
) -> Image.Image:
    """Return a grid of `rows` of images (h, w, 3) with a title per column and a label per row.

    Images wider than `cell` pixels are reduced. Narrower ones are enlarged by whole factors, which keeps their pixels
    visible. `captions` are drawn below the images, for example "24.31 dB"; they may have several lines.
    """
    font = ImageFont.load_default(TEXT_PIXELS)
    line = TEXT_PIXELS + 8
    widest = max(picture.shape[1] for row in rows for picture in row)
    cell = cell if widest > cell else widest * (cell // widest)
    scaled = [[_to_width(picture, cell) for picture in row] for row in rows]
    label_width = 2 * GAP_PIXELS + max(int(font.getlength(label)) for label in row_labels)
    lines = [max(text.count("\n") + 1 for text in row) for row in captions or [("",)] * len(rows)]
    heights = [
        max(picture.height for picture in row) + (count * line if captions else 0)
        for row, count in zip(scaled, lines, strict=True)
    ]
    width = label_width + len(titles) * (cell + GAP_PIXELS)
    page = Image.new("RGB", (width, line + GAP_PIXELS + sum(heights) + GAP_PIXELS * len(rows)), BACKGROUND)
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        middle = label_width + column * (cell + GAP_PIXELS) + cell // 2
        draw.text((middle, GAP_PIXELS), title, TEXT_COLOUR, font, anchor="ma")
    top = line + GAP_PIXELS
    for index, (row, height) in enumerate(zip(scaled, heights, strict=True)):
        picture_height = max(picture.height for picture in row)
        draw.text((GAP_PIXELS, top + picture_height // 2), row_labels[index], TEXT_COLOUR, font, anchor="lm")
        for column, picture in enumerate(row):
            left = label_width + column * (cell + GAP_PIXELS)
            page.paste(picture, (left, top))
            if captions:
                place = (left + cell // 2, top + picture_height + 5)
                draw.text(place, captions[index][column], CAPTION_COLOUR, font, "ma", align="center")
        top += height + GAP_PIXELS
    return page


def _to_width(picture: NDArray[np.uint8], width: int) -> Image.Image:
    image = Image.fromarray(picture)
    if width % image.width == 0:
        return image.resize((width, image.height * width // image.width), Image.Resampling.NEAREST)
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
