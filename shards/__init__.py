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
    from shards.ledger import SampleLedger, read_ledger
    from shards.manifest import Manifest, load_manifest, publish
    from shards.mixture import Mixture, MixtureEntry, weighted_mixture
    from shards.order import SampleOrder, share
    from shards.pack import decode_images, decode_tiles
    from shards.pipeline import open_pipeline
    from shards.sample import DEGRADATIONS, SIGMA
    from shards.sources import FolderSource, Pair, PairsSource, PhotographSource, PublishedSource, Source
    from shards.store import LocalStore, S3Store, Store, open_store
    from shards.stream import Batch, TrainStream

_HOME = {
    "ShardCache": "cache",
    "Dataset": "dataset",
    "CorruptObjectError": "errors",
    "LedgerError": "errors",
    "ManifestError": "errors",
    "MissingObjectError": "errors",
    "MixtureError": "errors",
    "PackError": "errors",
    "ShardsError": "errors",
    "StoreError": "errors",
    "UnreachableStoreError": "errors",
    "EvalItem": "evaluation",
    "EvaluationSet": "evaluation",
    "SampleLedger": "ledger",
    "Manifest": "manifest",
    "load_manifest": "manifest",
    "publish": "manifest",
    "MixtureEntry": "mixture",
    "Mixture": "mixture",
    "SampleOrder": "order",
    "share": "order",
    "weighted_mixture": "mixture",
    "decode_images": "pack",
    "decode_tiles": "pack",
    "open_pipeline": "pipeline",
    "DEGRADATIONS": "sample",
    "SIGMA": "sample",
    "FolderSource": "sources",
    "Pair": "sources",
    "PairsSource": "sources",
    "PhotographSource": "sources",
    "PublishedSource": "sources",
    "Source": "sources",
    "TrainingStage": "crop_schedule",
    "CropSchedule": "crop_schedule",
    "LocalStore": "store",
    "S3Store": "store",
    "Store": "store",
    "open_store": "store",
    "Batch": "stream",
    "TrainStream": "stream",
    "read_ledger": "ledger",
}

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
