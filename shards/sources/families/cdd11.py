"""CDD-11: one clean photograph under eleven single and combined degradations."""

from __future__ import annotations

from shards.sample import CDD11
from shards.sources.layout import DatasetPart, FileLayout, PublishedDataset

_TYPES = "|".join(sorted(CDD11, key=len, reverse=True))
_SIZES = {"single": 1, "double": 2, "triple": 3}

GROUPS = {
    **{group: tuple(kind for kind in CDD11 if kind.count("_") + 1 == size) for group, size in _SIZES.items()},
    "all": tuple(CDD11),
}
"""Folders of each group in the paper."""

PUBLISHED_PSNR = {
    **{"low": 12.00, "haze": 15.87, "rain": 22.02, "snow": 23.62, "low_haze": 14.94, "low_rain": 14.61},
    **{
        "low_snow": 13.50,
        "haze_rain": 14.78,
        "haze_snow": 14.79,
        "low_haze_rain": 15.25,
        "low_haze_snow": 14.63,
    },
}
"""Mean PSNR of the degraded test images against the clean ones, in dB, as published by OneRestore."""


def _part(name: str, folder: str, split: str, photographs: int) -> DatasetPart:
    return DatasetPart(
        name,
        "train" if split == "train" else "test",
        photographs * len(CDD11),
        (
            FileLayout(
                "twelve folders",
                f"{folder}/clear/{{key}}.png",
                f"{folder}/{{type:{_TYPES}}}/{{key}}.png",
                id="{key}",
            ),
            FileLayout(
                "twelve folders (MIRAGE, MoCE-IR)",
                f"{split}/clear/{{key}}.png",
                f"{split}/{{type:{_TYPES}}}/{{key}}.png",
                id="{key}",
            ),
            FileLayout(
                "BioIR, one folder of inputs",
                f"{split}/clear/{{key}}.png",
                f"{split}/input/{{type:{_TYPES}}}_{{key}}.png",
                id="{key}",
            ),
            FileLayout("twelve folders", "clear/{key}.png", f"{{type:{_TYPES}}}/{{key}}.png", id="{key}"),
        ),
        by_type=CDD11,
        cleans=photographs,
    )


CDD_11 = PublishedDataset(
    "CDD-11",
    (_part("CDD-11_train", "CDD-11_train", "train", 1183), _part("CDD-11_test", "CDD-11_test", "test", 200)),
    where="CDD-11 of OneRestore (Hugging Face, gy65896/CDD-11); clean images from RAISE",
)
