"""Packing: exact pixels, plain WebDataset shards, the same bytes every time, nothing published by halves."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shards import tiles
from shards.errors import ManifestError, PackError
from shards.manifest import Manifest, load_manifest
from shards.pack import decode_tiles, pack
from shards.problems import DataProblem
from shards.sources import FolderSource, Pair
from shards.store import LocalStore, Store, open_store
from tests.shards.in_memory import InMemoryImage


class Listed:
    """A source of given pairs."""

    def __init__(self, pairs: list[Pair]) -> None:
        self.provenance: dict[str, object] = {"source": "listed"}
        self.listings: tuple[bytes, ...] = ()
        self.problems: tuple[DataProblem, ...] = ()
        self.licences = {"s": "l"}
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def training_counts(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize("encoding", ["fast", "compact"])
def test_every_pixel_of_every_pair_is_stored(each_store: Store, source: FolderSource, encoding: str):
    manifest = pack(source, each_store, name="cuts", encoding=encoding, shard_bytes=100_000)
    assert load_manifest(each_store) == manifest
    shards = [each_store.read(shard.key) for shard in manifest.shards]
    assert len(shards) > 1
    for shard, data in zip(manifest.shards, shards, strict=True):
        assert shard.key == f"shards/{hashlib.sha256(data).hexdigest()}.tar"
        assert shard.size == len(data)
    for pair, row in zip(source, manifest.rows, strict=True):
        assert (row.id, row.split, row.degradation) == (pair.id, pair.split, pair.degradation)
        for member, pixels in ((row.degraded, pair.degraded), (row.clean, pair.clean)):
            assert (member is None) == (pixels is None)
            if member is not None:
                data = shards[member.shard][member.offset : member.offset + member.size]
                assert zlib.crc32(data) == member.crc32
                assert (member.height, member.width) == (97, 130)
                np.testing.assert_array_equal(tiles.decode(data), pixels.pixels())


def test_packing_again_writes_nothing_and_gives_the_same_digest(source: FolderSource, tmp_path: Path):
    store = LocalStore(tmp_path)
    first = pack(source, store, name="cuts", shard_bytes=100_000)
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file()
    }
    again = pack(source, store, name="cuts", shard_bytes=100_000)
    after = {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file()
    }
    assert again.digest == first.digest
    assert after == before


def test_a_clean_image_is_stored_once_for_all_its_degraded_ones(packed: tuple[str, Manifest]):
    _, manifest = packed
    brick = [row for row in manifest.rows if row.id.startswith("brick")]
    assert len(brick) == 5
    assert len({row.clean for row in brick}) == 1


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves shards open
def test_vanilla_webdataset_reads_a_shard(packed: tuple[str, Manifest], source: FolderSource):
    uri, manifest = packed
    urls = [f"{uri}/{shard.key}" for shard in manifest.shards]
    groups = list(webdataset.WebDataset(urls, shardshuffle=False).decode(decode_tiles))
    assert [group["__key__"].split("-", 1)[1] for group in groups] == [
        "brick",
        "chelsea",
        "china",
        "coffee",
        "flower",
    ]
    rows = [(group, row) for group in groups for row in group["json"]]
    for pair, (group, row) in zip(source, rows, strict=True):
        assert (row["id"], row["split"], row["degradation"]) == (pair.id, pair.split, pair.degradation)
        np.testing.assert_array_equal(group["clean.tiles"], pair.clean.pixels())
        if pair.degraded is not None:
            np.testing.assert_array_equal(group[row["degraded"]], pair.degraded.pixels())


def test_a_shard_is_a_plain_tar_whose_bytes_depend_on_nothing_but_the_pairs(packed: tuple[str, Manifest]):
    uri, manifest = packed
    with tarfile.open(fileobj=io.BytesIO(open_store(uri).read(manifest.shards[0].key)), mode="r:") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.uname, member.gname) == (0, 0, "shards", "shards")
            assert member.isreg()


def test_names_that_tar_or_webdataset_would_misread_are_made_safe(tmp_path: Path):
    pixels = InMemoryImage(np.zeros((20, 20, 3), np.uint8))
    name = "../part1/0001_0.8_0.04 " + "ü" * 200
    manifest = pack(
        Listed([Pair(name, "train", "haze", pixels, pixels, "s")]), LocalStore(tmp_path), name="odd"
    )
    with tarfile.open(tmp_path / manifest.shards[0].key) as tar:
        assert all("/" not in member and member.count(".") <= 2 for member in tar.getnames())
    assert manifest.rows[0].id == name


PIXELS = np.zeros((20, 20, 3), np.uint8)
GOOD = Pair("a", "train", "rain", InMemoryImage(PIXELS), InMemoryImage(PIXELS), "s")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (GOOD, "'a'.*comes twice"),
        (replace(GOOD, id="b", degraded=InMemoryImage(PIXELS[:10], "half")), r"half \(20 x 10; .* 20 x 20\)"),
        (replace(GOOD, id="b", degraded=None), "'b'"),
        (
            replace(GOOD, id="b", clean=InMemoryImage(PIXELS[..., 0]), degraded=InMemoryImage(PIXELS)),
            "8-bit RGB",
        ),
    ],
)
def test_one_bad_pair_publishes_nothing(each_store: Store, bad: Pair, says: str):
    with pytest.raises(PackError, match=says):
        pack(Listed([GOOD, bad]), each_store, name="bad", shard_bytes=1)
    with pytest.raises(ManifestError, match="no manifest"):
        load_manifest(each_store)


def test_nothing_to_pack_is_an_error(tmp_path: Path):
    with pytest.raises(PackError, match="no pairs"):
        pack(Listed([]), LocalStore(tmp_path), name="empty")


def test_progress_counts_every_row(source: FolderSource, tmp_path: Path):
    seen: list[tuple[int, int, str]] = []
    pack(source, LocalStore(tmp_path), name="cuts", on_progress=lambda *now: seen.append(now))
    assert [done for done, _, _ in seen] == list(range(1, len(source) + 1))
    assert {total for _, total, _ in seen} == {len(source)}


def test_the_manifest_says_where_the_data_came_from(packed: tuple[str, Manifest]):
    _, manifest = packed
    assert manifest.provenance["seed"] == 3
    assert manifest.provenance["encoding"] == "fast"
    assert manifest.licences == {"folder": "not stated"}
    assert json.dumps(manifest.provenance)
