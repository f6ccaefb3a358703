"""Valid files of every variety are read, or one error names what they are and what to do."""

from __future__ import annotations

import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from orchestrator.errors import PhotoError, UnsupportedPhotoError
from orchestrator.imaging.photos import Limits, decode, encode, image_size, losses
from orchestrator.imaging.samples import SRGB
from orchestrator.imaging.tags import Directory, dump
from tests.claims import assert_one_clear_error
from tests.orchestrator.imaging.test_metadata import ARTIST, SIZE, saved, scene, tiff

ALPHA = {"extrasamples": ["unassalpha"]}
VARIETIES = {
    "bigtiff": (tiff(scene(3), bigtiff=True, photometric="rgb"), scene(3)),
    "bigtiff-16-big-endian": (
        tiff(scene(3, np.uint16), bigtiff=True, photometric="rgb", byteorder=">"),
        scene(3, np.uint16),
    ),
    "bigtiff-grey-alpha-16": (
        tiff(scene(2, np.uint16), bigtiff=True, photometric="minisblack", planarconfig="contig", **ALPHA),
        scene(2, np.uint16),
    ),
    "planar": (
        tiff(scene(3).transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
        scene(3),
    ),
    "tiled": (
        tiff(scene(3), photometric="rgb", tile=(16, 16), compression="deflate", predictor=True),
        scene(3),
    ),
    "white-is-zero": (tiff(255 - scene(1), photometric="miniswhite"), scene(1)),
    "white-is-zero-16": (tiff(65535 - scene(1, np.uint16), photometric="miniswhite"), scene(1, np.uint16)),
    "float-white-is-zero": (tiff(1 - scene(1, np.float32), photometric="miniswhite"), scene(1, np.float32)),
    "lzw-jpeg-name": (tiff(scene(1), compression="lzw"), scene(1)),
}


@pytest.mark.parametrize("name", VARIETIES)
def test_a_variety_of_tiff_comes_back_with_equal_samples(name: str) -> None:
    data, picture = VARIETIES[name]
    assert image_size(data, name) == SIZE
    photo = decode(data, name)
    written = tifffile.imread(io.BytesIO(encode(photo.pixels, photo)))
    np.testing.assert_allclose(written, picture, atol=1e-6 if picture.dtype.kind == "f" else 0)


@pytest.mark.parametrize("mode", ["1", "P", "PA", "LA", "RGBA"])
def test_modes_of_a_small_depth_are_read_in_their_colours(mode: str) -> None:
    with Image.fromarray(scene(4)) as picture:
        shown = picture.convert(mode) if mode not in ("P", "PA") else picture.convert("RGB").quantize(16)
        expected = np.asarray(shown.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
        for kind in ("PNG", "TIFF"):
            out = io.BytesIO()
            shown.save(out, kind)
            np.testing.assert_allclose(decode(out.getvalue(), "a").pixels, expected, atol=1e-6)


def test_thumbnails_and_masks_beside_one_picture_are_left_out_and_named() -> None:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        file.write(scene(3, size=(4, 6)), photometric="rgb", subfiletype=1)
        file.write(scene(3, np.uint16), photometric="rgb", metadata=None)
        file.write(scene(1) > 100, photometric="mask", subfiletype=4)
    photo = decode(out.getvalue(), "a.tif")
    assert losses(photo) == "a.tif: not kept in the TIFF: thumbnails and masks."
    np.testing.assert_array_equal(
        tifffile.imread(io.BytesIO(encode(photo.pixels, photo))), scene(3, np.uint16)
    )
    with tifffile.TiffWriter(out := io.BytesIO()) as file:
        file.write(scene(1), subfiletype=1)
    with pytest.raises(PhotoError, match="holds no full picture"):
        decode(out.getvalue(), "a.tif")


@pytest.mark.parametrize("profile", [b"", b"no profile"])
def test_cmyk_and_lab_become_srgb_and_it_is_said(profile: bytes) -> None:
    cmyk = Image.fromarray(scene(3)).convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        out = io.BytesIO()
        cmyk.save(out, kind, icc_profile=profile, **({"quality": 100} if kind == "JPEG" else {}))
        photo = decode(out.getvalue(), "print")
        assert np.abs(photo.pixels.transpose(1, 2, 0) - scene(3) / 255).max() < 0.1
        assert "the colours as CMYK, which became sRGB" in losses(photo)
        with Image.open(io.BytesIO(encode(photo.pixels, photo))) as image:
            assert image.mode == "RGB"
            assert image.info["icc_profile"] == SRGB
    lab = ImageCms.createProfile("LAB")
    picture = ImageCms.profileToProfile(
        Image.fromarray(scene(3)), ImageCms.createProfile("sRGB"), lab, outputMode="LAB"
    )
    assert picture is not None
    out = io.BytesIO()
    picture.save(out, "TIFF")
    photo = decode(out.getvalue(), "lab.tif")
    assert np.abs(photo.pixels.transpose(1, 2, 0) - scene(3) / 255).max() < 0.05
    assert "LAB" in losses(photo)


def test_twelve_bits_of_a_jpeg_stay_twelve() -> None:
    picture = (scene(3, np.uint16) >> 4).astype(np.uint16)
    data = bytes(imagecodecs.jpeg8_encode(picture, level=100, bitspersample=12, subsampling="444"))
    photo = decode(data, "a.jpg")
    assert photo.bits == 12
    result = encode(photo.pixels, photo)
    assert np.abs(imagecodecs.jpeg8_decode(result).astype(int) - picture).max() < 300
    assert losses(photo) == ""
    assert "the depth of 12 bits" in losses(photo, "WEBP")
    deep = decode(encode(photo.pixels, photo, "PNG"), "a.png")
    assert np.abs(deep.pixels - photo.pixels).max() < 1e-4


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_without_its_end_marker_is_complete_and_one_without_pixels_is_not(
    mode: str, options: dict
) -> None:
    out = io.BytesIO()
    Image.fromarray(scene(3, size=(80, 90))).convert(mode).save(out, "JPEG", **options)
    data = out.getvalue()
    whole = decode(data, "a.jpg").pixels
    for cut in (data[:-2], data[:-1]):
        np.testing.assert_array_equal(decode(cut, "a.jpg").pixels, whole)
    for share in (0.9, 0.7, 0.5):
        with pytest.raises(PhotoError, match="damaged or incomplete"):
            decode(data[: int(len(data) * share)], "a.jpg")


def test_threads_that_decode_leave_the_filters_of_warnings_as_they_are() -> None:
    data = saved(scene(3), "WEBP")
    decode(data, "a")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: decode(data, str(name)), range(100)))
    assert warnings.filters == before


def test_large_texts_of_a_png_are_kept() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * 2_000_000, zip=True)
    texts.add_text("prompt", "y" * 2_000_000)
    photo = decode(saved(scene(3), "PNG", pnginfo=texts), "a.png")
    assert b"y" * 2_000_000 in encode(photo.pixels, photo)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_smallest_pictures_come_back(kind: str, size: tuple[int, int], channels: int) -> None:
    picture = np.zeros((*size, channels), np.uint8) + np.arange(50, 50 + channels, dtype=np.uint8)
    photo = decode(bytes(imagecodecs.png_encode(picture)), "a.png")
    if channels in (2, 4) and kind in ("JPEG", "BMP"):
        with pytest.raises(PhotoError, match="has transparency"):
            encode(photo.pixels, photo, kind)
        return
    assert decode(encode(photo.pixels, photo, kind), "b").size == size


def test_pixels_that_a_header_only_claims_are_not_made_up() -> None:
    big = bytearray(saved(scene(3), "JPEG"))
    at = big.index(b"\xff\xc0")
    big[at + 5 : at + 9] = struct.pack(">HH", 6_000, 4_000)
    with pytest.raises(PhotoError, match="damaged or incomplete"):
        decode(bytes(big), "a.jpg")
    strips = bytearray(tiff(scene(1), rowsperstrip=1))
    at = strips.index(struct.pack("<HHI", 257, 4, 1))
    strips[at + 8 : at + 10] = struct.pack("<H", 60_000)
    with pytest.raises(PhotoError, match="parts of its pixels are missing"):
        decode(bytes(strips), "a.tif")
    canvas = bytearray(saved(scene(3), "GIF"))
    canvas[6:10] = struct.pack("<HH", 6_000, 4_000)
    with pytest.raises(PhotoError, match="does not fill its 6000 x 4000 pixels"):
        decode(bytes(canvas), "a.gif")


def ftyp(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand + bytes(100)


OTHERS = {
    "film.heic": (ftyp(b"hevc"), "is a HEIC of several pictures, which is not read here. Save one"),
    "film.avif": (ftyp(b"avis"), "is an animated AVIF, which is not read here. Save one of its pictures"),
    "film.mov": (ftyp(b"qt  "), "is a video, which is not read here."),
    "a.jxl": (b"\xff\x0a" + bytes(40), "is a JPEG XL, which is not read here. Convert it"),
    "a.jp2": (saved(scene(3), "JPEG2000"), "is a JPEG 2000, which is not read here."),
    "a.psd": (b"8BPS" + bytes(40), "is a Photoshop file, which is not read here."),
    "a.pdf": (b"%PDF-1.7" + bytes(40), "is a PDF, which is not read here."),
    "evil.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is a PostScript program, which is not read here."),
    "a.cr2": (
        b"II*\0\x10\0\0\0CR\x02\0" + bytes(40),
        "is a raw file of a camera, which is not read here. Develop",
    ),
    "u32.tif": (
        tiff(scene(3, np.uint32), photometric="rgb"),
        "has whole numbers of 32 bits. Save it with 8 or 16",
    ),
    "hdr.tif": (tiff(scene(1, np.float32) * 3), "has floats from 0.2"),
    "nan.tif": (tiff(scene(1, np.float32) * np.float32(np.nan)), "has floats from nan to nan"),
    "cmyk16.tif": (
        tiff(scene(4, np.uint16), photometric="separated"),
        "has 16-bit samples of CMYK. Convert it",
    ),
    "lab16.tif": (
        tiff(scene(3, np.uint16), photometric="cielab"),
        "has 16-bit samples of CIELAB. Convert it",
    ),
    "lossless16.jpg": (
        bytes(imagecodecs.jpeg8_encode(scene(1, np.uint16), lossless=True, bitspersample=16)),
        "is a 16-bit JPEG of a rare kind (frame C3), which is not read here. Convert it to a 16-bit PNG",
    ),
    "jxl.tif": (tiff(scene(3), compression="jpegxl"), "is a TIFF compressed by JPEG XL, which is not read"),
    "packed.tif": (
        tiff(scene(3), compression="packbits", predictor=True),
        "is a TIFF compressed by PackBits with a predictor, which is not read here. Save it with LZW",
    ),
    "five.tif": (tiff(scene(5), photometric="rgb"), "has 5 channels. A photograph has 1 or 3"),
    "pages.tif": (tiff(np.stack([scene(1)] * 2), photometric="minisblack"), "holds 2 pictures"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_read_is_called_by_its_name_with_what_to_do(name: str) -> None:
    data, says = OTHERS[name]
    with pytest.raises(PhotoError) as refusal:
        decode(data, name)
    assert_one_clear_error(refusal.value, f"{name}: {says}")
    if "not read here" in says and "JPEG of" not in says and not name.endswith(".tif"):
        with pytest.raises(UnsupportedPhotoError):
            image_size(data, name)


def test_sizes_are_checked_before_pixels_are_decoded() -> None:
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "AVIF", "GIF"):
        data = saved(scene(3), kind)
        assert image_size(data, "a") == SIZE
        with pytest.raises(PhotoError, match="million pixels"):
            decode(data, "a", Limits(pixels=SIZE[0] * SIZE[1] - 1))


def avif(picture: np.ndarray, **options: object) -> bytes:
    return bytes(imagecodecs.avif_encode(picture, level=100, **options))


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_avif_becomes_a_png_of_its_depth(channels: int, bits: int) -> None:
    picture = (scene(channels, np.uint16) >> (16 - bits)).astype(np.uint8 if bits == 8 else np.uint16)
    photo = decode(avif(picture, bitspersample=bits), "a.avif")
    assert (photo.format, photo.bits, photo.size, photo.has_alpha) == ("AVIF", bits, SIZE, channels == 4)
    assert losses(photo) == ""
    result = imagecodecs.png_decode(encode(photo.pixels, photo))
    assert result.dtype == (np.uint8 if bits == 8 else np.uint16)
    white = 2**bits - 1
    assert np.abs(result / float(np.iinfo(result.dtype).max) - picture / white).max() < 0.01
    assert encode(photo.pixels, photo, "JPEG" if channels != 4 else "WEBP")


@pytest.mark.parametrize("turn", range(1, 9))
def test_metadata_of_an_avif_is_kept_and_its_boxes_say_the_orientation(turn: int) -> None:
    with_turn = Image.Exif()
    with_turn[274] = turn
    data = saved(scene(3), "AVIF", exif=with_turn.tobytes(), icc_profile=SRGB, xmp=b"<x/>")
    photo = decode(data, "a.avif")
    assert photo.metadata.orientation == turn
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        with Image.open(io.BytesIO(encode(photo.pixels, photo, kind))) as image:
            assert image.getexif().get(274, 1) == turn
            assert image.info["icc_profile"] == SRGB
        assert losses(photo, kind) == ""


def test_a_text_of_any_alphabet_survives_when_the_boxes_of_an_avif_contradict_its_exif() -> None:
    exif = Directory("<")
    stand_in = b"x" * len(ARTIST)  # since Pillow writes other alphabets as question marks
    exif.set_bytes(315, stand_in + b"\0", kind=2)
    exif.set(274, 3, 6)
    data = saved(scene(3), "AVIF", exif=dump(exif)).replace(stand_in, ARTIST)
    assert data.count(b"irot\x03") == 1
    photo = decode(data.replace(b"irot\x03", b"irot\x01"), "a.avif")
    assert photo.metadata.orientation == 8
    assert ARTIST in encode(photo.pixels, photo)


def test_the_colour_space_of_an_avif_without_a_profile_is_in_the_png() -> None:
    photo = decode(avif(scene(3), primaries=12, transfer=13, matrix=6), "a.avif")
    assert b"cICP\x0c\x0d\x00\x01" in encode(photo.pixels, photo)
    assert losses(photo) == ""
    assert losses(photo, "JPEG") == "a.avif: not kept in the JPEG: the colour space (cICP)."
    assert b"cICP" not in encode(photo.pixels, decode(avif(scene(3)), "a.avif"))


def test_an_avif_that_codes_more_pixels_than_it_says_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagecodecs, "avif_decode", pytest.fail)
    data = bytearray(saved(np.zeros((1_000, 1_000, 3), np.uint8), "AVIF", speed=10))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 64, 64)
    with pytest.raises(PhotoError, match="says 64 x 64 pixels and codes 1,000,000"):
        decode(bytes(data), "a.avif")
    with pytest.raises(PhotoError, match="says 64 x 64"):
        image_size(bytes(data), "a.avif")


@pytest.mark.parametrize("mode", ["L", "P", "1"])
@pytest.mark.parametrize("options", [{}, {"transparency": 0}, {"interlace": 0}])
def test_a_gif_of_one_picture_becomes_a_png(mode: str, options: dict) -> None:
    picture = Image.fromarray(scene(3)).convert("RGB").quantize(16).convert("RGB").convert(mode)
    out = io.BytesIO()
    picture.save(out, "GIF", **options)
    data = out.getvalue()
    assert image_size(data, "a") == SIZE
    photo = decode(data, "a.gif")
    with (
        Image.open(io.BytesIO(data)) as expected,
        Image.open(io.BytesIO(encode(photo.pixels, photo))) as image,
    ):
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), np.asarray(expected.convert("RGBA")))


@pytest.mark.parametrize("kind", ["GIF", "AVIF", "WEBP", "PNG"])
def test_an_animation_is_called_one(kind: str) -> None:
    frames = [Image.fromarray(scene(3, size=(8, 9)) // np.uint8(number)) for number in (1, 2, 3)]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(PhotoError, match=r"holds several pictures|holds 3 pictures|is an animated AVIF"):
        decode(out.getvalue(), "a")


def test_a_comment_of_a_gif_is_lost_and_it_is_said() -> None:
    photo = decode(saved(scene(1), "GIF", comment=b"mine"), "a.gif")
    assert losses(photo) == "a.gif: not kept in the PNG: comment."
