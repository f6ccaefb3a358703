"""Dehazing: RESIDE's outdoor training set (beta version) and its outdoor test set."""

from __future__ import annotations

from shards.sources.layout import DatasetPart, FileLayout, PublishedDataset, TestLeak, VariantGrid
from shards.sources.leaks import OTS_SCENES_OF_SOTS

_V0 = (
    "This is RESIDE-v0 (8,970 clean, 313,950 hazy), not the beta version (2,061 and 72,135). Its files of the "
    "same names may be used: give the official list, hazy_outside.txt, with --list."
)

OTS = PublishedDataset(
    "RESIDE OTS (beta)",
    (
        DatasetPart(
            "OTS",
            "train",
            72135,
            (
                FileLayout(
                    "AirNet, PromptIR, AdaIR, MIRAGE",
                    "original/{key:d}.(jpg|png)",
                    "synthetic/part{part:d}/{key:d}_{airlight:f}_{beta:f}.(jpg|png)",
                ),
                FileLayout(
                    "MoCE-IR",
                    "(clear|clear_images|original)/{key:d}.(jpg|png)",
                    "part{part:d}/{key:d}_{airlight:f}_{beta:f}.(jpg|png)",
                ),
                FileLayout(
                    "DiffUIR",
                    "clear/clear_images/{key:d}.(jpg|png)",
                    "haze/OTS/{key:d}_{airlight:f}_{beta:f}.(jpg|png)",
                ),
                FileLayout(
                    "two folders",
                    "(clear|original|gt)/{key:d}.(jpg|png)",
                    "(hazy|haze|synthetic)/{key:d}_{airlight:f}_{beta:f}.(jpg|png)",
                ),
            ),
            "haze",
            cleans=2061,
            grid=VariantGrid(
                "{key}_{airlight}_{beta}",
                {
                    "airlight": ("0.8", "0.85", "0.9", "0.95", "1"),
                    "beta": ("0.04", "0.06", "0.08", "0.1", "0.12", "0.16", "0.2"),
                },
            ),
            histogram=("part", {"1": 18200, "2": 18200, "3": 18200, "4": 17535}),
            wrong_counts={313950: _V0},
            leak=TestLeak(
                OTS_SCENES_OF_SOTS,
                "The official list trains on 75 scenes of SOTS outdoor; 76 of its 500 test images show them.",
                published=True,
            ),
        ),
    ),
    where="RESIDE-beta, Outdoor Training Set; the official list is hazy_outside.txt of the all-in-one repositories",
    lists={
        "5b4d9f09051326d1e5bae047609dd9fe": "hazy_outside.txt, the official 72,135",
        "2c933b9ff5abbd31cc01707170e3200d": "hazy_outside_ablation.txt, parts 1 and 2",
    },
)

SOTS = PublishedDataset(
    "RESIDE SOTS outdoor",
    (
        DatasetPart(
            "SOTS outdoor",
            "test",
            500,
            (
                FileLayout(
                    "hazy beside clean",
                    "(gt|clear|target)/{key:d}.(png|jpg)",
                    "(hazy|input)/{key:d}_{airlight:f}_{beta:f}.(jpg|png)",
                ),
                FileLayout(
                    "InstructIR", "GT/{key:d}.(png|jpg)", "IN/{key:d}_{airlight:f}_{beta:f}.(jpg|png)"
                ),
                FileLayout(
                    "re-hosted, clean as <id>_gt",
                    "(gt|clear|target)/{key:d}_gt.png",
                    "(hazy|input)/{key:d}_{airlight:f}_{beta:f}.(jpg|png)",
                ),
            ),
            "haze",
            cleans=492,
            strangers=(
                (
                    "{folder}/14{a:d}_{b:d}.png",
                    "SOTS indoor (names like 1400_1.png, hazy 620 x 460, clean 640 x 480). The paper tests on the "
                    "outdoor set: names like 0001_0.8_0.2.jpg. Download SOTS outdoor.",
                ),
            ),
        ),
    ),
    where="RESIDE, Synthetic Objective Testing Set, outdoor: 500 hazy of 492 scenes, eight scenes twice",
)
