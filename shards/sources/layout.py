"""How a published dataset may lie on disk, as data: patterns, pairing, counts, terms.

    PublishedDataset "rain100l"
      DatasetPart "RainTrainL", train, 200 pairs
        FileLayout "original"        degraded rainy/rain-{key:d}.png     clean norain/norain-{key:d}.png
        FileLayout "AirNet tree"     ...

Files belong together when the fields that both patterns of a layout capture are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from shards.errors import PackError
from shards.sample import NOISE
from shards.sources.pair import Split
from shards.sources.pattern import Pattern

RESEARCH_ONLY = (
    "Follow the licence of the original dataset; academic research only; do not pass the shards on."
)


@dataclass(frozen=True)
class FileLayout:
    """One way in which a part may lie on disk, whatever folder it lies in."""

    name: str
    clean: str
    """Pattern of the clean files."""
    degraded: str | None = None
    """Pattern of the degraded files; None for a part of clean images alone."""
    id: str | None = None
    """Id of a pair, from the captured fields: `{seq}_{frame}`. None: the name of the file, without suffix."""
    pairs: int | None = None
    """Pairs of the part in this layout, where it differs from the part's own count."""

    @cached_property
    def clean_pattern(self) -> Pattern:
        """The clean files."""
        return Pattern(self.clean)

    @cached_property
    def degraded_pattern(self) -> Pattern | None:
        """The degraded files."""
        return None if self.degraded is None else Pattern(self.degraded)

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """Fields by which files are paired."""
        if self.degraded_pattern is None:
            return self.clean_pattern.fields
        return tuple(name for name in self.clean_pattern.fields if name in self.degraded_pattern.fields)

    def check(self) -> None:
        """Raise PackError unless the patterns can pair files."""
        if not self.shared:
            raise PackError(
                f"patterns {self.degraded!r} and {self.clean!r} capture no field of the same name. Mark what "
                "partners have in common, for example input/{key}.png and target/{key}.png."
            )

    def describe(self) -> str:
        """The layout in one line."""
        return f"{self.degraded} with {self.clean}" if self.degraded else self.clean


@dataclass(frozen=True)
class MatlabLayout:
    """A part that lies in two MATLAB files, each an array [N, h, w, 3]."""

    name: str
    degraded: str
    degraded_variable: str
    clean: str
    clean_variable: str

    def describe(self) -> str:
        """The layout in one line."""
        return f"{self.degraded} ({self.degraded_variable}) with {self.clean} ({self.clean_variable})"


@dataclass(frozen=True)
class PairLabel:
    """Row label, and the name of the set it is from, of pairs whose degraded file matches a pattern."""

    pattern: str
    degradation: str
    source: str
    pairs: int | None = None
    """How many there are in the part."""


@dataclass(frozen=True)
class TestLeak:
    """Training scenes that are test images too."""

    scenes: tuple[str, ...]
    """Names of degraded files up to the scene: `0025` for `0025_0.8_0.04.jpg`."""
    sentence: str
    published: bool
    """Whether the published training set holds them, so that they stay unless one asks otherwise."""


@dataclass(frozen=True)
class VariantGrid:
    """Every clean image comes degraded with every combination of these values."""

    name: str
    """Name of the degraded file from the fields."""
    values: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class DatasetPart:
    """One split of a published dataset."""

    name: str
    split: Split
    pairs: int | None
    """How many there are; None where no source that we could check states it."""
    layouts: tuple[FileLayout | MatlabLayout, ...]
    """In the order in which they are tried: those that say most first."""
    degradation: str = NOISE
    labels: tuple[PairLabel, ...] = ()
    """Where the degradation differs between pairs: the first pattern that fits the degraded file's name."""
    by_type: Mapping[str, str] = field(default_factory=dict)
    """Where the layout captures the degradation as `{type}`: type -> label."""
    cleans: int | None = None
    """Clean images, where several pairs share one."""
    size: tuple[int, int] | None = None
    """Height and width that every image has."""
    strangers: tuple[tuple[str, str], ...] = ()
    """(pattern, sentence): files that tell another dataset, and which one."""
    wrong_counts: Mapping[int, str] = field(default_factory=dict)
    """Pairs found -> sentence: another version of the dataset, known by its count."""
    leak: TestLeak | None = None
    grid: VariantGrid | None = None
    histogram: tuple[str, Mapping[str, int]] | None = None
    """Captured field -> pairs for each of its values, where the layout captures it."""


@dataclass(frozen=True, eq=False)
class PublishedDataset:
    """A dataset of the paper."""

    title: str
    parts: tuple[DatasetPart, ...]
    where: str
    """Where it is from."""
    licence: str = "not stated in the repositories that use it"
    terms: str = RESEARCH_ONLY
    lists: Mapping[str, str] = field(default_factory=dict)
    """md5 of an official list -> what it is."""
