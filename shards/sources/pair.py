"""Protocol of a source: pairs in a fixed order, and facts that are known before any image is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from shards.problems import DataProblem
from shards.sources.image import SourceImage

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Pair:
    """One sample before it is packed. Pairs that share a clean image are adjacent."""

    id: str
    split: Split
    degradation: str
    """Label of the manifest row: `noise` for a clean-only pair."""
    degraded: SourceImage | None
    clean: SourceImage
    source: str
    """Name of the original dataset; the key of its licence."""
    size: tuple[int, int] | None = None
    """Required height and width of both images in pixels; None: any."""


class Source(Protocol):
    """A dataset before it is packed."""

    @property
    def provenance(self) -> dict[str, object]:
        """Options and content digest in JSON types, part of the manifest's digest. May read every file once."""

    @property
    def listings(self) -> tuple[bytes, ...]:
        """Listing of each raw folder (`shards.listing`). Reads every file once."""

    @property
    def problems(self) -> tuple[DataProblem, ...]:
        """Problems of the raw data that are visible without reading an image."""

    @property
    def licences(self) -> Mapping[str, str]:
        """Licence and attribution of each source named by a pair."""

    def __len__(self) -> int:
        """Return the number of pairs."""

    def training_counts(self) -> dict[str, int]:
        """Return the number of training pairs by row label."""

    def __iter__(self) -> Iterator[Pair]:
        """Iterate over the pairs in a fixed order."""
