"""Encodings: what a reader decodes is the source, pixel for pixel, and shards stay plain WebDataset tars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards.augment import CropWindow
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.errors import CorruptObjectError, ManifestError, PackError
from shards.manifest import from_bytes, load_manifest, to_bytes
from shards.pack import decode_images, pack
from shards.sources import FolderSource, PairsSource
from shards.store import LocalStore
from tests.shards.raw import cut, harmed, lay_pairs, save


@pytest.fixture
def mixed(tmp_path: Path) -> PairsSource:
    """Two pairs of PNG, two with JPEG degraded files that share a clean PNG."""
    root = tmp_path / "raw"
    lay_pairs(
        root,
        [
            ("in/a_1.png", "gt/a.png"),
            ("in/b_1.png", "gt/b.png"),
            ("in/c_1.jpg", "gt/c.png"),
            ("in/c_2.jpg", "gt/c.png"),
        ],
        (97, 130),
    )
    return PairsSource(root, "in/{key}_{draw}.(png|jpg)", "gt/{key}.png", "haze")


@pytest.mark.parametrize("jpeg", ["crop", "keep", "tile"])
@pytest.mark.parametrize("encoding", ["fast", "compact", "original"])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves shards open
def test_pixels_are_those_of_the_source_for_us_and_for_vanilla_webdataset(
    mixed: PairsSource, tmp_path: Path, encoding: str, jpeg: str
):
    store = LocalStore(tmp_path / "store")
    manifest = pack(mixed, store, name="mixed", encoding=encoding, jpeg=jpeg)
    dataset = Dataset([store.uri], ShardCache(tmp_path / "cache", 1 << 30))
    window = CropWindow(30, 50, 60, 70)
    for pair, row in zip(mixed, manifest.rows, strict=True):
        assert pair.degraded is not None
        for read, source in zip(dataset.read(row), (pair.degraded, pair.clean), strict=True):
            np.testing.assert_array_equal(read, np.asarray(Image.open(source.name).convert("RGB")))
        for read, source in zip(dataset.read(row, window), (pair.degraded, pair.clean), strict=True):
            np.testing.assert_array_equal(read, source.pixels()[30:90, 50:120])

    urls = [str(store.path(shard.key)) for shard in manifest.shards]
    groups = list(webdataset.WebDataset(urls, shardshuffle=False).decode(decode_images))
    assert len(groups) == 3  # the clean image that two hazy ones share is stored once
    rows = [(group, row) for group in groups for row in group["json"]]
    for pair, (group, row) in zip(mixed, rows, strict=True):
        assert pair.degraded is not None
        np.testing.assert_array_equal(group[row["clean"]], pair.clean.pixels())
        np.testing.assert_array_equal(group[row["degraded"]], pair.degraded.pixels())


def test_jpeg_files_keep_their_bytes_or_become_tiles_where_that_is_asked_for_and_the_growth_is_stated(
    mixed: PairsSource, tmp_path: Path
):
    kept = pack(mixed, LocalStore(tmp_path / "kept"), name="m", jpeg="keep")
    tiled = pack(mixed, LocalStore(tmp_path / "tiled"), name="m", jpeg="tile")
    assert [row.degraded and row.degraded.encoding for row in kept.rows] == [
        *("tiles-qoi", "tiles-qoi", "original", "original")
    ]
    for row, pair in list(zip(kept.rows, mixed, strict=True))[2:]:
        assert row.degraded is not None
        data = LocalStore(tmp_path / "kept").read_range(
            kept.shards[row.degraded.shard].key, row.degraded.offset, row.degraded.size
        )
        assert pair.degraded is not None
        assert data == Path(pair.degraded.name).read_bytes()
    assert {row.degraded and row.degraded.encoding for row in tiled.rows} == {"tiles-qoi"}
    before, after = tiled.provenance["jpeg_tiled_bytes"]
    assert 0 < before < after
    assert kept.provenance["jpeg_tiled_bytes"] == [0, 0]


def test_a_manifest_of_tiles_alone_stays_of_version_1(mixed: PairsSource, tmp_path: Path):
    tiled = pack(mixed, LocalStore(tmp_path / "tiled"), name="m", jpeg="tile")
    kept = pack(mixed, LocalStore(tmp_path / "kept"), name="m", jpeg="keep")
    assert (tiled.version, kept.version) == (1, 2)
    for manifest in (tiled, kept):
        assert from_bytes(to_bytes(manifest), "here").digest == manifest.digest


DEEP = (np.arange(40 * 48 * 3, dtype=np.uint16) * 7).reshape(40, 48, 3)


def deep_png(path: Path) -> None:
    import imagecodecs

    path.write_bytes(imagecodecs.png_encode(DEEP))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (deep_png, DEEP),
        (lambda path: Image.fromarray(DEEP[..., 0]).save(path), DEEP[..., 0]),
        (
            lambda path: Image.fromarray(np.dstack([cut(1), cut(2)[..., :1]])).save(path),
            np.dstack([cut(1), cut(2)[..., :1]]),
        ),
    ],
    ids=["RGB of 16 bits", "grey of 16 bits", "alpha"],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_what_tiles_cannot_hold_is_packed_as_it_is_or_refused(tmp_path: Path, write, expected: np.ndarray):
    save(tmp_path / "raw/gt/a.png", cut(1))
    (tmp_path / "raw/in").mkdir()
    write(tmp_path / "raw/in/a.png")
    source = PairsSource(tmp_path / "raw", "in/{key}.png", "gt/{key}.png", "haze")
    store = LocalStore(tmp_path / "store")
    for encoding in ("fast", "compact"):
        with pytest.raises(PackError, match=r"in/a.png \(mode .*--encoding original"):
            pack(source, store, name="deep", encoding=encoding)
    manifest = pack(source, store, name="deep", encoding="original")
    urls = [str(store.path(shard.key)) for shard in manifest.shards]
    (group,) = webdataset.WebDataset(urls, shardshuffle=False).decode(decode_images)
    np.testing.assert_array_equal(group[group["json"][0]["degraded"]], expected)
    dataset = Dataset([store.uri], ShardCache(tmp_path / "cache", 1 << 30))
    with pytest.raises(CorruptObjectError, match=r"(?s)'in/a'.*not 8-bit grey or RGB"):
        dataset.read(manifest.rows[0])
    shown, _ = dataset.read_for_display(manifest.rows[0])
    assert shown is not None
    eight = expected >> 8 if expected.dtype == np.uint16 else expected
    eight = np.repeat(eight[..., None], 3, axis=2) if eight.ndim == 2 else eight[..., :3]
    assert np.abs(shown.astype(int) - eight).max() <= 1


def test_what_is_made_or_cut_has_no_source_bytes(photographs: Path, tmp_path: Path):
    source = FolderSource(photographs, ["rain"])
    with pytest.raises(PackError, match=r"have no source bytes.*--encoding fast or compact"):
        pack(source, LocalStore(tmp_path), name="made", encoding="original")
    with pytest.raises(ManifestError):
        load_manifest(LocalStore(tmp_path))


def test_the_input_psnr_of_each_split_is_recorded(tmp_path: Path):
    clean = cut(3)
    save(tmp_path / "raw/gt/a.png", clean)
    save(tmp_path / "raw/in/a.png", harmed(clean))
    source = PairsSource(tmp_path / "raw", "in/{key}.png", "gt/{key}.png", "haze")
    manifest = pack(source, LocalStore(tmp_path / "store"), name="p")
    error = ((clean.astype(float) - harmed(clean)) ** 2).mean()
    assert manifest.provenance["input_psnr"] == {"train": {"haze": round(10 * np.log10(255**2 / error), 2)}}
