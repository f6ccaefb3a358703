"""Denoising: clean photographs only; noise is added when a sample is read."""

from __future__ import annotations

from shards.sources.layout import DatasetPart, FileLayout, PublishedDataset

_BSD = "Berkeley Segmentation Dataset"

BSD400_WED = PublishedDataset(
    "BSD400 and the Waterloo Exploration Database",
    (
        DatasetPart(
            "BSD400",
            "train",
            400,
            (
                FileLayout("MoCE-IR tree", "BSD400/{key}.(jpg|png)"),
                FileLayout(
                    "a folder of its own, or with WED in it (PromptIR, AdaIR, MIRAGE)", "{key}.(jpg|png)"
                ),
            ),
        ),
        DatasetPart(
            "WED",
            "train",
            4744,
            (
                FileLayout("MoCE-IR tree", "WaterlooED/{key:d}.(bmp|png)"),
                FileLayout(
                    "a folder of its own, or with BSD400 in it (PromptIR, AdaIR, MIRAGE)", "{key:d}.bmp"
                ),
            ),
        ),
    ),
    where=f"{_BSD} (400 training images); Waterloo Exploration Database (its own link is dead, mirrors exist)",
    lists={"3b397ae712577e79ff0070d55d96b618": "denoise.txt of PromptIR, AdaIR and MIRAGE"},
)

BSD68 = PublishedDataset(
    "CBSD68",
    (
        DatasetPart(
            "CBSD68",
            "test",
            68,
            (
                FileLayout("MoCE-IR tree", "original_png/{key}.png"),
                FileLayout("a folder of its own, by BSD id or renumbered", "{key:d}.(png|jpg)"),
            ),
        ),
    ),
    where=f"{_BSD}, 68 images of its validation set; JPEG and PNG copies differ by their decoder",
)

URBAN100 = PublishedDataset(
    "Urban100",
    (
        DatasetPart(
            "Urban100",
            "test",
            100,
            (
                FileLayout("as super-resolution uses it", "img_{key:d}_SRF_4_HR.png", id="img_{key}"),
                FileLayout("a folder of its own", "img_{key:d}.png", id="img_{key}"),
            ),
        ),
    ),
    where="Urban100 (self-similarity super-resolution)",
)

KODAK24 = PublishedDataset(
    "Kodak24",
    (
        DatasetPart(
            "Kodak24", "test", 24, (FileLayout("a folder of its own", "kodim{key:d}.png", id="kodim{key}"),)
        ),
    ),
    where="Kodak lossless true colour image suite",
)
