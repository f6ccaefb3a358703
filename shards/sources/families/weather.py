"""Adverse weather: AllWeather for training, and its four test sets."""

from __future__ import annotations

from shards.sources.layout import DatasetPart, FileLayout, PairLabel, PublishedDataset, TestLeak
from shards.sources.leaks import OUTDOOR_RAIN_TEST1

_SAME_NAME = FileLayout("TransWeather", "gt/{key}.(png|jpg)", "input/{key}.(png|jpg)")

ALLWEATHER = PublishedDataset(
    "AllWeather",
    (
        DatasetPart(
            "AllWeather",
            "train",
            18069,
            (_SAME_NAME,),
            labels=(
                PairLabel("im_*.png", "haze_rain", "Outdoor-Rain", 8250),
                PairLabel("*.jpg", "snow", "Snow100K", 9001),
                PairLabel("*rain*.png", "raindrop", "RainDrop", 818),
            ),
            leak=TestLeak(
                OUTDOOR_RAIN_TEST1,
                "The scenes im_0301 to im_0350 are Outdoor-Rain's Test1. AllWeather's own list leaves them out, "
                "some repacked archives do not.",
                published=False,
            ),
        ),
    ),
    where="AllWeather of TransWeather: parts of Outdoor-Rain, Snow100K and RainDrop",
)


def _snow(name: str, pairs: int) -> PublishedDataset:
    return PublishedDataset(
        name,
        (
            DatasetPart(
                name,
                "test",
                pairs,
                (
                    FileLayout("original", "gt/{key}.jpg", "synthetic/{key}.jpg"),
                    FileLayout("TransWeather", "gt/{key}.jpg", "input/{key}.jpg"),
                ),
                "snow",
                wrong_counts={
                    16611: "This is Snow100K-S: pack snow100k-s.",
                    16588: "This is Snow100K-M, which the paper does not test on.",
                    16801: "This is Snow100K-L: pack snow100k-l.",
                },
            ),
        ),
        where="Snow100K of DesnowNet (its own link is dead, mirrors exist)",
    )


SNOW100K_S = _snow("Snow100K-S", 16611)
SNOW100K_L = _snow("Snow100K-L", 16801)

TEST1 = PublishedDataset(
    "Outdoor-Rain Test1",
    (
        DatasetPart(
            "Outdoor-Rain Test1",
            "test",
            750,
            (
                _SAME_NAME,
                FileLayout(
                    "original: one clean image for fifteen",
                    "gt/im_{key:d}.png",
                    "(in|input|test_in)/im_{key:d}_{streaks}_{veil}.png",
                ),
            ),
            "haze_rain",
        ),
    ),
    where="Outdoor-Rain of Li et al. (Heavy Rain Removal), Test1 (its own link is dead, mirrors exist)",
)


def _raindrop(name: str, pairs: int) -> PublishedDataset:
    other = {249: "This is test_b: pack raindrop-b.", 58: "This is test_a: pack raindrop-a."}
    return PublishedDataset(
        f"RainDrop {name}",
        (
            DatasetPart(
                name,
                "test",
                pairs,
                (
                    FileLayout("original", "gt/{key:d}_clean.(png|jpg)", "data/{key:d}_rain.(png|jpg)"),
                    _SAME_NAME,
                ),
                "raindrop",
                wrong_counts={count: text for count, text in other.items() if count != pairs},
            ),
        ),
        where="RainDrop of Qian et al. (AttentiveGAN)",
    )


RAINDROP_A = _raindrop("test_a", 58)
RAINDROP_B = _raindrop("test_b", 249)
