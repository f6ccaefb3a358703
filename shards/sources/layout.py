"""Layouts of published datasets on disk, as data: file patterns, pairing, counts, terms.

    PublishedDataset "rain100l"
      DatasetPart "RainTrainL", train, 200 pairs
        FileLayout "original"        degraded rainy/rain-{key:d}.png     clean norain/norain-{key:d}.png
        FileLayout "AirNet tree"     ...

Two files form a pair when the fields that both patterns of a layout capture are equal. Names of layouts, `where` and
`terms` are part of the provenance in manifests: changing one changes the digests of newly packed datasets.
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
    """One possible layout of a part on disk, at any depth below the root."""

    name: str
    clean: str
    """Pattern of the clean files."""
    degraded: str | None = None
    """Pattern of the degraded files; None for a part of clean images only."""
    id: str | None = None
    """Id of a pair from the captured fields, such as `{seq}_{frame}`. None: the file name without suffix."""
    pairs: int | None = None
    """Number of pairs in this layout, where it differs from the part's own count."""

    @cached_property
    def clean_pattern(self) -> Pattern:
        """Compiled pattern of the clean files."""
        return Pattern(self.clean)

    @cached_property
    def degraded_pattern(self) -> Pattern | None:
        """Compiled pattern of the degraded files."""
        return None if self.degraded is None else Pattern(self.degraded)

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """Names of the fields by which files are paired."""
        if self.degraded_pattern is None:
            return self.clean_pattern.fields
        return tuple(name for name in self.clean_pattern.fields if name in self.degraded_pattern.fields)

    def check(self) -> None:
        """Raise PackError unless the patterns can pair files."""
        if not {*self.shared} - {"split"}:
            raise PackError(
                f"patterns {self.degraded!r} and {self.clean!r} capture no field of the same name. Give "
                "both a common field beside {split}, for example input/{key}.png and target/{key}.png."
            )

    def describe(self) -> str:
        """Return the layout in one line."""
        return f"{self.degraded} with {self.clean}" if self.degraded else self.clean


@dataclass(frozen=True)
class MatlabLayout:
    """A part in two MATLAB files, each with an array [N, h, w, 3]."""

    name: str
    degraded: str
    degraded_variable: str
    clean: str
    clean_variable: str

    def describe(self) -> str:
        """Return the layout in one line."""
        return f"{self.degraded} ({self.degraded_variable}) with {self.clean} ({self.clean_variable})"


@dataclass(frozen=True)
class PairLabel:
    """Row label and source name of the pairs whose degraded file matches a pattern."""

    pattern: str
    degradation: str
    source: str
    pairs: int | None = None
    """Number of such pairs in the part."""


@dataclass(frozen=True)
class TestLeak:
    """Training scenes that are also test images."""

    scenes: tuple[str, ...]
    """Names of degraded files up to the scene: `0025` for `0025_0.8_0.04.jpg`."""
    sentence: str
    published: bool
    """Whether the published training set contains them; if so, they are packed unless excluded on request."""

    def holds(self, name: str) -> bool:
        """Return whether a file of this name shows one of the scenes."""
        return name.startswith(self.scenes)


@dataclass(frozen=True)
class VariantGrid:
    """Every clean image has one degraded image for every combination of these values."""

    name: str
    """Pattern that gives the name of a degraded file from the fields."""
    values: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class DatasetPart:
    """One split of a published dataset."""

    name: str
    split: Split
    pairs: int | None
    """Published number of pairs; None where no source that we could check states it."""
    layouts: tuple[FileLayout | MatlabLayout, ...]
    """Layouts in the order in which they are tried, most specific first."""
    degradation: str = NOISE
    labels: tuple[PairLabel, ...] = ()
    """For a part with several degradations: the first pattern that matches the degraded file's name decides."""
    by_type: Mapping[str, str] = field(default_factory=dict)
    """Row label for each value of the captured field `{type}`, where the layout captures the degradation."""
    cleans: int | None = None
    """Published number of clean images, where several pairs share one."""
    size: tuple[int, int] | None = None
    """Height and width of every image, in pixels."""
    strangers: tuple[tuple[str, str], ...] = ()
    """(pattern, sentence): files of another dataset, and the message that names it."""
    wrong_counts: Mapping[int, str] = field(default_factory=dict)
    """Message for a number of pairs that identifies another version of the dataset."""
    leak: TestLeak | None = None
    grid: VariantGrid | None = None
    histogram: tuple[str, Mapping[str, int]] | None = None
    """A captured field, and the published number of pairs for each of its values."""

    def label_of(self, name: str, fields: Mapping[str, str]) -> PairLabel | None:
        """Return the label of a pair by its file name and captured fields; None when no pattern matches."""
        if self.by_type:
            return PairLabel("*", self.by_type[fields["type"].lower()], self.name)
        if not self.labels:
            return PairLabel("*", self.degradation, self.name)
        return next((x for x in self.labels if Pattern(x.pattern).match(name) is not None), None)


@dataclass(frozen=True, eq=False)
class PublishedDataset:
    """A dataset of the paper."""

    title: str
    parts: tuple[DatasetPart, ...]
    where: str
    """Origin of the dataset, for people."""
    licence: str = "not stated in the repositories that use it"
    terms: str = RESEARCH_ONLY
    lists: Mapping[str, str] = field(default_factory=dict)
    """Description of each official list, by its md5."""
