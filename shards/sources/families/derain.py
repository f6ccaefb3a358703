"""Deraining: Rain100L."""

from __future__ import annotations

from shards.sources.layout import Layout, Part, Published

RAIN100L = Published(
    "Rain100L",
    (
        Part(
            "RainTrainL",
            "train",
            200,
            (
                Layout(
                    "AirNet, PromptIR, AdaIR, MIRAGE, MoCE-IR",
                    "gt/norain-{key:d}.png",
                    "rainy/rain-{key:d}.png",
                ),
                Layout("two folders", "norain/norain-{key:d}.png", "(rain|rainy)/rain-{key:d}.png"),
                # The original folder also holds rainstreak-*.png and rainregion-*.png.
                Layout("original folder", "norain-{key:d}.png", "rain-{key:d}.png"),
            ),
            "rain",
        ),
        Part(
            "Rain100L",
            "test",
            100,
            (
                Layout("two folders", "(norain|gt)/norain-{key:d}.png", "(rain|rainy)/rain-{key:d}.png"),
                Layout("MIRAGE", "target/norain-{key:d}.png", "input/rain-{key:d}.png"),
                Layout("PromptIR, AdaIR, AirNet", "target/{key}.png", "input/{key}.png"),
                Layout("one name on both sides", "(norain|gt)/{key}.png", "rainy/{key}.png"),
                Layout("original folder", "norain-{key:d}.png", "rain-{key:d}.png"),
            ),
            "rain",
        ),
    ),
    where="Rain100L of Yang et al. (JORDER): RainTrainL and Rain100L; sites carry an old and an updated release",
    lists={
        "8608fb031bb7cedcf17a167b9749a917": "rainTrain.txt of PromptIR, AdaIR and MIRAGE",
    },
)
