"""Photographs in and out: a restoration changes pixels and nothing else."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from orchestrator.errors import PhotoError, ResultError
from orchestrator.imaging.contact_sheet import image_grid
from orchestrator.imaging.photos import Photo, decode, encode, format_for, read_photo
from tests.claims import assert_one_clear_error

HEIGHT, WIDTH = 37, 53
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
MAKE, ORIENTATION, EXPOSURE, LATITUDE = 271, 274, 33434, 2


def scene(channels: int, top: int = 255) -> np.ndarray:
    """A smooth picture with every channel different, (h, w, c) or (h, w)."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [(y * (3 + c) + x * (2 + 2 * c)) % 200 / 255 for c in range(channels)]
    picture = np.rint(np.stack(planes, 2) * top).astype(np.uint16 if top > 255 else np.uint8)
    return np.ascontiguousarray(picture[..., 0] if channels == 1 else picture)


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[MAKE] = "Zenit"
    tags[ORIENTATION] = 6
    tags.get_ifd(0x8769)[EXPOSURE] = 0.01
    tags.get_ifd(0x8825)[LATITUDE] = (48.0, 12.0, 30.0)
    return tags


def saved(path: Path, picture: np.ndarray, **options: object) -> Path:
    Image.fromarray(picture).save(path, exif=exif().tobytes(), icc_profile=ICC, **options)
    return path


def write_photo(path: Path, restored: np.ndarray, like: Photo) -> None:
    path.write_bytes(encode(restored, like, format_for(path.name, like)))


def darker(photo: Photo) -> np.ndarray:
    return photo.pixels * np.float32(0.5)


def assert_tags_kept(path: Path) -> None:
    with Image.open(path) as image:
        tags = image.getexif()
        assert tags[MAKE] == "Zenit"
        assert tags[ORIENTATION] == 6
        assert float(tags.get_ifd(0x8769)[EXPOSURE]) == pytest.approx(0.01)
        assert [float(x) for x in tags.get_ifd(0x8825)[LATITUDE]] == [48.0, 12.0, 30.0]
        assert image.info["icc_profile"] == ICC


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_unchanged_photograph_comes_back_bit_for_bit(tmp_path: Path, suffix: str, channels: int) -> None:
    source = tmp_path / f"a{suffix}"
    Image.fromarray(scene(channels)).save(source)
    photo = read_photo(source)
    write_photo(tmp_path / f"b{suffix}", photo.pixels, photo)
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert image.mode == ("L" if channels == 1 else "RGB")
        np.testing.assert_array_equal(np.asarray(image), scene(channels))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_tags_and_profile_are_kept(tmp_path: Path, suffix: str) -> None:
    source, target = saved(tmp_path / f"a{suffix}", scene(3)), tmp_path / f"b{suffix}"
    photo = read_photo(source)
    assert photo.pixels.dtype == np.float32
    assert photo.size == (HEIGHT, WIDTH)
    write_photo(target, darker(photo), photo)
    assert_tags_kept(target)
    again = read_photo(target)
    assert again.format == photo.format
    assert again.size == photo.size
    assert np.abs(again.pixels - darker(photo)).mean() < 0.02


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_stays_as_it_is_stored(tmp_path: Path, orientation: int) -> None:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    Image.fromarray(scene(3)).save(tmp_path / "a.tif", exif=tags)
    with Image.open(tmp_path / "a.tif") as image:
        upright = np.asarray(image)
    photo = read_photo(tmp_path / "a.tif")
    assert photo.size == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(photo.pixels.transpose(1, 2, 0) * 255, scene(3))
    write_photo(tmp_path / "b.tif", photo.pixels, photo)
    with Image.open(tmp_path / "b.tif") as image:
        np.testing.assert_array_equal(np.asarray(image), upright)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path, suffix: str, channels: int) -> None:
    samples = scene(channels, 65535) + np.uint16(7)  # not a multiple of 257: lost by a detour over 8 bits
    encode = imagecodecs.png_encode if suffix == ".png" else imagecodecs.tiff_encode
    decode = imagecodecs.png_decode if suffix == ".png" else imagecodecs.tiff_decode
    source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    source.write_bytes(encode(samples))
    photo = read_photo(source)
    assert photo.bits == 16
    assert photo.grey == (channels == 1)
    write_photo(target, photo.pixels, photo)
    np.testing.assert_array_equal(decode(target.read_bytes()), samples)


def test_sixteen_bit_colour_keeps_tags_and_profile(tmp_path: Path) -> None:
    tagged = read_photo(saved(tmp_path / "a.tif", scene(3)))
    deep = Photo("deep", tagged.pixels, "TIFF", bits=16, metadata=tagged.metadata)
    for name in ("b.tif", "b.png"):
        write_photo(tmp_path / name, deep.pixels, deep)
        assert read_photo(tmp_path / name).bits == 16
        assert_tags_kept(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_alpha_passes_through_unchanged(tmp_path: Path, suffix: str) -> None:
    picture = scene(4)
    source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    Image.fromarray(picture).save(source, **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    photo = read_photo(source)
    write_photo(target, darker(photo), photo)
    with Image.open(target) as image:
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(image)[..., 3], picture[..., 3])
        np.testing.assert_allclose(np.asarray(image)[..., :3], picture[..., :3] / 2, atol=0.51)


def test_sixteen_bit_grey_with_alpha_comes_back(tmp_path: Path) -> None:
    samples = scene(2, 65535) + np.uint16(7)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(samples))
    photo = read_photo(tmp_path / "a.png")
    write_photo(tmp_path / "b.png", photo.pixels, photo)
    np.testing.assert_array_equal(imagecodecs.png_decode((tmp_path / "b.png").read_bytes()), samples)


def test_text_and_resolution_of_a_png_are_kept(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "A. Photographer")
    Image.fromarray(scene(3)).save(tmp_path / "a.png", pnginfo=text, dpi=(300, 300))
    photo = read_photo(tmp_path / "a.png")
    write_photo(tmp_path / "b.png", darker(photo), photo)
    with Image.open(tmp_path / "b.png") as image:
        image.load()
        assert image.text["Author"] == "A. Photographer"  # type: ignore[attr-defined]
        assert image.info["dpi"] == pytest.approx((300, 300), rel=1e-3)


def test_xmp_resolution_and_comment_of_a_jpeg_are_kept(tmp_path: Path) -> None:
    saved(tmp_path / "a.jpg", scene(3), xmp=XMP, dpi=(300, 300), comment=b"contact sheet 4")
    photo = read_photo(tmp_path / "a.jpg")
    write_photo(tmp_path / "b.jpg", darker(photo), photo)
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.info["xmp"] == XMP
        assert image.info["dpi"] == (300, 300)
        assert image.info["comment"] == b"contact sheet 4"


def test_a_palette_picture_comes_back_in_its_colours(tmp_path: Path) -> None:
    with Image.fromarray(scene(3)).quantize(64) as palette:
        palette.save(tmp_path / "a.png")
        colours = np.asarray(palette.convert("RGB"))
    photo = read_photo(tmp_path / "a.png")
    write_photo(tmp_path / "b.png", photo.pixels, photo)
    with Image.open(tmp_path / "b.png") as image:
        np.testing.assert_array_equal(np.asarray(image), colours)


def test_a_grey_level_that_means_transparent_becomes_alpha(tmp_path: Path) -> None:
    grey = scene(1)
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=int(grey[0, 0]))
    photo = read_photo(tmp_path / "a.png")
    assert photo.has_alpha
    write_photo(tmp_path / "b.png", photo.pixels, photo)
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == "LA"
        np.testing.assert_array_equal(np.asarray(image)[..., 0], grey)
        np.testing.assert_array_equal(np.asarray(image)[..., 1] == 0, grey == grey[0, 0])


def test_a_lossless_webp_with_tags_stays_lossless(tmp_path: Path) -> None:
    photo = read_photo(saved(tmp_path / "a.webp", scene(3), lossless=True))
    assert photo.lossless
    write_photo(tmp_path / "b.webp", photo.pixels, photo)
    np.testing.assert_array_equal(read_photo(tmp_path / "b.webp").pixels, photo.pixels)
    assert not read_photo(saved(tmp_path / "lossy.webp", scene(3))).lossless


def test_what_a_format_cannot_store_is_a_clear_error() -> None:
    wide = decode(encoded("PNG", size=(16_384, 8)), "wide.png")
    with pytest.raises(PhotoError, match=r"wide\.png: cannot be written as WEBP .*Use \.png"):
        encode(wide.pixels, wide, "WEBP")
    clear = decode(bmp_with_alpha(), "clear.bmp")
    with pytest.raises(PhotoError, match=r"clear\.bmp has transparency, which BMP cannot store"):
        encode(clear.pixels, clear)


def test_a_result_that_is_not_finite_is_not_written() -> None:
    photo = decode(encoded("PNG"), "a.png")
    with pytest.raises(ResultError, match=r"a\.png: the model's result has values that are not finite"):
        encode(np.full_like(photo.pixels, np.nan), photo)


def test_another_suffix_changes_the_format_and_keeps_the_tags(tmp_path: Path) -> None:
    photo = read_photo(saved(tmp_path / "a.jpg", scene(3)))
    for name in ("b.png", "b.tif", "b.webp"):
        write_photo(tmp_path / name, photo.pixels, photo)
        assert_tags_kept(tmp_path / name)
    back = read_photo(tmp_path / "b.tif")
    write_photo(tmp_path / "c.jpg", back.pixels, back)
    assert_tags_kept(tmp_path / "c.jpg")


def test_values_outside_the_range_are_clipped_not_wrapped(tmp_path: Path) -> None:
    Image.fromarray(scene(3)).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    write_photo(tmp_path / "b.png", photo.pixels * 4 - 1, photo)
    expected = np.rint(np.clip(photo.pixels * 4 - 1, 0, 1) * 255)
    np.testing.assert_array_equal(read_photo(tmp_path / "b.png").pixels * 255, expected)


def huge_png() -> bytes:
    """A PNG of a few bytes that claims 30 000 x 30 000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (64, 64), **options: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 3).save(out, kind, **options)
    return out.getvalue()


def bmp_with_alpha() -> bytes:
    """A BMP of 4 x 3 pixels with a mask for alpha, which Pillow reads but does not write."""
    pixels = bytes(range(4 * 3 * 4))
    header = struct.pack("<IiiHHIIiiII", 108, 4, -3, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    return b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122) + header + masks + pixels


def without_tag(tiff: bytes, tag: int) -> bytes:
    """A little-endian TIFF whose entry `tag` is another, private one: same length, tag not there."""
    at = struct.unpack_from("<I", tiff, 4)[0] + 2
    entries = range(at, at + 12 * struct.unpack_from("<H", tiff, at - 2)[0], 12)
    (entry,) = (entry for entry in entries if struct.unpack_from("<H", tiff, entry)[0] == tag)
    return tiff[:entry] + struct.pack("<H", 65_000) + tiff[entry + 2 :]


REFUSED = {
    "text.jpg": (b"this is no photograph\n", "not a JPEG, PNG, TIFF, WebP, BMP, AVIF, GIF or HEIC file"),
    "empty.png": (b"", "not a JPEG, PNG, TIFF, WebP, BMP, AVIF, GIF or HEIC file"),
    "picture.gif": (
        encoded("GIF", "L", save_all=True, append_images=[Image.new("L", (64, 64))]),
        "holds several pictures, and a photograph has one. Split the file.",
    ),
    "half.jpg": (encoded("JPEG", quality=95)[:-200], "damaged or incomplete"),
    "half.png": (encoded("PNG")[:-60], "damaged or incomplete"),
    "half.tif": (encoded("TIFF")[:-3000], "damaged or incomplete"),
    "half16.png": (imagecodecs.png_encode(scene(3, 65535))[:300], "damaged or incomplete"),
    "bomb.png": (huge_png(), "has more than 179 million pixels"),
    "signed.tif": (
        imagecodecs.tiff_encode(scene(1, 65535).astype(np.int16)),
        "has signed numbers of 16 bits. Save it with 8 or 16 bits",
    ),
    "unsaid.tif": (without_tag(encoded("TIFF", "I;16"), 262), "does not say what its samples mean"),
    "unsaid8.tif": (without_tag(encoded("TIFF"), 262), "does not say what its samples mean"),
    "no-width.tif": (without_tag(encoded("TIFF"), 256), "damaged or incomplete (its header says no size)"),
    "pages.tif": (
        encoded("TIFF", "RGB", save_all=True, append_images=[Image.new("RGB", (64, 64))]),
        "holds 2 pictures",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_photograph_is_refused_by_name(tmp_path: Path, name: str) -> None:
    contents, reason = REFUSED[name]
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(PhotoError) as refusal:
        read_photo(tmp_path / name)
    assert_one_clear_error(refusal.value, f"{tmp_path / name}: ", reason)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"none\.png: cannot be read \(No such file"):
        read_photo(tmp_path / "none.png")
    with pytest.raises(PhotoError, match=r"cannot be read \(Is a directory"):
        read_photo(tmp_path)


def test_a_name_that_cannot_hold_the_result_is_refused(tmp_path: Path) -> None:
    Image.fromarray(scene(4)).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    with pytest.raises(PhotoError, match=r"has transparency, which JPEG cannot store. Use \.png"):
        write_photo(tmp_path / "b.jpg", photo.pixels, photo)
    with pytest.raises(PhotoError, match=r"must end in one of \.jpg"):
        write_photo(tmp_path / "b.heic", photo.pixels, photo)


def test_a_sheet_shows_each_picture_under_its_title() -> None:
    red, green = (np.full((40, 60, 3), colour, np.uint8) for colour in ([200, 0, 0], [0, 200, 0]))
    page = np.asarray(image_grid([[red, green], [green, red]], ["degraded", "clean"], ["rain", "haze"]))
    is_red, is_green = (
        (page[..., 0] == 200) & (page[..., 1] == 0),
        (page[..., 1] == 200) & (page[..., 0] == 0),
    )
    middle_y, middle_x = (np.flatnonzero((is_red | is_green).any(axis)).mean() for axis in (1, 0))
    upper, left = np.s_[: int(middle_y)], np.s_[: int(middle_x)]
    assert is_red[upper, left].any()
    assert not is_green[upper, left].any()
    assert is_red.sum() == is_green.sum() == 2 * 300 * 200


def test_captions_add_text_below_the_pictures_only() -> None:
    picture = np.full((40, 60, 3), 128, np.uint8)
    bare = image_grid([[picture]], ["degraded"], ["rain"])
    captioned = image_grid([[picture]], ["degraded"], ["rain"], [["24.31 dB"]])
    assert captioned.width == bare.width
    below = np.asarray(captioned)[bare.height - 4 :]
    assert (below < 200).any()
