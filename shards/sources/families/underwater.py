"""Underwater: UIEB's 890 pairs, a zero-shot test."""

from __future__ import annotations

from shards.sources.layout import DatasetPart, FileLayout, PublishedDataset

UIEB = PublishedDataset(
    "UIEB",
    (
        DatasetPart(
            "UIEB",
            "test",
            890,
            (
                # Some mirrors nest the folders: raw-890/raw-890/.
                FileLayout("original", "reference-890/**/{key}.png", "raw-890/**/{key}.png"),
                FileLayout("two folders", "(target|gt|reference)/{key}.png", "(input|raw)/{key}.png"),
            ),
            "underwater",
            strangers=(
                (
                    "challenging-60/{key}.png",
                    "UIEB's challenging set, which has no clean images. Use raw-890.",
                ),
            ),
        ),
    ),
    where="UIEB of Li et al.: raw-890 and reference-890",
)
