"""Opening a dataset: what one process pays does not grow with the number of samples."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from pathlib import Path

import pytest

from orchestrator.bench.scale import synthetic_manifest
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.manifest import load_manifest, publish
from shards.store import LocalStore
from shards.stream import TrainStream
from tests.scale.growth import grows, stays_flat

SIZES = [500, 5_000, 50_000]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Datasets of each size, and the node's files of each."""
    roots = {}
    for size in SIZES:
        roots[size] = tmp_path_factory.mktemp("dataset")
        publish(LocalStore(roots[size]), synthetic_manifest(size))
        open_dataset(roots[size])
    return roots


def open_dataset(root: Path) -> Dataset:
    return Dataset([str(root)], ShardCache(root / "cache", 1 << 30))


def stream_of(dataset: Dataset) -> TrainStream:
    mixture = [("rain", 1), ("noise25", 2)]
    return TrainStream(dataset, mixture, seed=0, crop_pixels=64, global_batch_size=8)


def test_objects_that_a_process_holds_do_not_grow(published: dict[int, Path]):
    def objects(size: int) -> int:
        gc.collect()
        earlier = gc.get_objects()  # held, so that no new object takes the id of one that ends meanwhile
        ids = {id(each) for each in earlier}
        dataset = open_dataset(published[size])
        kept = dataset, dataset.rows("train", "rain")[7]
        gc.collect()
        assert kept
        return sum(id(each) not in ids for each in gc.get_objects())

    stays_flat(objects, SIZES)


def test_memory_that_a_process_keeps_does_not_grow(published: dict[int, Path]):
    def kept(size: int) -> int:
        tracemalloc.start()
        dataset = open_dataset(published[size])
        assert dataset.rows("train", "rain")[7]
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return held

    stays_flat(kept, SIZES)


def test_bytes_that_a_reader_receives_do_not_grow(published: dict[int, Path]):
    def sent(size: int) -> int:
        return len(pickle.dumps(stream_of(open_dataset(published[size]))))

    assert max(stays_flat(sent, SIZES)) < 10_000


def test_memory_of_a_whole_stream_is_a_few_bytes_a_sample(published: dict[int, Path]):
    """The sizes of all images are checked at the start, in blocks."""

    def peak(size: int) -> int:
        tracemalloc.start()
        stream_of(open_dataset(published[size]))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    costs = grows(peak, SIZES, at_most=1.05)
    assert costs[-1] < 100 * SIZES[-1]


class Counted(LocalStore):
    """A store that counts what is asked of it."""

    requests = 0

    def read(self, key: str) -> bytes:
        self.requests += 1
        return super().read(key)

    def write(self, key: str, data: bytes) -> None:
        self.requests += 1
        super().write(key, data)

    def write_file(self, key: str, path: Path) -> None:
        self.requests += 1
        super().write_file(key, path)

    def exists(self, key: str) -> bool:
        self.requests += 1
        return super().exists(key)


def test_requests_do_not_grow_and_bytes_stay_few(tmp_path: Path):
    def publishing(size: int) -> int:
        store = Counted(tmp_path / str(size))
        publish(store, synthetic_manifest(size))
        return store.requests

    def opening(size: int) -> int:
        store = Counted(tmp_path / str(size))
        load_manifest(store)
        return store.requests

    def stored(size: int) -> int:
        return sum(path.stat().st_size for path in (tmp_path / str(size)).rglob("*") if path.is_file())

    assert len(set(stays_flat(publishing, SIZES))) == 1
    assert len(set(stays_flat(opening, SIZES))) == 1
    assert grows(stored, SIZES, at_most=1.0)[-1] < 20 * SIZES[-1]
