"""Sources of pairs. A source names its images; they are read when it is packed.

published  the paper's datasets, found on disk by layout   pairs      two file patterns of a user's own
synthetic  clean photographs, degraded by formula          catalogue  all published datasets by name
clean      clean photographs alone
"""

from shards.sources.catalogue import PUBLISHED
from shards.sources.clean import CleanSource
from shards.sources.pair import Pair, Source, Split
from shards.sources.pairs import PairsSource
from shards.sources.published import PublishedOptions, PublishedSource
from shards.sources.synthetic import FolderSource, PhotographSource

__all__ = [
    "PUBLISHED",
    "CleanSource",
    "FolderSource",
    "Pair",
    "PairsSource",
    "PhotographSource",
    "PublishedOptions",
    "PublishedSource",
    "Source",
    "Split",
]
