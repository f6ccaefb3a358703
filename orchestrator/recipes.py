"""Named recipes and settings, as the partial jobs they stand for.

The paper's text and the authors' release disagree (optimiser, schedule, SPD weight, augmentation, epochs, shallow
tap); both are here under their own names, and every number says which one it used. Counts are the published ones:
they serve `plan` while the data itself is out of reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A published benchmark combination."""

    mixture: dict[str, int]
    """Degradation -> repeats per epoch (the release's table)."""
    published: dict[str, int]
    """Degradation -> training samples that the published datasets hold."""
    evaluate: tuple[str, ...]
    """Columns of the paper's table, in its order."""
    epochs: dict[str, int]
    """Recipe -> length."""


_NOISE = {"noise15": 5144, "noise25": 5144, "noise50": 5144}

SETTINGS = {
    "3deg": Setting(
        mixture={"noise15": 3, "noise25": 3, "noise50": 3, "rain": 120, "haze": 1},
        published={**_NOISE, "rain": 200, "haze": 72135},
        evaluate=("haze", "rain", "noise15", "noise25", "noise50"),
        epochs={"release": 130, "paper": 120, "fast": 120},
    ),
    "5deg": Setting(
        mixture={"noise15": 3, "noise25": 3, "noise50": 3, "rain": 120, "haze": 1, "blur": 5, "lowlight": 20},
        published={**_NOISE, "rain": 200, "haze": 72135, "blur": 2103, "lowlight": 485},
        evaluate=("haze", "rain", "noise25", "blur", "lowlight"),
        epochs={"release": 150, "paper": 130, "fast": 130},
    ),
}

_RECIPES: dict[str, dict[str, Any]] = {
    "release": {
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
        # The text names Adam and cosine decay; the rate itself is lost in it, so it is the release's.
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


def defaults(recipe: str, setting: str, *, steps_given: bool) -> dict[str, Any]:
    """Return the partial job that `recipe` and `setting` stand for.

    `steps_given` says that the job names its length in steps, so the setting's epochs do not apply.
    """
    chosen = SETTINGS[setting]
    base = _RECIPES[recipe]
    train = dict(base["train"])
    if not steps_given:
        train["epochs"] = chosen.epochs[recipe]
    return {
        **base,
        "train": train,
        "data": {**base["data"], "mixture": dict(chosen.mixture)},
        "evaluate": {"degradations": chosen.evaluate},
    }
