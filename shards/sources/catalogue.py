"""All published datasets, by their name in `mirage pack`."""

from __future__ import annotations

from shards.sources.families import (
    cdd11,
    deblur,
    dehaze,
    denoise,
    derain,
    display,
    lowlight,
    underwater,
    weather,
)
from shards.sources.layout import PublishedDataset

PUBLISHED: dict[str, PublishedDataset] = {
    "bsd400-wed": denoise.BSD400_WED,
    "bsd68": denoise.BSD68,
    "urban100": denoise.URBAN100,
    "kodak24": denoise.KODAK24,
    "rain100l": derain.RAIN100L,
    "reside-ots": dehaze.OTS,
    "sots-outdoor": dehaze.SOTS,
    "gopro": deblur.GOPRO,
    "lol-v1": lowlight.LOL_V1,
    "cdd11": cdd11.CDD_11,
    "allweather": weather.ALLWEATHER,
    "snow100k-s": weather.SNOW100K_S,
    "snow100k-l": weather.SNOW100K_L,
    "outdoor-rain-test1": weather.TEST1,
    "raindrop-a": weather.RAINDROP_A,
    "raindrop-b": weather.RAINDROP_B,
    "uieb": underwater.UIEB,
    "toled": display.TOLED,
    "poled": display.POLED,
}
