"""Deraining: Rain100L."""

from __future__ import annotations

from shards.sources.layout import DatasetPart, FileLayout, PublishedDataset

RAIN100L = PublishedDataset(
    "Rain100L",
    (
        DatasetPart(
            "RainTrainL",
            "train",
            200,
            (
                FileLayout(
                    "AirNet, PromptIR, AdaIR, MIRAGE, MoCE-IR",
                    "gt/norain-{key:d}.png",
                    "rainy/rain-{key:d}.png",
                ),
                FileLayout("two folders", "norain/norain-{key:d}.png", "(rain|rainy)/rain-{key:d}.png"),
                # The original folder also holds rainstreak-*.png and rainregion-*.png.
                FileLayout("original folder", "norain-{key:d}.png", "rain-{key:d}.png"),
            ),
            "rain",
        ),
        DatasetPart(
            "Rain100L",
            "test",
            100,
            (
                FileLayout("two folders", "(norain|gt)/norain-{key:d}.png", "(rain|rainy)/rain-{key:d}.png"),
                FileLayout("MIRAGE", "target/norain-{key:d}.png", "input/rain-{key:d}.png"),
                FileLayout("PromptIR, AdaIR, AirNet", "target/{key}.png", "input/{key}.png"),
                FileLayout("one name on both sides", "(norain|gt)/{key}.png", "rainy/{key}.png"),
                FileLayout("original folder", "norain-{key:d}.png", "rain-{key:d}.png"),
            ),
            "rain",
        ),
    ),
    where="Rain100L of Yang et al. (JORDER): RainTrainL and Rain100L; sites carry an old and an updated release",
    lists={
        "8608fb031bb7cedcf17a167b9749a917": "rainTrain.txt of PromptIR, AdaIR and MIRAGE",
    },
)
