"""What a source is: pairs in a fixed order, and what is known of them before any image is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from shards.problems import DataProblem
from shards.sources.image import SourceImage

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Pair:
    """One sample before it is packed. Pairs that share a clean image come one after another."""

    id: str
    split: Split
    degradation: str
    """Label of the manifest row: `noise` for a clean-only pair."""
    degraded: SourceImage | None
    clean: SourceImage
    source: str
    """Name of the dataset it is from; the key of its licence."""
    size: tuple[int, int] | None = None
    """Height and width that both images must have, where the dataset has one size."""


class Source(Protocol):
    """A dataset before it is packed."""

    @property
    def provenance(self) -> dict[str, object]:
        """What was asked for, in JSON types; part of the dataset's digest. May read every file once."""

    @property
    def listings(self) -> tuple[bytes, ...]:
        """What the raw folders hold (`shards.listing`), one listing per folder. Reads every file once."""

    @property
    def problems(self) -> tuple[DataProblem, ...]:
        """What is wrong with the raw data, as far as it shows without reading an image."""

    @property
    def licences(self) -> Mapping[str, str]:
        """Licence and attribution of each source that pairs name."""

    def __len__(self) -> int:
        """Number of pairs."""

    def training_counts(self) -> dict[str, int]:
        """Pairs of the training split by row label, known before any image is read."""

    def __iter__(self) -> Iterator[Pair]:
        """Pairs in a fixed order."""
