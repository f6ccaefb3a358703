"""Low light: LOL-v1. The test part of LOL-v2-real lies in its training part: never mix the two."""

from __future__ import annotations

from shards.sources.layout import Layout, Part, Published

_LAYOUTS = (
    Layout("original", "high/{key:d}.png", "low/{key:d}.png"),
    Layout("AdaIR, MIRAGE train", "gt/{key:d}.png", "low/{key:d}.png"),
    Layout("MoCE-IR; AdaIR, MIRAGE test", "target/{key:d}.png", "input/{key:d}.png"),
)

LOL_V1 = Published(
    "LOL-v1",
    (
        Part("our485", "train", 485, _LAYOUTS, "lowlight", size=(400, 600)),
        Part("eval15", "test", 15, _LAYOUTS, "lowlight", size=(400, 600)),
    ),
    where="LOL of Wei et al. (RetinexNet): our485 and eval15",
)
