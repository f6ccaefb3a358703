"""Pack a source of image pairs into WebDataset shards and a manifest.

    scan     read every header; report all problems together before anything is written
    plan     distribute groups of pairs over shards by their sizes, as a function of the source alone
    pack     run one task per shard, in this process, in several or on a cluster, in any order
    publish  write the manifest last

Shards are named by their content and every finished shard leaves a record, so packing is resumable: a reader sees the
whole dataset or none, and running it again after an interruption writes only what is missing, with the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from shards import jpeg_intervals
from shards.columns import Columns, ColumnsWriter, Rows, Shards, copied
from shards.errors import PackError
from shards.file_records import FileRecords
from shards.listing import digest_of, listing_key
from shards.manifest import Manifest, Shard, publish
from shards.problems import DataProblem, render_report
from shards.processes import TaskRunner, count_rows, run_inline
from shards.progress import ProgressCallback
from shards.scan import (
    ENCODINGS,
    Jpeg,
    SourceScan,
    check_pairs,
    scan_source,
    undecodable_images,
    unreadable_problem,
    without_remedy,
)
from shards.shard import RECORDS, PackedShard, ShardTask, decode_images, decode_tiles, pack_shard
from shards.sources.pair import Pair, Source
from shards.store import Store

__all__ = ["decode_images", "decode_tiles", "pack"]

SHARD_BYTES = 64 << 20


def pack(
    source: Source,
    store: Store,
    *,
    name: str,
    encoding: str = "fast",
    jpeg: Jpeg = "crop",
    allow_partial: bool = False,
    shard_bytes: int = SHARD_BYTES,
    runner: TaskRunner = run_inline,
    on_progress: ProgressCallback | None = None,
    on_scan: ProgressCallback | None = None,
    records: FileRecords | None = None,
) -> Manifest:
    """Write `source` to `store`, publish it and return the manifest. Raises PackError.

    The same pairs and options give the same bytes, where JPEG files are cut with the same version of jpegtran. A shard
    is closed when its estimated size reaches `shard_bytes`. JPEG files are cut into intervals where jpegtran is
    installed (`crop`), keep their bytes (`keep`), or become tiles, which are several times larger (`tile`). With
    `allow_partial`, images that cannot be packed are left out and recorded in the manifest. `on_scan` is called as
    headers are read, then `on_progress` as pairs are packed. `records` remembers the headers.
    """
    if encoding not in ENCODINGS:
        raise PackError(f"encoding {encoding!r} is unknown; use one of {', '.join(ENCODINGS)}.")
    if jpeg == "crop" and (encoding == "original" or jpeg_intervals.tool() is None):
        jpeg = "keep"
    scan = scan_source(source, encoding, jpeg=jpeg, on_progress=on_scan, records=records)
    if scan.problems and not allow_partial:
        raise PackError(render_report(name, [*scan.problems, *undecodable_images(scan)]))
    if not scan.pairs:
        raise PackError(f"dataset {name!r}: the source has no pairs, so nothing was published.")
    check_pairs(scan.pairs)
    store.ensure_bucket()
    listings = source.listings  # now, not at the end: a killed packing has read the files once
    tasks = [ShardTask(store, tuple(groups), encoding, jpeg) for groups in _plan(scan, shard_bytes)]
    done = runner(pack_shard, tasks, count_rows(on_progress, len(scan.pairs)))
    results = {index: replace(part, rows=copied(part.rows)) for index, part in done}
    packed = [results[index] for index in range(len(tasks))]  # in the order of the plan
    misses = [miss for part in packed for miss in part.misses]
    problems = [*scan.problems, *_missed(misses)]
    shards = tuple(part.shard for part in packed if part.shard is not None)
    if not shards or (misses and not allow_partial):
        raise PackError(render_report(name, problems))
    provenance = {
        **source.provenance,
        "sources": [_store_listing(store, listing) for listing in listings],
        "encoding": encoding,
        "jpeg": "tiled" if jpeg == "tile" and encoding != "original" else "kept",
        "shard_bytes": shard_bytes,
        "missing": [problem.record() for problem in problems],
        "input_psnr": _mean_psnr(packed),
        "jpeg_tiled_bytes": [0, 0],
    }
    columns = _columns(shards, packed)
    converted = [sum(part.jpeg_bytes[i] for part in packed) for i in (0, 1)]
    if jpeg == "tile":
        provenance["jpeg_tiled_bytes"] = converted
    elif (
        jpeg_intervals.NAME in columns.encodings
    ):  # not where nothing was cut: such data has the digest it always had
        provenance["jpeg"] = "cut"
        provenance["jpeg_cut_bytes"] = converted
        provenance["jpeg_kept_whole"] = sum(part.whole_jpegs for part in packed)
    manifest = Manifest(name, Shards(columns), Rows(columns), dict(source.licences), provenance)
    _publish(store, manifest, tasks)
    return manifest


def _publish(store: Store, manifest: Manifest, tasks: Sequence[ShardTask]) -> None:
    """Publish the manifest of shards that are all in the store, then delete the records of its tasks."""
    for shard in manifest.shards:
        if not store.exists(shard.key):
            raise PackError(f"{store.uri}/{shard.key} was deleted while others were packed. Pack again.")
    publish(store, manifest)
    for task in tasks:
        store.delete(f"{RECORDS}{task.digest()}.json")


def _plan(scan: SourceScan, shard_bytes: int) -> Iterator[list[tuple[int, tuple[Pair, ...]]]]:
    """Yield the groups of each shard; a group holds the pairs that share a clean image."""
    shard: list[tuple[int, tuple[Pair, ...]]] = []
    size = 0
    for number, (clean, group) in enumerate(groupby(scan.pairs, key=lambda pair: pair.clean)):
        pairs = tuple(group)
        shard.append((number, pairs))
        size += scan.infos[clean].bytes
        size += sum(scan.infos[pair.degraded].bytes for pair in pairs if pair.degraded is not None)
        if size >= shard_bytes:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _columns(shards: Sequence[Shard], packed: Sequence[PackedShard]) -> Columns:
    """Return the lists of the manifest, with shards numbered over the whole dataset."""
    writer = ColumnsWriter()
    writer.add_shards(shards)
    for number, part in enumerate(part for part in packed if part.shard is not None):
        writer.add_rows(part.rows, number)
    return writer.columns()


def _missed(misses: Sequence[tuple[str, str]]) -> list[DataProblem]:
    if not misses:
        return []
    return [
        unreadable_problem(
            "Pairs", tuple(dict.fromkeys(f"{id_}: {without_remedy(why)}" for id_, why in misses))
        )
    ]


def _mean_psnr(packed: Sequence[PackedShard]) -> Mapping[str, Mapping[str, float]]:
    """Return the mean PSNR of degraded against clean images, in dB, by split and degradation."""
    sums: dict[tuple[str, str], tuple[int, float]] = {}
    for part in packed:
        for split, degradation, pairs, total in part.psnr:
            held = sums.get((split, degradation), (0, 0.0))
            sums[split, degradation] = (held[0] + pairs, held[1] + total)
    found: dict[str, dict[str, float]] = {}
    for (split, degradation), (pairs, total) in sorted(sums.items()):
        found.setdefault(split, {})[degradation] = round(total / pairs, 2)
    return found


def _store_listing(store: Store, listing: bytes) -> str:
    digest = digest_of(listing)
    store.write(listing_key(digest), listing)
    return digest
