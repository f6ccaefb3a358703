"""Deblurring: GoPro, its `blur` frames; `blur_gamma` is another dataset."""

from __future__ import annotations

from shards.sources.layout import Layout, Part, Published

GOPRO = Published(
    "GoPro",
    (
        Part(
            "GoPro train",
            "train",
            2103,
            (
                Layout(
                    "original tree, GOPRO_Large/train",
                    "train/{seq}/sharp/{frame}.png",
                    "train/{seq}/blur/{frame}.png",
                    id="{seq}_{frame}",
                ),
                Layout(
                    "MoCE-IR, crops of 512",
                    "train/target_crops/{frame}-{crop:d}.png",
                    "train/input_crops/{frame}-{crop:d}.png",
                    id="{frame}-{crop}",
                    pairs=16824,
                ),
                Layout("flattened (AdaIR, MIRAGE)", "sharp/{frame}.png", "blur/{frame}.png", id="{frame}"),
                Layout("flattened", "target/{frame}.png", "input/{frame}.png", id="{frame}"),
            ),
            "blur",
            size=(720, 1280),
        ),
        Part(
            "GoPro test",
            "test",
            1111,
            (
                Layout(
                    "original tree, GOPRO_Large/test",
                    "test/{seq}/sharp/{frame}.png",
                    "test/{seq}/blur/{frame}.png",
                    id="{seq}_{frame}",
                ),
                Layout(
                    "flattened (AdaIR, MIRAGE, MoCE-IR)",
                    "target/{frame}.png",
                    "input/{frame}.png",
                    id="{frame}",
                ),
                Layout("flattened", "sharp/{frame}.png", "blur/{frame}.png", id="{frame}"),
            ),
            "blur",
            size=(720, 1280),
        ),
    ),
    where="GoPro of Nah et al., GOPRO_Large",
)
