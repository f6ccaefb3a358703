"""What a file says beside its pixels comes back as bytes, or its loss is named: format by mode by target format."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from orchestrator.errors import PhotoError
from orchestrator.imaging.metadata import attach, fitting, segments_of
from orchestrator.imaging.photos import decode, encode, losses
from orchestrator.imaging.tags import Directory, Tag, dump, read_chain, read_exif

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/">Ærø</x:xmpmeta>'.encode()
ARTIST = "Zoë Ångström 写真".encode()
CAPTION = b"\x1c\x02\x78\x00\x07caption"
RESOURCES = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(CAPTION)) + CAPTION
FORMATS = ["JPEG", "PNG", "TIFF", "WEBP", "BMP"]
SIZE = (11, 17)


def scene(channels: int, dtype: type = np.uint8, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth picture in which every channel is different, (h, w, c) or (h, w)."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    planes = np.stack([(5 * (y + x) + 40 * c) % 201 + 20 for c in range(channels)], 2) / 255
    if np.dtype(dtype).kind != "f":
        planes = np.rint(planes * np.iinfo(dtype).max)
    return np.ascontiguousarray(planes.astype(dtype).squeeze())


def exif_block(order: str = "<") -> bytes:
    directory = Directory(order)
    directory.set(274, 3, 6)
    directory.set_bytes(315, ARTIST + b"\0", kind=2)
    child = Directory(order)
    child.set_bytes(37500, bytes(range(40)))  # a maker's note
    gps = Directory(order)
    gps.set_bytes(2, struct.pack(order + "6I", 48, 1, 12, 1, 30, 1), kind=5)
    gps.tags[2] = Tag(5, 3, gps.tags[2].value)
    directory.tags[34665] = Tag(4, 1, b"", child.tags)
    directory.tags[34853] = Tag(4, 1, b"", gps.tags)
    return dump(directory)


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    return png[:33] + b"".join(chunks) + png[33:]


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    end = 4 + int.from_bytes(jpeg[4:6], "big")  # after JFIF
    return jpeg[:end] + b"".join(segments) + jpeg[end:]


def saved(picture: np.ndarray, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, kind, **options)
    return out.getvalue()


def tiff(picture: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, picture, metadata=None, **options)  # type: ignore[arg-type]
    return out.getvalue()


def full(kind: str, picture: np.ndarray) -> bytes:
    """A file with all metadata that its format has, written by other libraries as far as they can."""
    if kind == "JPEG":
        parts = [
            jpeg_segment(0xE1, b"Exif\0\0" + exif_block(">")),
            jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
            jpeg_segment(0xED, b"Photoshop 3.0\0" + RESOURCES),
        ]
        return with_segments(saved(picture, kind, quality=100, icc_profile=ICC, dpi=(300, 300)), *parts)
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
        return saved(picture, kind, exif=exif_block(), icc_profile=ICC, dpi=(300, 300), pnginfo=text)
    if kind == "TIFF":
        tags = [(315, 2, len(ARTIST) + 1, ARTIST + b"\0", True), (274, 3, 1, 6, True)]
        tags += [(700, 1, len(XMP), XMP, True), (33723, 7, len(CAPTION), CAPTION, True)]
        return tiff(picture, iccprofile=ICC, extratags=tags, resolution=(300, 300), resolutionunit=2)
    if kind == "WEBP":
        return saved(picture, kind, exif=exif_block(), icc_profile=ICC, xmp=XMP, lossless=True, exact=True)
    return saved(picture, kind, dpi=(300, 300))


def found_in(kind: str, data: bytes) -> dict[str, object]:
    """What other libraries find in a file; texts as bytes."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        info = dict(image.info)
    found: dict[str, object] = {
        "icc": info.get("icc_profile"),
        "xmp": info.get("xmp"),
        "dpi": info.get("dpi"),
    }
    if kind == "TIFF":
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            tags = file.pages[0].tags
            found |= {"turn": tags.valueof(274), "xmp": tags.valueof(700)}
            found["iptc"] = CAPTION if CAPTION in data else None
    else:
        block = (info.get("exif") or b"").removeprefix(b"Exif\0\0")
        directory = read_exif(block) if block else None
        found["turn"] = directory.number(274, 0) if directory else None
        found["iptc"] = CAPTION if CAPTION in data else None
    found["artist"] = ARTIST if ARTIST in data else None
    return found


WORDS = {
    "icc": "the colour profile",
    "xmp": "XMP",
    "dpi": "the resolution",
    "turn": "EXIF",
    "artist": "EXIF",
    "iptc": "IPTC",
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kind", "target"), list(itertools.product(FORMATS, FORMATS)))
def test_each_part_comes_back_or_its_loss_is_named(kind: str, target: str, channels: int) -> None:
    data = full(kind, scene(channels))
    photo = decode(data, f"a.{kind.lower()}")
    result = encode(photo.pixels, photo, target)
    before, after, lost = found_in(kind, data), found_in(target, result), losses(photo, target)
    assert "\n" not in lost
    for part, word in WORDS.items():
        if part == "dpi" and before[part]:
            kept = after[part] and float(after[part][0]) == pytest.approx(300, rel=1e-3)  # type: ignore[index]
            assert kept or word in lost or target == "WEBP"  # which has it in its EXIF
        elif before[part]:
            assert after[part] == before[part] or word in lost, (part, lost)
    if kind == target:
        assert lost == ""
    again = decode(result, "again")
    assert again.grey == (photo.grey and target != "WEBP")  # which has no grey
    lossy = target == "JPEG" or (kind, target) == ("JPEG", "WEBP")
    assert np.abs(again.pixels - photo.pixels).max() < (0.2 if lossy else 1e-6)


DEPTHS = [("PNG", channels, dtype) for channels in (1, 2, 3, 4) for dtype in (np.uint8, np.uint16)] + [
    ("TIFF", channels, dtype)
    for channels in (1, 2, 3, 4)
    for dtype in (np.uint8, np.uint16, np.float16, np.float32, np.float64)
]


@pytest.mark.parametrize(("kind", "channels", "dtype"), DEPTHS)
def test_every_layout_that_we_write_is_read_again_with_equal_samples(
    kind: str, channels: int, dtype: type
) -> None:
    picture = scene(channels, dtype)
    label = {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    how = {"photometric": "rgb" if channels > 2 else "minisblack", "planarconfig": "contig"}
    data = bytes(imagecodecs.png_encode(picture)) if kind == "PNG" else tiff(picture, **how, **label)
    photo = decode(data, "a")
    assert (photo.has_alpha, photo.grey) == (channels in (2, 4), channels < 3)
    result = encode(photo.pixels, photo)
    written = imagecodecs.png_decode(result) if kind == "PNG" else tifffile.imread(io.BytesIO(result))
    assert written.dtype == picture.dtype
    np.testing.assert_allclose(written, picture, atol=1e-7 if np.dtype(dtype).kind == "f" else 0)
    assert encode(photo.pixels, decode(result, "a")) == result
    deep = encode(photo.pixels, photo, "PNG")  # what has more bits than a PNG is written with 16
    assert decode(deep, "b").bits == (8 if dtype == np.uint8 else 16)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("label", [[], ["unspecified"]])
def test_an_unlabelled_channel_is_kept_without_becoming_alpha(
    dtype: type, channels: int, label: list[str]
) -> None:
    picture = scene(channels, dtype)
    how = "rgb" if channels == 4 else "minisblack"
    data = tiff(picture, photometric=how, planarconfig="contig", extrasamples=["unspecified"])
    if not label:  # also the label's tag is missing
        at = data.index(struct.pack("<HHI", 338, 3, 1))
        data = data[:at] + struct.pack("<H", 65_000) + data[at + 2 :]
    photo = decode(data, "a.tif")
    with tifffile.TiffFile(io.BytesIO(encode(photo.pixels, photo))) as file:
        np.testing.assert_allclose(file.pages[0].asarray(), picture, atol=1e-7 if dtype == np.float32 else 0)
        assert list(map(int, file.pages[0].extrasamples)) == [0]  # type: ignore[union-attr]
    assert losses(photo) == ""
    assert "the unlabelled extra channel" in losses(photo, "PNG")
    assert decode(encode(photo.pixels, photo, "PNG"), "b.png").extra is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_premultiplied_alpha_is_undone_at_every_depth(dtype: type) -> None:
    white = np.iinfo(dtype).max
    colour, alpha = scene(3, dtype), np.full((*SIZE, 1), white // 2, dtype)
    shown = np.rint(colour * (alpha / white)).astype(dtype)
    data = tiff(np.concatenate([shown, alpha], 2), photometric="rgb", extrasamples=["assocalpha"])
    photo = decode(data, "a.tif")
    assert photo.has_alpha
    assert np.abs(photo.pixels.transpose(1, 2, 0) - colour / white).max() < 2 / white


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_level_is_found_at_every_depth(depth: int) -> None:
    level, top = 1, 2**depth - 1
    row = [0, level, top, level]
    bits = "".join(f"{value:0{depth}b}" for value in row)
    line = b"\0" + int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, depth, 0, 0, 0, 0))
    key = png_chunk(b"tRNS", struct.pack(">H", level)) + png_chunk(b"sBIT", bytes([max(depth, 1)]))
    data = (
        b"\x89PNG\r\n\x1a\n"
        + header
        + key
        + png_chunk(b"IDAT", zlib.compress(line))
        + png_chunk(b"IEND", b"")
    )
    photo = decode(data, "a.png")
    written = imagecodecs.png_decode(encode(photo.pixels, photo))
    white = np.iinfo(written.dtype).max
    assert (written[0, :, 1] == 0).tolist() == [value == level for value in row]
    assert written[0, :, 0].tolist() == [value * white // top for value in row]


def test_chunks_about_colour_and_depth_of_a_png_are_kept_byte_for_byte() -> None:
    chunks = [
        png_chunk(b"cICP", bytes([9, 16, 0, 1])),
        png_chunk(b"mDCV", bytes(range(24))),
        png_chunk(b"cLLI", struct.pack(">II", 10_000_000, 1_000)),
        png_chunk(b"sBIT", bytes([8, 7, 6])),
        png_chunk(b"gAMA", struct.pack(">I", 45_455)),
        png_chunk(b"tEXt", b"Author\0" + b"\xc5ngstr\xf6m"),
        png_chunk(b"abCd", b"a chunk of somebody, safe to copy"),
    ]
    photo = decode(with_chunks(saved(scene(3), "PNG"), *chunks), "a.png")
    result = encode(photo.pixels * np.float32(0.5), photo)
    assert all(chunk in result for chunk in chunks)
    assert losses(photo) == ""
    for name in ("cICP", "mDCV", "cLLI", "sBIT", "gAMA", "texts", "abCd"):
        assert name in losses(photo, "JPEG")


def test_segments_of_a_jpeg_are_kept_byte_for_byte() -> None:
    guid = b"0123456789ABCDEF0123456789ABCDEF" + struct.pack(">II", 7, 0)
    parts = [
        jpeg_segment(0xE1, b"Exif\0\0" + exif_block()),
        jpeg_segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + guid + b"<more/>"),
        jpeg_segment(0xED, b"Photoshop 3.0\0" + RESOURCES[:20]),
        jpeg_segment(0xED, b"Photoshop 3.0\0" + RESOURCES[20:]),
        jpeg_segment(0xFE, "Zürich".encode("latin-1")),
        jpeg_segment(0xEC, b"Ducky\0\1"),
    ]
    photo = decode(with_segments(saved(scene(3), "JPEG", dpi=(118, 118)), *parts), "a.jpg")
    result = encode(photo.pixels, photo)
    assert b"".join(parts) in result
    assert losses(photo) == ""
    with Image.open(io.BytesIO(result)) as image:
        assert image.info["dpi"] == (118, 118)
    assert photo.metadata.photoshop == RESOURCES
    for name in ("extended XMP", "comment", "APP12", "IPTC"):
        assert name in losses(photo, "PNG")
    signed = decode(with_segments(saved(scene(3), "JPEG"), jpeg_segment(0xEB, b"JP\0\1signed")), "a.jpg")
    assert "the signature or extension in APP11" in losses(signed)


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
@pytest.mark.parametrize("target", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_has_one_form_inside_whatever_its_reader_gave(prefix: bytes, target: str) -> None:
    webp = saved(scene(3), "WEBP")
    body = prefix + exif_block()
    chunk = b"EXIF" + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    head = b"VP8X" + struct.pack("<I", 10) + bytes([8, 0, 0, 0]) + (16).to_bytes(3, "little")
    inside = b"WEBP" + head + (10).to_bytes(3, "little") + webp[12:] + chunk
    photo = decode(b"RIFF" + struct.pack("<I", len(inside)) + inside, "a.webp")
    assert photo.metadata.exif == exif_block()
    with Image.open(io.BytesIO(encode(photo.pixels, photo, target))) as image:
        assert image.getexif()[274] == 6 or target == "TIFF"
        assert len(image.getexif().get_ifd(0x8769)[37500]) == 40


def damaged(kind: str, part: str) -> bytes:
    body = exif_block()[:30] + b"\xff" * 40 if part == "exif" else b"\0\1 no profile"
    if kind == "JPEG":
        head = b"Exif\0\0" if part == "exif" else b"ICC_PROFILE\0\1\1"
        return with_segments(
            saved(scene(3), kind), jpeg_segment(0xE1 if part == "exif" else 0xE2, head + body)
        )
    if kind == "PNG":
        name = b"eXIf" if part == "exif" else b"iCCP"
        return with_chunks(saved(scene(3), kind), png_chunk(name, body))
    return tiff(scene(3), photometric="rgb", extratags=[(34675 if part == "icc" else 34665, 3, 1, 77, True)])


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize(("kind", "part"), list(itertools.product(["JPEG", "PNG", "TIFF"], ["exif", "icc"])))
def test_damaged_metadata_never_costs_the_pixels(kind: str, part: str, target: str) -> None:
    photo = decode(damaged(kind, part), "a")
    again = decode(encode(photo.pixels, photo, target), "b")
    assert np.abs(again.pixels - photo.pixels).max() < 0.2
    assert "\n" not in losses(photo, target)


def test_a_chunk_with_a_wrong_checksum_is_left_out_and_named() -> None:
    broken = bytearray(png_chunk(b"tEXt", b"Author\0me"))
    broken[-1] ^= 1
    photo = decode(with_chunks(saved(scene(3), "PNG"), bytes(broken)), "a.png")
    assert losses(photo) == "a.png: not kept in the PNG: damaged tEXt."
    with Image.open(io.BytesIO(encode(photo.pixels, photo))) as image:
        image.load()


def test_exif_too_long_for_a_jpeg_keeps_its_small_values() -> None:
    directory = Directory("<")
    directory.set(274, 3, 8)
    directory.set_bytes(50341, bytes(70_000))
    data = saved(scene(3), "PNG", exif=dump(directory))
    photo = decode(data, "a.png")
    assert "large values of EXIF" in losses(photo, "JPEG")
    with Image.open(io.BytesIO(encode(photo.pixels, photo, "JPEG"))) as image:
        assert image.getexif()[274] == 8


def tag_values() -> st.SearchStrategy[Tag]:
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 12: 8}

    def of(kind: int) -> st.SearchStrategy[Tag]:
        size = sizes[kind]
        whole = st.binary(max_size=40).map(lambda value: value[: len(value) // size * size])
        return whole.map(lambda value: Tag(kind, len(value) // size, value))

    return st.sampled_from(sorted(sizes)).flatmap(of)


CODES = st.integers(0, 65_535).filter(lambda code: code not in (34665, 34853, 40965))


@given(st.sampled_from("<>"), st.dictionaries(CODES, tag_values()), st.dictionaries(CODES, tag_values()))
@settings(max_examples=100, deadline=None)
def test_directories_come_back_as_they_were(order: str, tags: dict[int, Tag], below: dict[int, Tag]) -> None:
    data = dump(Directory(order, {**tags, 34665: Tag(4, 1, b"", below)}))
    (found,) = read_chain(data)
    assert found.order == order
    children = found.tags.pop(34665).children
    assert (found.tags, children) == (tags, below)


MUTATED: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: full("JPEG", scene(3)),
    "PNG": lambda: full("PNG", scene(4)),
    "TIFF": lambda: full("TIFF", scene(3)),
    "BigTIFF": lambda: tiff(
        scene(2, np.uint16), bigtiff=True, photometric="minisblack", planarconfig="contig"
    ),
    "WEBP": lambda: full("WEBP", scene(3)),
}


@pytest.mark.parametrize("kind", MUTATED)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_one_clear_error_or_a_result_in_every_format(
    kind: str, data: st.DataObject
) -> None:
    file = bytearray(MUTATED[kind]())
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    with suppress(PhotoError):
        photo = decode(bytes(file), "a")
        for target in FORMATS:
            encode(photo.pixels, photo, target)
            assert "\n" not in losses(photo, target)


def test_a_metadata_of_another_format_is_framed_anew() -> None:
    photo = decode(full("TIFF", scene(3)), "a.tif")
    kept, lost = fitting(photo.metadata, "JPEG")
    assert lost == ()
    segments, _ = segments_of(attach("JPEG", saved(scene(3), "JPEG"), kept))
    assert [marker for marker, _ in segments][:5] == [0xE0, 0xE1, 0xE1, 0xED, 0xE2]
