"""Recipes and settings, as the keys that they set.

The paper's text and the authors' release disagree (optimiser, schedule, SPD weight, augmentation, epochs, shallow
tap). Each is a recipe, and every result states its recipe. Sample counts are the published ones, for `mirage plan`
without the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SettingPreset:
    """A published benchmark, or (`own`) the user's own data."""

    repeats: dict[str, int]
    """Degradation -> repeats per epoch, from the authors' release."""
    published: dict[str, int]
    """Degradation -> number of training samples in the published datasets."""
    evaluate: tuple[str, ...]
    """Degradations of the paper's table, in its order, each once."""
    length: Mapping[str, Mapping[str, int]]
    """Recipe -> `epochs` or `steps`."""
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Section -> keys that differ from every recipe."""


_NOISE = {"noise15": 5144, "noise25": 5144, "noise50": 5144}
_THRICE = dict.fromkeys(_NOISE, 3)


def _epochs(authors: int, paper: int) -> dict[str, dict[str, int]]:
    return {"authors": {"epochs": authors}, "paper": {"epochs": paper}, "fast": {"epochs": paper}}


def _single(repeats: dict[str, int], published: dict[str, int]) -> SettingPreset:
    """Return the setting of one degradation: 120 epochs by the paper. The release has no script for it."""
    return SettingPreset(repeats, published, tuple(repeats), _epochs(120, 120))


def _cdd11(*degradations: str) -> SettingPreset:
    """Return the setting of a part of CDD-11, sampled as by the release's loader.

    A sample is a uniform draw of type and image; an epoch has four times as many samples as there are images, which
    are not cropped to multiples of 16. The paper says 170 epochs. The release has no script; its cosine schedule
    would rise again after epoch 150.
    """
    return SettingPreset(
        dict.fromkeys(degradations, 4),
        dict.fromkeys(degradations, 1183),
        degradations,
        _epochs(170, 170),
        {
            "data": {"sampling": "replacement", "crop_multiple": 1},
            "train": {"schedule_epochs": 170},
            "evaluate": {"protocol": "rgb"},
        },
    )


_SINGLE = ("lowlight", "haze", "rain", "snow")
_DOUBLE = ("low_haze", "low_rain", "low_snow", "haze_rain", "haze_snow")
_TRIPLE = ("low_haze_rain", "low_haze_snow")
_WEATHER = {"haze_rain": 8250, "snow": 9001, "raindrop": 818}

SETTINGS = {
    "dehaze": _single({"haze": 1}, {"haze": 72135}),
    "derain": _single({"rain": 120}, {"rain": 200}),
    "denoise": _single(_THRICE, _NOISE),
    "3deg": SettingPreset(
        {**_THRICE, "rain": 120, "haze": 1},
        {**_NOISE, "rain": 200, "haze": 72135},
        ("haze", "rain", "noise15", "noise25", "noise50"),
        _epochs(130, 120),
    ),
    "5deg": SettingPreset(
        {**_THRICE, "rain": 120, "haze": 1, "blur": 5, "lowlight": 20},
        {**_NOISE, "rain": 200, "haze": 72135, "blur": 2103, "lowlight": 485},
        ("haze", "rain", "noise25", "blur", "lowlight"),
        _epochs(150, 130),
    ),
    "cdd11-single": _cdd11(*_SINGLE),
    "cdd11-double": _cdd11(*_DOUBLE),
    "cdd11-triple": _cdd11(*_TRIPLE),
    "cdd11-all": _cdd11(*_SINGLE, *_DOUBLE, *_TRIPLE),
    "allweather": SettingPreset(
        dict.fromkeys(_WEATHER, 1),
        _WEATHER,
        ("snow", "haze_rain", "raindrop"),
        # The paper says only "300,000 iterations, the same as Histoformer"; the release has no code for it.
        {recipe: {"steps": 300_000} for recipe in ("authors", "paper", "fast")},
        {"train": {"schedule": "cosine"}},
    ),
    "own": SettingPreset({}, {}, (), {}),
}

RECIPES: dict[str, dict[str, Any]] = {
    "authors": {
        "model": {"shallow_tap": "encoder1"},
        "loss": {"spd_weight": 0.01},
        "data": {"augmentation": "release"},
        "train": {
            "optimizer": "adamw",
            "learning_rate": 2e-4,
            "weight_decay": 0.01,
            "schedule": "release",
            "schedule_epochs": 150,
            "precision": "fp32",
        },
    },
    "paper": {
        "model": {"shallow_tap": "patch_embed"},
        "loss": {"spd_weight": 0.05},
        "data": {"augmentation": "paper"},
        # The text names Adam and cosine decay, but no learning rate: this one is the release's.
        "train": {
            "optimizer": "adam",
            "learning_rate": 2e-4,
            "weight_decay": 0.0,
            "schedule": "cosine",
            "precision": "fp32",
        },
    },
    "fast": {
        "model": {"shallow_tap": "encoder1"},
        "loss": {"spd_weight": 0.05},
        "data": {"augmentation": "release"},
        "train": {
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "schedule": "cosine",
            "warmup_steps": 500,
            "precision": "bf16",
            "clip_norm": 1.0,
            "ema_decay": 0.999,
        },
    },
}


def defaults(recipe: str, setting: str, *, length_given: bool) -> dict[str, Any]:
    """Return the keys that `recipe` and `setting` set.

    With `length_given` the job sets its own length, and that of the setting is left out.
    """
    chosen = SETTINGS[setting]
    partial = {name: dict(keys) for name, keys in RECIPES[recipe].items()}
    if not length_given:
        partial["train"].update(chosen.length.get(recipe, {}))
    if chosen.repeats:
        partial["data"]["mixture"] = dict(chosen.repeats)
    if chosen.evaluate:
        partial["evaluate"] = {"degradations": chosen.evaluate}
    for section, keys in chosen.overrides.items():
        partial.setdefault(section, {}).update(keys)
    return partial
