"""Pairs in, WebDataset shards and a manifest out.

    scan_source   every header is looked at; what is wrong is one report, and nothing is written
    plan     groups of pairs are shared out over shards, by their sizes alone: a function of the source
    pack     each shard is a task of its own, done here, in processes or on a cluster, in any order
    publish  the manifest, last

Shards are named by their content and every finished one leaves a record, so packing can be killed at any moment: a
reader sees the whole dataset or none, and packing again writes only what is missing and ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from shards.errors import PackError
from shards.listing import digest_of, listing_key
from shards.manifest import Manifest, ManifestRow, Member, publish
from shards.problems import DataProblem, render_report
from shards.processes import TaskRunner, run_inline
from shards.progress import ProgressCallback
from shards.scan import (
    ENCODINGS,
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
    keep_jpeg: bool = True,
    allow_partial: bool = False,
    shard_bytes: int = SHARD_BYTES,
    runner: TaskRunner = run_inline,
    on_progress: ProgressCallback | None = None,
    on_look: ProgressCallback | None = None,
) -> Manifest:
    """Write `source` to `store` and publish it; returns the manifest.

    The same pairs and options give the same bytes, so a second run changes nothing. A shard is closed when what it
    holds is estimated at `shard_bytes`. JPEG sources keep their bytes unless `keep_jpeg` is false: tiles of them take
    several times the room. With `allow_partial` what cannot be packed is left out and recorded in the manifest.
    `on_look` is called as images are looked at, and then `on_progress` as pairs are packed.
    """
    if encoding not in ENCODINGS:
        raise PackError(f"encoding {encoding!r} is unknown; use one of {', '.join(ENCODINGS)}.")
    known = scan_source(source, encoding, keep_jpeg=keep_jpeg, on_progress=on_look)
    if known.problems and not allow_partial:
        raise PackError(render_report(name, [*known.problems, *undecodable_images(known)]))
    if not known.pairs:
        raise PackError(f"dataset {name!r}: the source has no pairs, so nothing was published.")
    check_pairs(known.pairs)
    store.ensure_bucket()
    tasks = [
        ShardTask(store, tuple(groups), encoding, keep_jpeg) for groups in _plan(known, shard_bytes, encoding)
    ]
    packed = _work(tasks, runner, len(known.pairs), on_progress)
    misses = [miss for part in packed for miss in part.misses]
    problems = [*known.problems, *_missed(misses)]
    if misses and not allow_partial:
        raise PackError(render_report(name, problems))
    manifest = Manifest(
        name,
        tuple(part.shard for part in packed if part.shard is not None),
        tuple(_rows(packed)),
        dict(source.licences),
        {
            **source.provenance,
            "sources": [_store_listing(store, listing) for listing in source.listings],
            "encoding": encoding,
            "jpeg": "kept" if keep_jpeg or encoding == "original" else "tiled",
            "shard_bytes": shard_bytes,
            "missing": [problem.record() for problem in problems],
            "input_psnr": _psnr(packed),
            "jpeg_tiled_bytes": [sum(part.jpeg_bytes[i] for part in packed) for i in (0, 1)],
        },
    )
    if not manifest.rows:
        raise PackError(render_report(name, problems))
    gone = [shard.key for shard in manifest.shards if not store.exists(shard.key)]
    if gone:
        raise PackError(f"{store.uri}/{gone[0]} went away while the others were packed. Pack again.")
    publish(store, manifest)
    for task in tasks:
        store.delete(f"{RECORDS}{task.digest()}.json")
    return manifest


def _plan(known: SourceScan, shard_bytes: int, encoding: str) -> Iterator[list[tuple[int, tuple[Pair, ...]]]]:
    """Groups of the pairs that share a clean image, shared out over shards."""
    shard: list[tuple[int, tuple[Pair, ...]]] = []
    size = 0
    for number, (clean, group) in enumerate(groupby(known.pairs, key=lambda pair: pair.clean)):
        pairs = tuple(group)
        shard.append((number, pairs))
        size += known.looks[clean].bytes
        size += sum(known.looks[pair.degraded].bytes for pair in pairs if pair.degraded is not None)
        if size >= shard_bytes:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _work(
    tasks: Sequence[ShardTask], runner: TaskRunner, total: int, on_progress: ProgressCallback | None
) -> list[PackedShard]:
    """Results in the order of the tasks, whatever order they end in."""
    done = 0

    def on_rows(rows: int, id_: str) -> None:
        nonlocal done
        done += rows
        if on_progress is not None:
            on_progress(done, total, id_)

    results: dict[int, PackedShard] = dict(runner(pack_shard, tasks, on_rows))
    return [results[index] for index in range(len(tasks))]


def _rows(packed: Sequence[PackedShard]) -> Iterator[ManifestRow]:
    """All rows, their members in the shards of the whole dataset."""
    number = 0
    for part in packed:
        if part.shard is None:
            continue
        moved: dict[Member, Member] = {}
        for row in part.rows:
            clean = moved.setdefault(row.clean, replace(row.clean, shard=number))
            degraded = None if row.degraded is None else replace(row.degraded, shard=number)
            yield replace(row, clean=clean, degraded=degraded)
        number += 1


def _missed(misses: Sequence[tuple[str, str]]) -> list[DataProblem]:
    if not misses:
        return []
    return [
        unreadable_problem(
            "Pairs", tuple(dict.fromkeys(f"{id_}: {without_remedy(why)}" for id_, why in misses))
        )
    ]


def _psnr(packed: Sequence[PackedShard]) -> Mapping[str, Mapping[str, float]]:
    """Mean PSNR of the degraded images against the clean ones, in dB, by split and degradation."""
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
