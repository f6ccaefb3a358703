"""Low light: LOL-v1. LOL-v2-real's test images are in its training part: never mix the two."""

from __future__ import annotations

from shards.sources.layout import DatasetPart, FileLayout, PublishedDataset

_LAYOUTS = (
    FileLayout("original", "high/{key:d}.png", "low/{key:d}.png"),
    FileLayout("AdaIR, MIRAGE train", "gt/{key:d}.png", "low/{key:d}.png"),
    FileLayout("MoCE-IR; AdaIR, MIRAGE test", "target/{key:d}.png", "input/{key:d}.png"),
)

LOL_V1 = PublishedDataset(
    "LOL-v1",
    (
        DatasetPart("our485", "train", 485, _LAYOUTS, "lowlight", size=(400, 600)),
        DatasetPart("eval15", "test", 15, _LAYOUTS, "lowlight", size=(400, 600)),
    ),
    where="LOL of Wei et al. (RetinexNet): our485 and eval15",
)
