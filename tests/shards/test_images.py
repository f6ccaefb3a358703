"""Pixels that a file does not hold never become training data."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from shards.errors import PackError
from shards.images import decode_image, read_header, read_image, read_samples, reduce_image

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)


def tiff(**how: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, PIXELS, photometric="rgb", **how)
    return file.getvalue()


FORMS = {
    "one strip": tiff(),
    "strips": tiff(rowsperstrip=7),
    "compressed strips": tiff(rowsperstrip=7, compression="deflate"),
    "tiles": tiff(tile=(16, 32)),
    "by Pillow": None,
}
WHOLE = {"strips": {"rowsperstrip": 7}, "tiles": {"tile": (16, 32)}, "long strip": {"rowsperstrip": 45}}


@pytest.mark.parametrize("form", FORMS)
def test_a_tiff_is_read_whole_or_refused(form: str) -> None:
    data = FORMS[form]
    if data is None:
        file = io.BytesIO()
        Image.fromarray(PIXELS).save(file, "TIFF")
        data = file.getvalue()
    assert np.array_equal(decode_image(data, "a.tif"), PIXELS)
    # The tag that holds the height, 40, as a 16- or 32-bit number.
    taller = re.sub(
        re.escape(struct.pack("<H", 257)) + rb"([\x03\x04]\x00\x01\x00\x00\x00)\x28\x00",
        lambda found: struct.pack("<H", 257) + found[1] + struct.pack("<H", 900),
        data,
        count=1,
    )
    assert taller != data
    for read in (decode_image, reduce_image, read_samples):
        with pytest.raises(PackError, match=r"a\.tif: not a readable image"):
            read(taller, "a.tif")


@pytest.mark.parametrize("how", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_whole_tiff_is_read_whatever_its_orientation(
    orientation: int, how: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(**how, extratags=[(274, 3, 1, orientation, True)]))
    pixels, header = read_image(path), read_header(path)
    assert sorted(pixels.ravel()) == sorted(PIXELS.ravel())
    assert pixels.shape[:2] == (header.height, header.width)
