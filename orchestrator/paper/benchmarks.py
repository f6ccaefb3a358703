"""The published benchmarks: which packed images belong to a column of a table, and which of them are leaked."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shards.sources.leaks import OTS_SCENES_OF_SOTS

_CDD11 = (
    *("haze", "rain", "snow", "low_haze", "low_rain", "low_snow"),
    *("haze_rain", "haze_snow", "low_haze_rain", "low_haze_snow"),
)


@dataclass(frozen=True)
class BenchmarkColumn:
    """A column of the published tables."""

    dataset: str
    """Its dataset's name for `mirage pack`."""
    sources: tuple[str, ...]
    """Names that images of it may have as their source, as `_normalised` returns them."""
    degradation: str


COLUMNS = {
    "sots_outdoor": BenchmarkColumn("sots-outdoor", ("sotsoutdoor", "sots"), "haze"),
    "rain100l": BenchmarkColumn("rain100l", ("rain100l",), "rain"),
    **{f"bsd68_s{s}": BenchmarkColumn("bsd68", ("cbsd68", "bsd68"), f"noise{s}") for s in (15, 25, 50)},
    "gopro": BenchmarkColumn("gopro", ("goprotest", "gopro"), "blur"),
    "lol_v1": BenchmarkColumn("lol-v1", ("eval15", "lolv1"), "lowlight"),
    "low": BenchmarkColumn("cdd11", ("cdd11test", "cdd11"), "lowlight"),
    **{name: BenchmarkColumn("cdd11", ("cdd11test", "cdd11"), name) for name in _CDD11},
    "snow100k_s": BenchmarkColumn("snow100k-s", ("snow100ks",), "snow"),
    "snow100k_l": BenchmarkColumn("snow100k-l", ("snow100kl",), "snow"),
    "outdoor_rain": BenchmarkColumn("outdoor-rain-test1", ("outdoorraintest1",), "haze_rain"),
    "raindrop": BenchmarkColumn("raindrop-a", ("testa", "testb", "raindropa", "raindropb"), "raindrop"),
    "uieb": BenchmarkColumn("uieb", ("uieb",), "underwater"),
    "toled": BenchmarkColumn("toled", ("toled",), "toled"),
    "poled": BenchmarkColumn("poled", ("poled",), "poled"),
}


def matches_column(column: str, source: str, degradation: str) -> bool:
    """Return whether images of this source and degradation belong to the column."""
    wanted = COLUMNS[column]
    return degradation == wanted.degradation and _normalised(source) in wanted.sources


def is_published(source: str) -> bool:
    """Return whether a source is a published benchmark, by its name."""
    return any(_normalised(source) in column.sources for column in COLUMNS.values())


def is_leaked(source: str, image: str) -> bool:
    """Return whether an image of SOTS outdoor shows a scene of the published training list, by its id."""
    scene = image.rpartition("/")[2].partition("_")[0]
    return _normalised(source) in COLUMNS["sots_outdoor"].sources and scene in OTS_SCENES_OF_SOTS


def _normalised(name: str) -> str:
    """Return the lower-case letters and digits of a name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
