"""Packing again reads no raw file that it has read, and asks the store the same of any number of shards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.data import datasets
from shards import file_records, listing, scan
from shards.manifest_parquet import TABLES
from shards.processes import run_inline
from shards.store import LocalStore
from tests.scale.growth import stays_flat

PAIRS = [8, 24, 72]


class Counted:
    """A store that counts its requests."""

    def __init__(self, folder: Path, requests: Counter[str]) -> None:
        self._store, self._requests = LocalStore(folder), requests
        self.uri = self._store.uri

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(name)
        self._requests[name] += 1
        return getattr(self._store, name)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counter[str]:
    """Counts of the requests to the store, and of the raw files that are hashed or whose headers are read."""
    found: Counter[str] = Counter()

    def counted(name, function):
        def call(*arguments):
            found[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    monkeypatch.setattr(file_records, "_SETTLED_NS", -(10**9))
    monkeypatch.setattr(listing, "measure", counted("hashed", listing.measure))
    monkeypatch.setattr(scan, "read_header", counted("header", scan.read_header))
    monkeypatch.setattr(datasets, "open_store", lambda uri: Counted(Path(uri), found))
    monkeypatch.setattr(datasets, "ProcessPool", lambda jobs: run_inline)
    return found


def lay(root: Path, pairs: int) -> dict[str, object]:
    """Write raw pairs; return the section `data.pack` that packs each of them into a shard of its own."""
    rng = np.random.default_rng(0)
    for side in ("in", "gt"):
        (root / side).mkdir(parents=True)
    for number in range(pairs):
        pixels = rng.integers(0, 256, (600, 600, 3), np.uint8)
        Image.fromarray(pixels).save(root / "in" / f"{number}.bmp")
        (root / "gt" / f"{number}.bmp").symlink_to(root / "in" / f"{number}.bmp")
    return {
        "source": "pairs",
        "root": str(root),
        "degraded": "in/{key}.bmp",
        "clean": "gt/{key}.bmp",
        "degradation": "rain",
        "encoding": "original",
        "shard_mib": 1,
    }


def packed(spec: dict[str, object], out: Path, **options: bool) -> datasets.PackOutcome:
    nothing = datasets.PackCallbacks(*[lambda *_: None] * 3)
    return datasets.pack_dataset(spec, str(out), nothing, 1, **options)


def test_a_published_dataset_of_any_size_is_found_to_be_there(tmp_path: Path, counts: Counter[str]):
    def cost(pairs: int) -> float:
        spec, out = lay(tmp_path / f"raw-{pairs}", pairs), tmp_path / f"{pairs}"
        first = packed(spec, out)
        assert first.packed
        assert len(first.manifest.shards) == pairs
        assert counts["hashed"] >= 2 * pairs
        counts.clear()
        again = packed(spec, out)
        assert (again.packed, again.manifest.digest) == (False, first.manifest.digest)
        assert not {"hashed", "header", "write", "write_file", "read_range"} & counts.keys()
        assert counts["download"] == len(TABLES), "the manifest alone"
        requests = counts.total()
        counts.clear()
        assert not packed(spec, out, reread=True).packed
        assert counts["hashed"] == 2 * pairs
        return requests

    assert stays_flat(cost, PAIRS)[0] > 0


def test_a_shard_that_was_lost_is_packed_again(tmp_path: Path, counts: Counter[str]):
    spec, out = lay(tmp_path / "raw", 3), tmp_path / "out"
    first = packed(spec, out)
    (out / first.manifest.shards[1].key).unlink()
    again = packed(spec, out)
    assert (again.packed, again.manifest.digest) == (True, first.manifest.digest)
    assert not packed(spec, out).packed


def test_another_size_of_shards_is_packed_anew(tmp_path: Path, counts: Counter[str]):
    spec, out = lay(tmp_path / "raw", 3), tmp_path / "out"
    packed(spec, out)
    assert packed({**spec, "shard_mib": 2}, out).packed


def test_after_a_stop_no_raw_file_is_hashed_and_no_finished_shard_is_packed_again(
    tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
):
    spec, out = lay(tmp_path / "raw", 12), tmp_path / "out"

    def stops(work, tasks, on_rows):
        for index, task in enumerate(tasks):
            if index == 9:
                raise KeyboardInterrupt
            yield index, work(task, on_rows)

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "ProcessPool", lambda jobs: stops)
        with pytest.raises(KeyboardInterrupt):
            packed(spec, out)
    counts.clear()
    assert packed(spec, out).packed
    assert (counts["hashed"], counts["header"]) == (0, 0)
    assert counts["write_file"] == 3 + len(TABLES)
