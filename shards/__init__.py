"""Raw datasets → WebDataset shards in object storage → batches.

    source ──▶ pack ──▶ store: shards, manifest ──▶ Dataset ──▶ TrainStream, EvaluationSet

Names are imported on first use, so importing the package is cheap, and order and noise work without boto3 and
webdataset. The function `pack` is `shards.pack.pack`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.cache import ShardCache
    from shards.crop_schedule import CropSchedule, TrainingStage
    from shards.dataset import Dataset
    from shards.errors import (
        CorruptObjectError,
        LedgerError,
        ManifestError,
        MissingObjectError,
        MixtureError,
        PackError,
        ShardsError,
        StoreError,
        UnreachableStoreError,
    )
    from shards.evaluation import EvalItem, EvaluationSet
    from shards.ledger import LedgerReader, SampleLedger, read_ledger
    from shards.manifest import Manifest, load_manifest, publish
    from shards.mixture import Mixture, MixtureEntry, weighted_mixture
    from shards.order import SampleOrder, share
    from shards.pack import decode_images, decode_tiles
    from shards.pipeline import open_pipeline
    from shards.sample import DEGRADATIONS, SIGMA
    from shards.sources import FolderSource, Pair, PairsSource, PhotographSource, PublishedSource, Source
    from shards.store import LocalStore, S3Store, Store, open_store
    from shards.stream import Batch, TrainStream

_NAMES = {
    "cache": "ShardCache",
    "crop_schedule": "TrainingStage CropSchedule",
    "dataset": "Dataset",
    "errors": "CorruptObjectError LedgerError ManifestError MissingObjectError MixtureError PackError ShardsError"
    " StoreError UnreachableStoreError",
    "evaluation": "EvalItem EvaluationSet",
    "ledger": "LedgerReader SampleLedger read_ledger",
    "manifest": "Manifest load_manifest publish",
    "mixture": "MixtureEntry Mixture weighted_mixture",
    "order": "SampleOrder share",
    "pack": "decode_images decode_tiles",
    "pipeline": "open_pipeline",
    "sample": "DEGRADATIONS SIGMA",
    "sources": "FolderSource Pair PairsSource PhotographSource PublishedSource Source",
    "store": "LocalStore S3Store Store open_store",
    "stream": "Batch TrainStream",
}
"""Module -> its public names."""

_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "DEGRADATIONS",
    "SIGMA",
    "Batch",
    "CorruptObjectError",
    "CropSchedule",
    "Dataset",
    "EvalItem",
    "EvaluationSet",
    "FolderSource",
    "LedgerError",
    "LedgerReader",
    "LocalStore",
    "Manifest",
    "ManifestError",
    "MissingObjectError",
    "Mixture",
    "MixtureEntry",
    "MixtureError",
    "PackError",
    "Pair",
    "PairsSource",
    "PhotographSource",
    "PublishedSource",
    "S3Store",
    "SampleLedger",
    "SampleOrder",
    "ShardCache",
    "ShardsError",
    "Source",
    "Store",
    "StoreError",
    "TrainStream",
    "TrainingStage",
    "UnreachableStoreError",
    "decode_images",
    "decode_tiles",
    "load_manifest",
    "open_pipeline",
    "open_store",
    "publish",
    "read_ledger",
    "share",
    "weighted_mixture",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'shards' has no attribute {name!r}")
    return getattr(import_module(f"shards.{_HOME[name]}"), name)
