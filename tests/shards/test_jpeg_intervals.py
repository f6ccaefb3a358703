"""JPEG files cut into intervals: every crop is that of the whole file, whatever the file, and damage is noticed."""

from __future__ import annotations

import io
import os
import struct
import subprocess
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from shards import jpeg_intervals, pack
from shards.augment import CropWindow
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.errors import CorruptObjectError, ToolError
from shards.images import decode_image
from shards.jpeg_intervals import IntervalJpeg, decode, rewrite
from shards.manifest import Manifest
from shards.processes import run_inline
from shards.shard import pack_shard
from shards.sources import PairsSource
from shards.store import LocalStore
from shards.verify import verify
from tests.shards.raw import lay_pairs, seal_jpeg

pytestmark = pytest.mark.usefixtures("jpegtran")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth ups and downs with noise: chroma differs from pixel to pixel."""
    steps = np.random.default_rng(seed).normal(0, 8, (height, width, 3))
    return (np.cumsum(steps, axis=seed % 2) + 128).clip(0, 255).astype(np.uint8)


def saved(pixels: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    Image.fromarray(pixels).convert(mode).save(out := io.BytesIO(), "JPEG", **options)
    return out.getvalue()


def cut(source: bytes) -> tuple[bytes, np.ndarray]:
    """Return a JPEG cut into intervals, and its pixels."""
    pixels = decode_image(source, "a source")
    made = rewrite(source, pixels)
    assert made is not None
    return made, pixels


SAMPLINGS = ("444", "422", "420", "440", "411", "grey")


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 260), st.integers(1, 260)),
    sampling=st.sampled_from(SAMPLINGS),
    quality=st.integers(1, 100),
    progressive=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(
    size=(40, 8 * 61), sampling="444", quality=30, progressive=False, seed=1
)  # a prime number of MCUs in a row
@example(
    size=(200, 82), sampling="420", quality=90, progressive=True, seed=2
)  # two pixels in the last interval
@example(size=(33, 68), sampling="420", quality=90, progressive=False, seed=3)
def test_every_crop_of_every_kind_of_jpeg_is_that_of_the_whole_file_in_every_pixel(
    size: tuple[int, int], sampling: str, quality: int, progressive: bool, seed: int
):
    image = picture(*size, seed)
    if sampling == "grey":
        source = saved(image, "L", quality=quality, progressive=progressive)
    elif sampling in ("440", "411"):
        source = imagecodecs.jpeg8_encode(image, level=quality, subsampling=sampling)
    else:
        levels = {"444": 0, "422": 1, "420": 2}
        source = saved(image, quality=quality, progressive=progressive, subsampling=levels[sampling])
    made, pixels = cut(source)
    np.testing.assert_array_equal(decode_image(made, "a member"), pixels)  # any decoder reads it
    np.testing.assert_array_equal(decode(made), pixels)
    opened, rng = IntervalJpeg(made), np.random.default_rng(seed)
    assert opened.shape == size
    for _ in range(12):
        height, width = (int(rng.integers(1, side + 1)) for side in size)
        top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
        found = opened.crop(top, left, height, width)
        np.testing.assert_array_equal(found, pixels[top : top + height, left : left + width])


def test_a_crop_reads_its_part_of_the_file_and_the_file_hardly_grows():
    class Counted:
        def __init__(self, data: bytes) -> None:
            self.data, self.read = data, 0

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, span: slice) -> bytes:
            self.read += len(self.data[span])
            return self.data[span]

    source = saved(picture(1080, 1920), quality=90)
    made, pixels = cut(source)
    assert len(made) < 1.03 * len(source)
    counted = Counted(made)
    found = IntervalJpeg(counted).crop(500, 900, 128, 128)
    np.testing.assert_array_equal(found, pixels[500:628, 900:1028])
    assert counted.read < 0.04 * len(made)


def test_metadata_stay_and_are_not_what_a_crop_decodes():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned: the pixels are read as they are stored
    exif[0x010E] = "x" * 40_000
    source = saved(picture(70, 90), icc_profile=profile, exif=exif, comment="a note")
    made, pixels = cut(source)
    assert pixels.shape == (70, 90, 3)
    with Image.open(io.BytesIO(made)) as image:
        assert image.info["icc_profile"] == profile
        assert image.info["comment"] == b"a note"
        assert image.getexif()[0x0112] == 6
    np.testing.assert_array_equal(IntervalJpeg(made).crop(20, 30, 40, 50), pixels[20:60, 30:80])


def test_a_file_that_was_cut_before_is_cut_again_to_the_same_bytes():
    made, pixels = cut(saved(picture(100, 200)))
    assert rewrite(made, pixels) == made


def test_of_several_pictures_the_first_one_stays_which_is_the_one_that_is_read():
    first, gain_map = (Image.fromarray(picture(100, 120, seed)) for seed in (1, 2))
    first.save(out := io.BytesIO(), "MPO", save_all=True, append_images=[gain_map])
    made, pixels = cut(out.getvalue())
    with Image.open(io.BytesIO(made)) as image:
        assert image.format == "JPEG"
    np.testing.assert_array_equal(IntervalJpeg(made).crop(50, 60, 50, 60), pixels[50:, 60:])


def test_colours_that_are_not_ycbcr_are_kept():
    source = saved(picture(60, 170), quality=95, keep_rgb=True)
    made, pixels = cut(source)
    np.testing.assert_array_equal(IntervalJpeg(made).crop(10, 90, 50, 80), pixels[10:60, 90:170])


def _arithmetic(source: bytes) -> bytes:
    tool = jpeg_intervals.tool()
    assert tool is not None
    return subprocess.run([tool, "-arithmetic"], input=source, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    "change",
    [
        _arithmetic,
        lambda data: data[:-200],
        lambda data: data[: len(data) // 2] + b"\xff\xd3" + data[len(data) // 2 :],
        lambda data: data.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c", 1),
        lambda data: b"",
        lambda data: data[:300],
        lambda data: b"\xff\xd8" + b"\xff\xe0\0\0" * 9,
    ],
    ids=["arithmetic", "cut off", "a marker too many", "12 bits", "empty", "header alone", "no lengths"],
)
def test_what_cannot_be_cut_without_loss_is_kept_as_it_is(change):
    pixels = picture(90, 120)
    source = saved(pixels)
    assert rewrite(change(source), decode_image(source, "x")) is None


def test_a_file_that_grows_is_cut_in_the_widest_intervals_that_are_possible(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jpeg_intervals, "_GROWTH", 0.0)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 2912, 3), dtype=np.uint8)
    made, pixels = cut(saved(pixels, quality=100, subsampling=0))  # a whole row of MCUs has more than 64 KiB
    assert len(IntervalJpeg(made)._checksums) == 2
    np.testing.assert_array_equal(decode(made), pixels)


def test_a_file_whose_pixels_would_change_is_kept_as_it_is():
    source = saved(picture(90, 120))
    other = decode_image(source, "x").copy()
    other[89, 119, 0] ^= 1
    assert rewrite(source, other) is None


@settings(
    max_examples=150, derandomize=True
)  # one of 65,536 damaged intervals has the checksum of the whole one
@given(data=st.data(), sealed=st.booleans())
def test_damage_is_an_error_and_never_other_pixels(data: st.DataObject, sealed: bool):
    made, pixels = cut_example()
    changed = bytearray(made)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(made) - 1))] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(made))) :]
    if sealed:
        seal_jpeg(changed)
    try:
        found = IntervalJpeg(bytes(changed)).crop(0, 0, 150, 170)
    except CorruptObjectError:
        return
    except ValueError:
        assert sealed, "only who wrote the checksums can have changed the size"
        return
    assert sealed or np.array_equal(found, pixels), "what changed was no part of the image"


def test_a_forged_header_is_told_before_a_decoder_allocates_what_it_says(monkeypatch: pytest.MonkeyPatch):
    """Sealed files whose index tells another frame than the one that a decoder takes, or other intervals."""
    monkeypatch.setattr(jpeg_intervals, "_decoded", None)  # nothing may be decoded
    made, _ = cut_example()
    tables, frame, scan = struct.unpack_from(">III", made, 20 + 16)

    def check(change: dict[int, bytes]) -> None:
        forged = bytearray(made)
        for at, new in change.items():
            forged[at : at + len(new)] = new
        seal_jpeg(forged)
        with pytest.raises(CorruptObjectError, match="header"):
            IntervalJpeg(bytes(forged))

    size = struct.pack(">HH", 150, 170)
    for other in {*range(tables, scan - 9)} - {frame}:
        check({40: struct.pack(">I", other)})
    huge = {frame + 5: struct.pack(">HH", 65500, 65500)}
    inside_a_table = tables + 20
    check({**huge, 40: struct.pack(">I", inside_a_table), inside_a_table + 5: size})
    for marker in (b"\xff\xc2", b"\xff\xc3", b"\xff\xff", b"\xff\xd9"):
        check({frame: marker})
    for marker in (
        b"\xff\xff",
        b"\xff\xd0",
        b"\xff\xd8",
        b"\xff\x01",
    ):  # a decoder reads no length behind them
        check({tables: marker})
    for cell in ((1, 1), (1 << 31, 1 << 31), (16, (1 << 32) - 1), ((1 << 32) - 1, 16)):
        check({48: struct.pack(">II", *cell)})


@cache
def cut_example() -> tuple[bytes, np.ndarray]:
    return cut(saved(picture(150, 170), quality=80))


@pytest.fixture
def hazy(tmp_path: Path) -> PairsSource:
    """Three pairs of a JPEG, the third with arithmetic codes, and a clean PNG."""
    lay_pairs(tmp_path / "raw", [(f"in/{name}.jpg", f"gt/{name}.png") for name in "abc"], (97, 130))
    file = tmp_path / "raw/in/c.jpg"
    file.write_bytes(_arithmetic(file.read_bytes()))
    return PairsSource(tmp_path / "raw", "in/{key}.jpg", "gt/{key}.png", "haze")


def packed(source: PairsSource, folder: Path, **options: object) -> tuple[LocalStore, Manifest]:
    store = LocalStore(folder)
    return store, pack.pack(source, store, name="h", **options)  # type: ignore[arg-type]


def test_packed_jpeg_files_are_cut_and_what_cannot_be_is_kept_whole(hazy: PairsSource, tmp_path: Path):
    store, manifest = packed(hazy, tmp_path / "store")
    encodings = [row.degraded.encoding for row in manifest.rows if row.degraded]
    assert encodings == ["jpeg-intervals", "jpeg-intervals", "original"]
    assert manifest.provenance["jpeg"] == "cut"
    assert manifest.provenance["jpeg_kept_whole"] == 1
    before, after = manifest.provenance["jpeg_cut_bytes"]
    assert before == sum(Path(f"{tmp_path}/raw/in/{name}.jpg").stat().st_size for name in "ab")
    assert after == sum(row.degraded.size for row in manifest.rows[:2] if row.degraded)
    verify(store, manifest, decode=True)
    dataset = Dataset([store.uri], ShardCache(tmp_path / "cache", 1 << 30))
    for pair, row in zip(hazy, dataset.rows("train", "haze"), strict=True):
        assert pair.degraded is not None
        expected = pair.degraded.pixels()
        for window in (None, CropWindow(30, 50, 60, 70), CropWindow(0, 2, 97, 128)):
            found, _ = dataset.read(row, window)
            np.testing.assert_array_equal(found, expected if window is None else window.of(expected))
        shown, _ = dataset.read_for_display(row)
        np.testing.assert_array_equal(shown, expected)


def test_a_crop_of_a_damaged_interval_is_an_error_that_names_its_sample(hazy: PairsSource, tmp_path: Path):
    store, manifest = packed(hazy, tmp_path / "store")
    member = manifest.rows[0].degraded
    assert member is not None
    path = store.path(manifest.shards[0].key)
    dataset = Dataset([store.uri], ShardCache(tmp_path / "cache", 1 << 30))
    window = CropWindow(49, 66, 48, 64)
    dataset.read(manifest.rows[0], window)  # the shard is open: its checksum is not asked for again
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(member.offset + member.size - 30)
        file.write(b"\x55\x55")
    for which in (window, None):
        with pytest.raises(CorruptObjectError, match=r"sample 'in/a' at byte \d+: .*checksum"):
            dataset.read(manifest.rows[0], which)
    with pytest.raises(CorruptObjectError, match="does not match its sha256"):
        verify(store, manifest)


def test_without_jpegtran_files_are_kept_and_a_node_without_it_says_so(
    hazy: PairsSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tasks = []

    def noted(work, todo, on_rows):
        tasks.extend(todo)
        yield from run_inline(work, todo, on_rows)

    packed(hazy, tmp_path / "cut", runner=noted)
    monkeypatch.setenv("PATH", str(tmp_path))
    _, kept = packed(hazy, tmp_path / "kept")
    _, asked = packed(hazy, tmp_path / "asked", jpeg="keep")
    assert kept.digest == asked.digest
    with pytest.raises(ToolError, match=r"cannot be used on .*No such file.*apt install.*--jpeg keep"):
        pack_shard(tasks[0], lambda rows, id_: None)


def test_a_jpegtran_that_is_killed_stops_the_packing_instead_of_keeping_the_file(
    hazy: PairsSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "jpegtran"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ToolError, match="ended by signal 9"):
        packed(hazy, tmp_path / "store")
    monkeypatch.undo()
    _, manifest = packed(hazy, tmp_path / "store")
    assert manifest.provenance["jpeg"] == "cut"


def test_a_jpegtran_that_hangs_stops_the_packing(
    hazy: PairsSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "jpegtran"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(jpeg_intervals, "_MAX_SECONDS", 0.01)
    with pytest.raises(ToolError, match=r"it ran for more than 0\.01 seconds"):
        packed(hazy, tmp_path / "store")


def test_data_without_jpeg_files_has_the_digest_that_it_always_had(tmp_path: Path):
    lay_pairs(tmp_path / "raw", [("in/a.png", "gt/a.png")], (97, 130))
    source = PairsSource(tmp_path / "raw", "in/{key}.png", "gt/{key}.png", "haze")
    digests = {packed(source, tmp_path / word, jpeg=word)[1].digest for word in ("crop", "keep")}
    assert len(digests) == 1


def test_an_interrupted_packing_gives_the_same_bytes(hazy: PairsSource, tmp_path: Path):
    class StoppedError(Exception):
        pass

    def stopped(work, todo, on_rows):
        yield 0, work(todo[0], on_rows)
        raise StoppedError

    _, whole = packed(hazy, tmp_path / "whole", shard_bytes=1)
    with pytest.raises(StoppedError):
        packed(hazy, tmp_path / "store", shard_bytes=1, runner=stopped)
    _, resumed = packed(hazy, tmp_path / "store", shard_bytes=1)
    assert resumed.digest == whole.digest
