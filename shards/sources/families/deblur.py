"""Deblurring: the `blur` frames of GoPro; `blur_gamma` is another dataset."""

from __future__ import annotations

from shards.sources.layout import DatasetPart, FileLayout, PublishedDataset

GOPRO = PublishedDataset(
    "GoPro",
    (
        DatasetPart(
            "GoPro train",
            "train",
            2103,
            (
                FileLayout(
                    "original tree, GOPRO_Large/train",
                    "train/{seq}/sharp/{frame}.png",
                    "train/{seq}/blur/{frame}.png",
                    id="{seq}_{frame}",
                ),
                FileLayout(
                    "MoCE-IR, crops of 512",
                    "train/target_crops/{frame}-{crop:d}.png",
                    "train/input_crops/{frame}-{crop:d}.png",
                    id="{frame}-{crop}",
                    pairs=16824,
                ),
                FileLayout(
                    "flattened (AdaIR, MIRAGE)", "sharp/{frame}.png", "blur/{frame}.png", id="{frame}"
                ),
                FileLayout("flattened", "target/{frame}.png", "input/{frame}.png", id="{frame}"),
            ),
            "blur",
            size=(720, 1280),
        ),
        DatasetPart(
            "GoPro test",
            "test",
            1111,
            (
                FileLayout(
                    "original tree, GOPRO_Large/test",
                    "test/{seq}/sharp/{frame}.png",
                    "test/{seq}/blur/{frame}.png",
                    id="{seq}_{frame}",
                ),
                FileLayout(
                    "flattened (AdaIR, MIRAGE, MoCE-IR)",
                    "target/{frame}.png",
                    "input/{frame}.png",
                    id="{frame}",
                ),
                FileLayout("flattened", "sharp/{frame}.png", "blur/{frame}.png", id="{frame}"),
            ),
            "blur",
            size=(720, 1280),
        ),
    ),
    where="GoPro of Nah et al., GOPRO_Large",
)
