"""The evaluation set: whole held-out images, a fixed order, noise that depends on the image alone."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from shards.dataset import Dataset
from shards.errors import ManifestError
from shards.evaluation import EvaluationSet
from shards.sources import FolderSource


def test_items_are_the_held_out_pairs_in_order(dataset: Dataset, source: FolderSource):
    pairs = {(pair.degradation, pair.id): pair for pair in source if pair.split == "test"}
    items = list(EvaluationSet(dataset, ["rain", "haze"], seed=0, multiple=1))
    assert [(item.degradation, item.id) for item in items] == [
        ("rain", "chelsea"),
        ("rain", "coffee"),
        ("haze", "chelsea"),
        ("haze", "coffee"),
    ]
    for item in items:
        np.testing.assert_array_equal(item.clean, pairs[item.degradation, item.id].clean.pixels())
        np.testing.assert_array_equal(item.degraded, pairs[item.degradation, item.id].degraded.pixels())


def test_images_are_cut_to_multiples_of_16(dataset: Dataset):
    shapes = [(i.clean.shape, i.degraded.shape) for i in EvaluationSet(dataset, ["noise15", "rain"], seed=0)]
    assert shapes == 4 * [((96, 128, 3), (96, 128, 3))]


def test_noise_depends_on_seed_image_and_level_alone(dataset: Dataset):
    both = {(i.degradation, i.id): i.degraded for i in EvaluationSet(dataset, ["noise15", "noise25"], seed=0)}
    alone = {(i.degradation, i.id): i.degraded for i in EvaluationSet(dataset, ["noise25"], seed=0)}
    for key, image in alone.items():
        np.testing.assert_array_equal(image, both[key])
    noise = [i.degraded.astype(int) - i.clean for i in EvaluationSet(dataset, ["noise15", "noise25"], seed=0)]
    for one, other in combinations(noise, 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1
    other = next(iter(EvaluationSet(dataset, ["noise25"], seed=1)))
    assert (other.degraded != alone["noise25", "chelsea"]).any()
    for item in EvaluationSet(dataset, ["noise15", "noise25"], seed=0):
        inside = (item.clean > 80) & (item.clean < 175)
        deviation = (item.degraded.astype(float) - item.clean)[inside].std()
        assert deviation == pytest.approx(int(item.degradation.removeprefix("noise")), rel=0.05)


def test_workers_share_the_set_without_gap_or_overlap(dataset: Dataset):
    whole = EvaluationSet(dataset, ["noise15", "rain", "haze"], seed=0)
    names = [(item.degradation, item.id) for item in whole]
    shares = [[(i.degradation, i.id) for i in whole.items(start, 4)] for start in range(4)]
    assert len(whole) == len(names) == 6
    assert sorted(name for part in shares for name in part) == sorted(names)


def test_what_is_not_held_out_is_said(dataset: Dataset):
    with pytest.raises(
        ManifestError, match=r"no test samples of 'snow'.*haze \(2\), noise \(2\), rain \(2\)"
    ):
        EvaluationSet(dataset, ["rain", "snow"], seed=0)
