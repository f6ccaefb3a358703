"""A folder of clean photographs is packed once, as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.errors import PackError
from shards.images import read_image
from shards.pack import pack
from shards.sources import CleanSource
from shards.store import LocalStore


def test_clean_photographs_are_stored_once_and_serve_both_splits(
    photographs: Path, cache: ShardCache, tmp_path: Path
):
    source = CleanSource(photographs, held_out=["coffee"], licence="CC0")
    manifest = pack(source, LocalStore(tmp_path / "data"), name="clean")
    assert manifest.counts() == {"train": {"noise": 4}, "test": {"noise": 1}}
    assert source.training_counts() == {"noise": 4}
    assert (len(source), manifest.licences) == (5, {"folder": "CC0"})
    dataset = Dataset([str(tmp_path / "data")], cache)
    (row,) = dataset.rows("test", "noise")
    degraded, clean = dataset.read(row)
    assert degraded is None
    assert np.array_equal(clean, read_image(photographs / "coffee.png"))
    assert pack(source, LocalStore(tmp_path / "data"), name="clean").digest == manifest.digest


def test_a_share_of_the_photographs_is_held_out(photographs: Path):
    source = CleanSource(photographs, held_out_share=0.4)
    splits = [pair.split for pair in source]
    assert splits.count("test") == 2
    assert source.training_counts() == {"noise": 3}
    assert source.provenance["held_out"] == 0.4


def test_names_and_a_share_together_are_refused(photographs: Path):
    with pytest.raises(PackError, match="Give one of them"):
        CleanSource(photographs, held_out=["coffee"], held_out_share=0.4)
