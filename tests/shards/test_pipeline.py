"""Packed data as other programs read it: WebDataset pipelines, `mirage stream`'s tar, and Ray Data."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from shards import decode_images
from shards.cache import ShardCache
from shards.errors import ManifestError
from shards.manifest import Manifest
from shards.pack import pack
from shards.photographs import PHOTOGRAPHS, photograph_file
from shards.pipeline import open_pipeline, write_tar
from shards.problems import DataProblem
from shards.scan import Jpeg
from shards.sources import FolderSource, Pair
from shards.sources.image import ImageFile
from shards.store import LocalStore, Store
from tests.shards.in_memory import InMemoryImage

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves tars open


class FixedPairs:
    """A source of computed images and one JPEG file."""

    listings: tuple[bytes, ...] = ()
    problems: tuple[DataProblem, ...] = ()

    def __init__(self) -> None:
        self.provenance: dict[str, object] = {"source": "listed"}
        self.licences = {"s": "l"}
        a, b = computed(1), computed(2, 33, 65)
        rocket = next(p for p in PHOTOGRAPHS if p.name == "rocket")
        self.pairs = [
            Pair("a/0001_0.8 ü", "train", "noise", None, a, "s"),
            Pair("a-1", "train", "rain", computed(3), a, "s"),
            Pair("a-2", "train", "haze", computed(4), a, "s"),
            Pair("b", "test", "low_haze", computed(5, 33, 65), b, "s"),
            Pair("rocket", "test", "noise", None, ImageFile(photograph_file(rocket)[1]), "s"),
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def training_counts(self) -> dict[str, int]:
        return {}


def computed(seed: int, height: int = 70, width: int = 90) -> InMemoryImage:
    y, x, c = np.ogrid[:height, :width, :3]
    return InMemoryImage((((x + seed) * (y + 3) + 40 * c * seed) % 251).astype(np.uint8))


def test_packed_bytes_are_those_of_every_earlier_release(tmp_path: Path):
    """Digests recorded at commit ac01d82, before shards were written by `webdataset.TarWriter`."""
    manifest = pack(FixedPairs(), LocalStore(tmp_path), name="recorded", shard_bytes=30_000, jpeg="keep")
    assert [shard.sha256 for shard in manifest.shards] == [
        "07640b3226b49f58a50be725c8a62fea57867101af38735c722b6c006252c809",
        "291c16a8b7e95868c3756c4bbabe17761d13909673d2bdd1eef6d68b07268512",
    ]
    assert manifest.digest == "6712957ea4001a4172984079eb6175032e4a6f90d44ee2c795efeb85f5de6eb2"


def check_samples(samples: list[dict], source: FolderSource) -> None:
    """Decoded samples are the pairs of the source, in its order, pixel for pixel."""
    for sample, pair in zip(samples, source, strict=True):
        assert (sample["json"]["id"], sample["json"]["split"]) == (pair.id, pair.split)
        np.testing.assert_array_equal(sample["clean.png"], pair.clean.pixels())
        assert ("degraded.png" in sample) == (pair.degraded is not None)
        if pair.degraded is not None:
            np.testing.assert_array_equal(sample["degraded.png"], pair.degraded.pixels())


def test_a_pipeline_yields_one_decodable_sample_per_row(
    each_store: Store, source: FolderSource, cache: ShardCache
):
    pack(source, each_store, name="cuts", shard_bytes=100_000)
    pipeline = open_pipeline(each_store.uri, cache).compose(webdataset.decode("rgb8"))
    check_samples(list(pipeline), source)
    assert len({sample["__key__"] for sample in pipeline}) == len(source)


def test_split_and_degradation_select_rows_and_the_shards_with_none_are_not_read(
    packed: tuple[str, Manifest], cache: ShardCache, monkeypatch: pytest.MonkeyPatch
):
    uri, manifest = packed
    opened = []
    original = ShardCache.open
    monkeypatch.setattr(
        ShardCache,
        "open",
        lambda self, store, shard: opened.append(shard.key) or original(self, store, shard),
    )
    samples = list(open_pipeline(uri, cache, split="test", degradation="noise25"))
    rows = [row for row in manifest.rows if (row.split, row.degradation) == ("test", "noise")]
    assert len(samples) == len(rows) == 2
    assert sorted(opened) == sorted({manifest.shards[row.clean.shard].key for row in rows})
    assert len(opened) < len(manifest.shards)


def test_a_selection_without_samples_is_an_error_that_says_what_there_is(
    packed: tuple[str, Manifest], cache: ShardCache
):
    with pytest.raises(ManifestError, match=r"split test and degradation snow.*test rain \(2\)"):
        open_pipeline(packed[0], cache, split="test", degradation="snow")


def test_loader_workers_share_the_shards(
    packed: tuple[str, Manifest], cache: ShardCache, source: FolderSource
):
    loader = DataLoader(open_pipeline(packed[0], cache), batch_size=None, num_workers=2)
    assert sorted(sample["__key__"] for sample in loader) == sorted(
        sample["__key__"] for sample in open_pipeline(packed[0], cache)
    )


@pytest.mark.parametrize("jpeg", ["keep", "crop"])
def test_a_written_tar_is_plain_webdataset_and_kept_files_have_their_bytes_and_cut_ones_their_pixels(
    tmp_path: Path, cache: ShardCache, jpeg: Jpeg
):
    store = LocalStore(tmp_path / "store")
    pack(FixedPairs(), store, name="fixed", shard_bytes=30_000, jpeg=jpeg)
    tar = tmp_path / "samples.tar"
    with tar.open("wb") as file:
        assert write_tar(open_pipeline(store.uri, cache), file) == 5
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [sorted(name for name in sample if name[0] != "_") for sample in samples] == [
        ["clean.png", "json"],
        *[["clean.png", "degraded.png", "json"]] * 3,
        ["clean.jpg", "json"],
    ]
    last = list(FixedPairs())[-1]
    written = samples[-1]["clean.jpg"]
    assert jpeg == "crop" or written == last.clean.file.read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(written))), last.clean.pixels())


def test_the_same_data_gives_the_same_tar(packed: tuple[str, Manifest], cache: ShardCache):
    first, second = io.BytesIO(), io.BytesIO()
    write_tar(open_pipeline(packed[0], cache), first)
    write_tar(open_pipeline(packed[0], cache), second)
    assert hashlib.sha256(first.getvalue()).digest() == hashlib.sha256(second.getvalue()).digest()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own defaults warn
def test_ray_data_reads_shards_and_streamed_tars(
    packed: tuple[str, Manifest], cache: ShardCache, source: FolderSource, tmp_path: Path
):
    import ray

    uri, manifest = packed
    tar = tmp_path / "samples.tar"
    with tar.open("wb") as file:
        write_tar(open_pipeline(uri, cache), file)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        groups = ray.data.read_webdataset(
            [f"{uri}/{shard.key}" for shard in manifest.shards], decoder=None
        ).take_all()
        samples = ray.data.read_webdataset(str(tar), decoder=None).take_all()
    finally:
        ray.shutdown()
    cleans = {
        group["__key__"].split("-", 1)[1]: decode_images("x.tiles", group["clean.tiles"]) for group in groups
    }
    for sample, pair in zip(sorted(samples, key=lambda s: s["__key__"]), source, strict=True):
        clean = pair.clean.pixels()
        np.testing.assert_array_equal(cleans[pair.id.split("-")[0]], clean)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample["clean.png"]))), clean)
