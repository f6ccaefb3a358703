"""The tiled container loses no pixel and refuses what it cannot read."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import tiles
from shards.errors import CorruptObjectError, PackError
from shards.photographs import PHOTOGRAPHS, read_photograph


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = np.add.outer(np.arange(height), np.arange(width))[..., None] + rng.integers(0, 40, (1, 1, 3))
    return ((smooth + rng.integers(0, 12, (height, width, 3))) % 256).astype(np.uint8)


@pytest.mark.parametrize("codec", ["fast", "compact"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (63, 65), (64, 64), (65, 129), (97, 130)])
def test_every_pixel_comes_back(codec: str, shape: tuple[int, int]):
    image = picture(*shape)
    packed = tiles.encode(image, codec)
    assert tiles.TiledImage(packed).shape == shape
    np.testing.assert_array_equal(tiles.decode(packed), image)


@settings(max_examples=60)
@given(st.integers(1, 140), st.integers(1, 140), st.sampled_from(["fast", "compact"]), st.data())
def test_a_crop_is_the_same_slice_of_the_image(height: int, width: int, codec: str, data: st.DataObject):
    image = picture(height, width)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    h, w = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    packed = tiles.encode(image, codec, tile=data.draw(st.sampled_from([16, 64, 100])))
    np.testing.assert_array_equal(
        tiles.TiledImage(packed).crop(top, left, h, w), image[top : top + h, left : left + w]
    )


@pytest.mark.parametrize("codec", ["fast", "compact"])
def test_photographs_come_back_exactly(codec: str):
    image = read_photograph(PHOTOGRAPHS[0])
    np.testing.assert_array_equal(tiles.decode(tiles.encode(image, codec)), image)


def test_a_crop_decodes_only_the_tiles_it_touches():
    image = picture(256, 256)
    packed = bytearray(tiles.encode(image))
    starts = struct.unpack_from("<17I", packed, 16)
    payload = 16 + 4 * 17
    packed[payload + starts[15] : payload + starts[16]] = bytes(
        starts[16] - starts[15]
    )  # the last tile is dead
    np.testing.assert_array_equal(tiles.TiledImage(bytes(packed)).crop(0, 0, 192, 192), image[:192, :192])
    with pytest.raises(CorruptObjectError, match="tile 15"):
        tiles.decode(bytes(packed))


@pytest.mark.parametrize(
    "image", [picture(8, 8)[..., 0], picture(8, 8).astype(np.uint16), np.zeros((8, 8, 4), np.uint8)]
)
def test_only_8_bit_rgb_is_packed(image: np.ndarray):
    with pytest.raises(PackError, match="8-bit RGB"):
        tiles.encode(image)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda b: b"",
        lambda b: b[:10],
        lambda b: b[:20],
        lambda b: b[:-1],
        lambda b: b + b"\0",
        lambda b: b"<html><body>404 Not Found</body></html>",
        lambda b: b"XXXX" + b[4:],
        lambda b: b[:4] + struct.pack("<II", 2**31, 2**31) + b[12:],
        lambda b: b[:14] + b"\x09" + b[15:],
        lambda b: b[:15] + b"\x04" + b[16:],
        lambda b: b[:12] + b"\0\0" + b[14:],
    ],
)
def test_a_container_that_is_damaged_is_refused(spoil):
    with pytest.raises(CorruptObjectError):
        tiles.decode(spoil(tiles.encode(picture(70, 70))))


@settings(max_examples=150)
@given(st.data(), st.sampled_from(["fast", "compact"]))
def test_no_flipped_byte_escapes_as_another_error(data: st.DataObject, codec: str):
    packed = bytearray(tiles.encode(picture(70, 70), codec))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(CorruptObjectError):
        tiles.decode(bytes(packed))  # changed pixels are caught by the manifest's checksums


def test_a_tile_that_says_that_it_is_large_is_not_decoded(monkeypatch: pytest.MonkeyPatch):
    data = tiles.encode(np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setattr(tiles.imagecodecs, "qoi_decode", pytest.fail)
    with pytest.raises(CorruptObjectError, match="says another size"):
        tiles.decode(
            data.replace(b"qoif" + struct.pack(">II", 64, 64), b"qoif" + struct.pack(">II", 64, 2**21))
        )
