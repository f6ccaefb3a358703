"""Every published dataset, a few small photographs each, laid out on disk as its own and packed under its name."""

from __future__ import annotations

from pathlib import Path

from shards.pack import pack
from shards.sample import CDD11
from shards.sources import PublishedOptions, PublishedSource
from shards.store import LocalStore
from tests.shards.raw import lay_clean, lay_pairs

Pairs = list[tuple[str, str]]

_SIZE = (40, 48)


def _numbered(degraded: str, clean: str, count: int = 2) -> Pairs:
    return [(degraded.format(n), clean.format(n)) for n in range(1, count + 1)]


def _cdd11(split: str, count: int) -> Pairs:
    return [
        (f"CDD-11_{split}/{kind}/{n:05}.png", f"CDD-11_{split}/clear/{n:05}.png")
        for kind in CDD11
        for n in range(1, count + 1)
    ]


_HAZY = ("0025_0.8_0.04", "0025_1_0.16", "0030_0.8_0.04", "0030_1_0.16")
_WEATHER = ("im_0001_s80_a04.png", "im_0002_s80_a04.png", "city_00001.jpg", "12_rain.png")

PAIRED: dict[str, dict[str, Pairs]] = {
    "rain100l": {
        "RainTrainL": _numbered("RainTrainL/rainy/rain-{}.png", "RainTrainL/gt/norain-{}.png", 3),
        "Rain100L": _numbered("Rain100L/rainy/rain-{:03}.png", "Rain100L/norain/norain-{:03}.png"),
    },
    "reside-ots": {"OTS": [(f"synthetic/part1/{h}.jpg", f"original/{h[:4]}.jpg") for h in _HAZY]},
    "sots-outdoor": {"SOTS outdoor": [(f"hazy/{h}.jpg", f"gt/{h[:4]}.png") for h in _HAZY[1:3]]},
    "gopro": {
        "GoPro train": _numbered("train/G_01/blur/{:06}.png", "train/G_01/sharp/{:06}.png", 3),
        "GoPro test": _numbered("test/G_02/blur/{:06}.png", "test/G_02/sharp/{:06}.png"),
    },
    "lol-v1": {
        "our485": _numbered("our485/low/{}.png", "our485/high/{}.png", 3),
        "eval15": _numbered("eval15/low/{}.png", "eval15/high/{}.png"),
    },
    "cdd11": {"CDD-11_train": _cdd11("train", 2), "CDD-11_test": _cdd11("test", 1)},
    "allweather": {"AllWeather": [(f"allweather/input/{n}", f"allweather/gt/{n}") for n in _WEATHER]},
    "snow100k-s": {"Snow100K-S": _numbered("synthetic/smile_{:05}.jpg", "gt/smile_{:05}.jpg")},
    "snow100k-l": {"Snow100K-L": _numbered("synthetic/city_{:05}.jpg", "gt/city_{:05}.jpg")},
    "outdoor-rain-test1": {
        "Outdoor-Rain Test1": [(f"input/im_0301_s80_a0{a}.png", "gt/im_0301.png") for a in (4, 5)]
    },
    "raindrop-a": {"test_a": _numbered("test_a/data/{}_rain.png", "test_a/gt/{}_clean.png")},
    "uieb": {"UIEB": _numbered("raw-890/{}_img_.png", "reference-890/{}_img_.png")},
    "toled": {"TOLED": _numbered("TOLED/input/{}.png", "TOLED/target/{}.png")},
    "poled": {"POLED": _numbered("POLED/input/{}.png", "POLED/target/{}.png")},
}
"""Dataset -> part -> (degraded, clean) files."""

CLEAN: dict[str, dict[str, list[str]]] = {
    "bsd400-wed": {
        "BSD400": ["Denoise/a100075.jpg", "Denoise/a100080.jpg"],
        "WED": ["Denoise/00001.bmp", "Denoise/00002.bmp"],
    },
    "bsd68": {"CBSD68": ["original_png/0000.png", "original_png/0001.png"]},
    "urban100": {"Urban100": ["img_001.png", "img_002.png"]},
    "kodak24": {"Kodak24": ["kodim01.png", "kodim02.png"]},
}
"""Dataset -> part -> clean files."""


def pack_all(folder: Path, store: Path) -> None:
    """Lay out and pack every dataset under its name below `store`."""
    for name, paired in PAIRED.items():
        lay_pairs(folder / name, [pair for pairs in paired.values() for pair in pairs], _SIZE)
        _pack(name, folder, store, {part: len(pairs) for part, pairs in paired.items()})
    for name, clean in CLEAN.items():
        lay_clean(folder / name, [file for files in clean.values() for file in files], _SIZE)
        _pack(name, folder, store, {part: len(files) for part, files in clean.items()})


def _pack(name: str, folder: Path, store: Path, expected: dict[str, int]) -> None:
    pack(
        PublishedSource(name, folder / name, PublishedOptions(expected=expected)),
        LocalStore(store / name),
        name=name,
    )
