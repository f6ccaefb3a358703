"""HEIC files are read as viewers show them, and whatever a decoder does, it is one error for its file."""

from __future__ import annotations

import io
import os
import signal
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from orchestrator.errors import PhotoError, UnsupportedPhotoError
from orchestrator.imaging import decoders, formats
from orchestrator.imaging.photos import decode, encode, image_size, losses
from orchestrator.imaging.tags import Directory, read_exif

HEIC = Path(__file__).with_name("heic")
"""Files that pillow-heif wrote with libx265: 48 x 32 pixels of a gradient, and a large flat one."""


@pytest.mark.parametrize(("name", "bits", "turns"), [("turned", 8, 3), ("alpha", 8, 0), ("ten_bits", 10, 0)])
def test_a_heic_becomes_a_png_as_viewers_show_it(name: str, bits: int, turns: int) -> None:
    data = (HEIC / f"{name}.heic").read_bytes()
    photo = decode(data, "a.heic")
    right, down = np.meshgrid(np.linspace(0, 1, 48), np.linspace(0, 1, 32))
    expected = np.rot90(np.stack([right, down, 1 - right], -1), turns)
    assert (photo.format, photo.bits, photo.size, photo.has_alpha) == (
        "HEIC",
        bits,
        expected.shape[:2],
        name == "alpha",
    )
    assert image_size(data, "a.heic") == photo.size
    assert np.abs(photo.pixels.transpose(1, 2, 0) - expected).max() < 0.04
    assert losses(photo) == ""
    written = decode(encode(photo.pixels, photo), "a.png")
    assert written.format == "PNG"
    exif = read_exif(written.metadata.exif) or Directory()
    assert exif.number(274, 1) == 1, "its pixels are turned already"
    if name == "turned":
        assert b"someone" in written.metadata.exif


def test_a_heic_that_codes_more_pixels_than_it_says_is_not_decoded() -> None:
    data = (HEIC / "large.heic").read_bytes()
    size = b"ispe" + struct.pack(">III", 0, 2048, 1536)
    assert data.count(size) == 1
    with pytest.raises(PhotoError, match=r"a\.heic: damaged or incomplete"):
        decode(data.replace(size, b"ispe" + struct.pack(">III", 0, 64, 64)), "a.heic")


def test_a_heic_without_the_package_that_reads_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "HAS_HEIC", False)
    with pytest.raises(UnsupportedPhotoError, match=r"a\.heic: is a HEIC, .*'mirage-orchestrator\[heic\]'"):
        decode((HEIC / "large.heic").read_bytes(), "a.heic")


# ----------------------------------------------------------------------------------------------- processes


@pytest.fixture(params=["AVIF", "HEIC"])
def file(request: pytest.FixtureRequest) -> bytes:
    if request.param == "HEIC":
        return (HEIC / "alpha.heic").read_bytes()
    out = io.BytesIO()
    Image.new("RGB", (48, 32), (90, 120, 150)).save(out, "AVIF")
    return out.getvalue()


@pytest.fixture
def idle() -> Iterator[list[decoders._Decoder]]:
    """The processes that wait; none at the beginning."""
    decoders._end_idle()
    yield decoders._idle
    decoders._end_idle()


def test_a_damaged_file_is_one_error_and_the_next_file_is_read(file: bytes) -> None:
    random = Random(0)
    for number in range(60):
        changed = bytearray(file[: random.randrange(16, len(file))] if number % 3 == 0 else file)
        for _ in range(random.randint(1, 8)):
            changed[random.randrange(12, len(changed))] = random.randrange(256)
        with suppress(PhotoError):
            decode(bytes(changed), "a")
    assert decode(file, "a").size == (32, 48)


def test_a_process_serves_many_files_and_one_that_died_is_replaced(
    file: bytes, idle: list[decoders._Decoder]
) -> None:
    expected = decode(file, "a").pixels
    (first,) = idle
    np.testing.assert_array_equal(decode(file, "a").pixels, expected)
    assert idle == [first]
    first._process.send_signal(signal.SIGSEGV)
    first._process.wait()
    np.testing.assert_array_equal(decode(file, "a").pixels, expected)
    assert first not in idle


def test_a_decoder_that_ends_its_process_is_an_error_that_names_the_file(
    file: bytes, idle: list[decoders._Decoder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(decoders, "_PROGRAM", program)
    with pytest.raises(PhotoError, match=r"photo: damaged or incomplete \(its decoder ended with SIGSEGV\)"):
        decode(file, "photo")
    assert idle == []


def test_a_heic_that_ends_its_decoder_is_one_error_and_the_next_file_is_read() -> None:
    """A file of fuzzing, for which libheif 1.23 ends its process; another version may read it."""
    with suppress(PhotoError):
        decode((HEIC / "crashes.heic").read_bytes(), "a.heic")
    assert decode((HEIC / "alpha.heic").read_bytes(), "a.heic").size == (32, 48)


def test_a_decoder_has_limits_of_memory_and_time(
    file: bytes, idle: list[decoders._Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode(file, "a")
    with monkeypatch.context() as patched:
        patched.setattr(decoders, "_MEMORY_BYTES", 0)
        patched.setattr(decoders, "_BYTES_PER_PIXEL", 0)
        with pytest.raises(PhotoError, match="large: damaged or incomplete"):
            decode((HEIC / "large.heic").read_bytes(), "large")
    with monkeypatch.context() as patched:
        patched.setattr(decoders, "_MAX_SECONDS", 0)
        with pytest.raises(PhotoError, match="its decoder ended with SIGKILL"):
            decode(file, "a")
    assert decode(file, "a").size == (32, 48)


def test_threads_have_a_process_each_and_few_are_kept(file: bytes, idle: list[decoders._Decoder]) -> None:
    expected = decode(file, "a").pixels
    with ThreadPoolExecutor(4) as threads:
        for pixels in threads.map(lambda name: decode(file, str(name)).pixels, range(12)):
            np.testing.assert_array_equal(pixels, expected)
    assert 1 <= len(idle) <= decoders._MAX_IDLE


def test_a_decoder_knows_no_secret_of_this_process(
    file: bytes, idle: list[decoders._Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    decode(file, "a")
    (decoder,) = idle
    assert b"canary" not in Path(f"/proc/{decoder._process.pid}/environ").read_bytes()
    assert os.getpgid(decoder._process.pid) != os.getpgid(0), "Ctrl-C must not reach it"
