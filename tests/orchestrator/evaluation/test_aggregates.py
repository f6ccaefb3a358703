"""Figures are means with intervals, and the published benchmarks are told apart, leaks included."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.evaluation.aggregates import aggregate, extremes, is_leaked, mean_and_interval
from orchestrator.evaluation.image_results import ImageResult, from_parquet, to_parquet
from orchestrator.evaluation.model_under_test import ModelIdentity
from orchestrator.paper.benchmarks import matches_column
from shards.sources.leaks import OTS_SCENES_OF_SOTS

ONE = ImageResult(
    "sots", "d" * 64, "SOTS outdoor", "haze", "0001_0.8_0.2", "rgb", 8, 8, 30.0, 0.9, None, 20.0, 0.8, 0.1
)
IDENTITY = ModelIdentity("model", "release", "raw", "e" * 64)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(30, 2, 400)
    mean, low, high = mean_and_interval(values)
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert (low, high) == (pytest.approx(mean - half, abs=0.02), pytest.approx(mean + half, abs=0.02))
    assert mean_and_interval(np.array([1.0, np.inf])) == (np.inf, 1.0, np.inf)


def test_the_leaked_scenes_are_75_and_their_images_are_left_out_beside_the_whole() -> None:
    assert len(OTS_SCENES_OF_SOTS) == 75
    images = [
        replace(ONE, image="0025_0.8_0.2", psnr=40.0),
        replace(ONE, image="0330_1_0.1", psnr=40.0),
        replace(ONE, image="0001_0.8_0.2", psnr=30.0),
    ]
    by_subset = {f.subset: f for f in aggregate(images, IDENTITY, "release") if f.metric == "psnr"}
    assert by_subset["all"].value == pytest.approx(110 / 3)
    assert (by_subset["without-leak"].value, by_subset["without-leak"].n) == (30.0, 1)
    assert not is_leaked("another", "0025_0.8_0.2")


def test_a_set_of_many_origins_is_one_benchmark_and_a_published_one_in_it_another() -> None:
    images = [
        replace(ONE, source="cat", degradation="noise25"),
        replace(ONE, source="coffee", degradation="noise25", psnr=20.0),
        replace(ONE, source="CBSD68", degradation="noise25", psnr=40.0),
    ]
    found = {f.source: f.value for f in aggregate(images, IDENTITY, "per-image") if f.metric == "psnr"}
    assert found == {"": pytest.approx(30.0), "CBSD68": pytest.approx(40.0)}
    assert {f.noise for f in aggregate(images, IDENTITY, "per-image")} == {"per-image"}
    assert {f.noise for f in aggregate([ONE], IDENTITY, "per-image")} == {""}


def test_a_column_is_a_dataset_and_a_degradation() -> None:
    assert matches_column("bsd68_s25", "CBSD68", "noise25")
    assert not matches_column("bsd68_s25", "CBSD68", "noise50")
    assert not matches_column("rain100l", "CDD-11_test", "rain")
    assert matches_column("low", "CDD-11_test", "lowlight")


def test_a_parquet_file_gives_back_what_was_put_in() -> None:
    images = [ONE, replace(ONE, lpips=0.25, psnr=float("inf"))]
    assert from_parquet(to_parquet(images)) == images


def test_extremes_are_the_worst_and_the_best_and_never_the_same_image_twice() -> None:
    images = [replace(ONE, image=str(i), psnr=float(i)) for i in range(3)]
    ((worst, best),) = extremes(images, 1).values()
    assert [w.image for w in worst] == ["0"]
    assert [b.image for b in best] == ["2"]
    ((worst, best),) = extremes(images[:1], 1).values()
    assert (len(worst), len(best)) == (1, 0)
