"""Where pairs come from: every source names its images and reads none until it is packed.

published  the paper's datasets, recognised on disk        pairs      two file patterns of a user's own
synthetic  clean photographs, degraded here                catalogue  what published datasets there are
"""

from shards.sources.catalogue import PUBLISHED
from shards.sources.pair import Pair, Source, Split
from shards.sources.pairs import PairsSource
from shards.sources.published import PublishedOptions, PublishedSource
from shards.sources.synthetic import FolderSource, PhotographSource

__all__ = [
    "PUBLISHED",
    "FolderSource",
    "Pair",
    "PairsSource",
    "PhotographSource",
    "PublishedOptions",
    "PublishedSource",
    "Source",
    "Split",
]
