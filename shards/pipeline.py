"""Read packed samples in sequence, as a plain WebDataset pipeline.

For tools that take WebDataset samples, and for whatever reads a whole dataset. Training does not read this way: the
order of training samples is a random permutation (`shards.order`), and WebDataset has no random access, so
`shards.dataset` reads single images at the offsets in the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from shards.cache import ShardCache
from shards.errors import ManifestError
from shards.json_text import parse_json
from shards.manifest import Manifest, Shard, load_manifest
from shards.sample import row_degradation
from shards.store import Store, open_store

if TYPE_CHECKING:
    from webdataset import DataPipeline

Sample = dict[str, Any]
"""WebDataset sample: `__key__`, and the bytes of each file by its suffix."""


def open_pipeline(
    uri: str, cache: ShardCache, *, split: str | None = None, degradation: str | None = None
) -> DataPipeline:
    """Return a pipeline of one WebDataset sample per row of the dataset at `uri`, in packed order.

    Suffixes are `clean.<format>`, `degraded.<format>` (absent in clean-only rows, whose noise is drawn when a sample is
    read) and `json` (id, split, degradation, source). Tiles become PNG, other images are unchanged, so that
    `.compose(webdataset.decode("rgb8"))` decodes them. `split` and `degradation` select rows. Shards pass through
    `cache`, which verifies their sha256. Workers of a DataLoader share the shards.

    Raises ManifestError when no row is selected.
    """
    from webdataset import DataPipeline, SimpleShardList, split_by_worker

    store = open_store(uri)
    manifest = load_manifest(store, cache=cache.folder)
    label = None if degradation is None else row_degradation(degradation)
    columns = manifest.columns
    needed = {
        int(shard)
        for kind in columns.kinds
        if split in (None, kind[0]) and label in (None, kind[1])
        for images in columns.select(*kind).clean_images()
        for shard in np.unique(images["shard"])
    }
    if not needed:
        raise ManifestError(
            f"{uri}: no sample with split {split or 'any'} and degradation {degradation or 'any'}; "
            f"there are {_available(manifest)}."
        )
    shards = {manifest.shards[number].key: manifest.shards[number] for number in sorted(needed)}
    return DataPipeline(
        SimpleShardList(list(shards)),
        split_by_worker,
        _ReadShards(store, shards, cache),
        _SelectRows(split, label),
    )


def write_tar(samples: Iterable[Sample], file: IO[bytes]) -> int:
    """Write samples to a file as a WebDataset tar; return how many."""
    from webdataset import TarWriter

    count = 0
    with TarWriter(file, user="shards", group="shards", mode=0o444, mtime=0, encoder=False) as tar:
        for sample in samples:
            tar.write(sample)
            count += 1
    return count


def read_groups(file: IO[bytes], name: str) -> Iterator[Sample]:
    """Yield the WebDataset samples of one shard: a clean image, its degraded images and `json`, undecoded."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    yield from group_by_keys(tar_file_expander([{"url": name, "stream": file}]))


class _ReadShards:
    """Pipeline stage from shard keys to the groups in them."""

    def __init__(self, store: Store, shards: dict[str, Shard], cache: ShardCache) -> None:
        self._store, self._shards, self._cache = store, shards, cache

    def __call__(self, sources: Iterable[Sample]) -> Iterator[Sample]:
        for source in sources:
            shard = self._shards[source["url"]]
            with self._cache.open(self._store, shard) as file:
                yield from read_groups(file, f"{self._store.uri}/{shard.key}")


class _SelectRows:
    """Pipeline stage from groups to one sample per selected row."""

    def __init__(self, split: str | None, label: str | None) -> None:
        self._split, self._label = split, label

    def __call__(self, groups: Iterable[Sample]) -> Iterator[Sample]:
        for group in groups:
            clean: tuple[str, bytes] | None = None  # encoded once for all rows of the group
            for number, row in enumerate(parse_json(group["json"])):
                if self._split not in (None, row["split"]) or self._label not in (None, row["degradation"]):
                    continue
                clean = clean or _portable(row["clean"], group)
                about = {name: row[name] for name in ("id", "split", "degradation", "source")}
                sample = {
                    "__key__": f"{group['__key__']}-{number}",
                    "__url__": group["__url__"],
                    "json": json.dumps(about).encode(),
                    f"clean.{clean[0]}": clean[1],
                }
                if row["degraded"] is not None:
                    suffix, data = _portable(row["degraded"], group)
                    sample[f"degraded.{suffix}"] = data
                yield sample


def _portable(name: str, group: Sample) -> tuple[str, bytes]:
    """Return an image in a format that other programs read, as suffix and bytes: tiles as PNG, others unchanged."""
    suffix = name.rpartition(".")[2]
    if suffix != "tiles":
        return suffix, group[name]
    import imagecodecs

    from shards import tiles

    return "png", bytes(imagecodecs.png_encode(tiles.decode(group[name]), level=1))


def _available(manifest: Manifest) -> str:
    return ", ".join(
        f"{split} {degradation} ({count:,})"
        for split, counts in manifest.counts().items()
        for degradation, count in counts.items()
    )
