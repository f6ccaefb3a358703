"""Scores are means with intervals; published benchmarks are recognised, and their leaked images left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.evaluation.aggregates import aggregate
from orchestrator.evaluation.bootstrap import Interval, mean_over_images
from orchestrator.evaluation.extremes import extremes
from orchestrator.evaluation.image_results import ImageResult, from_parquet, to_parquet
from orchestrator.evaluation.model_under_test import ModelIdentity
from orchestrator.paper.benchmarks import is_leaked, matches_column
from shards.sources.leaks import OTS_SCENES_OF_SOTS

ONE = ImageResult(
    "sots", "d" * 64, "SOTS outdoor", "haze", "0001_0.8_0.2", "rgb", 8, 8, 30.0, 0.9, None, 20.0, 0.8, 0.1
)
IDENTITY = ModelIdentity("model", "release", "raw", "e" * 64)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(30, 2, 400)
    found = mean_over_images([dict(enumerate(values))])
    assert found.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(found.mean - half, abs=0.02)
    assert found.high == pytest.approx(found.mean + half, abs=0.02)


def test_the_interval_of_an_infinite_psnr_is_the_range_of_the_values() -> None:
    assert mean_over_images([{"a": 1.0, "b": np.inf}]) == Interval(np.inf, 1.0, np.inf)


def test_images_that_several_groups_share_are_drawn_together() -> None:
    values = {str(i): float(v) for i, v in enumerate(np.random.default_rng(1).normal(0, 2, 50))}
    opposite = {image: -value for image, value in values.items()}
    together = mean_over_images([values, opposite])
    assert together.low == pytest.approx(0, abs=1e-12)
    assert together.high == pytest.approx(0, abs=1e-12)
    apart = mean_over_images([values, {f"other {image}": value for image, value in opposite.items()}])
    assert apart.high - apart.low > 0.5


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
    for alike in (images[:2], images[2:]):  # where all or none are leaked there is nothing to tell apart
        assert {f.subset for f in aggregate(alike, IDENTITY, "release")} == {"all"}


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
    assert [(rank, one.image) for rank, one in extremes(images, 1)] == [("worst", "0"), ("best", "2")]
    assert [(rank, one.image) for rank, one in extremes(images, 2)] == [
        ("worst", "0"),
        ("worst", "1"),
        ("best", "2"),
    ]
    assert [rank for rank, _ in extremes(images[:1], 1)] == ["worst"]


@pytest.mark.parametrize(
    ("sources", "subsets"),
    [
        (("CBSD68",), {"CBSD68"}),
        (("CBSD68", "Rain100L"), {"", "CBSD68", "Rain100L"}),
        (("cat", "Rain100L"), {"", "Rain100L"}),
        (("cat",), {""}),
        (("cat", "coffee"), {""}),
    ],
)
def test_only_one_published_benchmark_alone_has_no_score_of_the_whole_set(
    sources: tuple[str, ...], subsets: set[str]
) -> None:
    images = [replace(ONE, source=source) for source in sources]
    assert {score.source for score in aggregate(images, IDENTITY, "release")} == subsets
