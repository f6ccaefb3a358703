"""Names of degradations.

A sample is a clean photograph and one degradation of it. Gaussian noise is added when a sample is read, so a manifest
stores no noisy image: one clean-only row, labelled `noise`, serves every noise level.
"""

import re

CDD11 = {
    **{"low": "lowlight", "haze": "haze", "rain": "rain", "snow": "snow"},
    **{"low_haze": "low_haze", "low_rain": "low_rain", "low_snow": "low_snow"},
    **{"haze_rain": "haze_rain", "haze_snow": "haze_snow"},
    **{"low_haze_rain": "low_haze_rain", "low_haze_snow": "low_haze_snow"},
}
"""Degradation of each of CDD-11's eleven folders. Combinations keep the published name."""

DEGRADATIONS = (
    *("noise15", "noise25", "noise50", "rain", "haze", "blur", "lowlight", "snow"),
    *(name for name in CDD11.values() if "_" in name),
    *("raindrop", "underwater", "toled", "poled"),
)
"""The degradations that are known by name. Pairs may have one with an own name."""

SIGMA = {"noise15": 15, "noise25": 25, "noise50": 50}
"""Standard deviation of the Gaussian noise, in grey levels of 0 to 255."""

NOISE = "noise"
"""Label of a manifest row that holds a clean image only."""

OWN_NAME = "[a-z][a-z0-9_-]{0,31}"
"""Pattern of an own name of a degradation. Metrics, files and tables contain it."""
OWN_NAME_RULE = (
    "use 1 to 32 small letters, digits, _ and -, with a letter first, and none of noise, average, clean"
)


def is_own_name(name: str) -> bool:
    """Return whether own pairs or a pipeline may have this name, which is not a known one."""
    return re.fullmatch(OWN_NAME, name) is not None and name not in {*DEGRADATIONS, NOISE, "average", "clean"}


def row_degradation(degradation: str) -> str:
    """Return the row label of a degradation in a manifest: `noise` for every noise level, else its name."""
    return NOISE if degradation in SIGMA else degradation
