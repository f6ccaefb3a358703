"""Sources of raw data, as described by a job or a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.config.schema import Pack
from orchestrator.paths import absolute_uri, cache_folder
from shards.file_records import FileRecords
from shards.progress import ProgressCallback
from shards.sources import (
    CleanSource,
    FolderSource,
    PairsSource,
    PhotographSource,
    PublishedOptions,
    PublishedSource,
    Source,
)


def file_records(*, reread: bool = False) -> FileRecords:
    """Return what this machine remembers of raw files; with `reread`, every file is read again."""
    return FileRecords(cache_folder() / "raw-files.sqlite", reread=reread)


def source_of(
    spec: Pack, on_hash: ProgressCallback | None = None, records: FileRecords | None = None
) -> Source:
    """Return the source described by a validated `spec`. Raises PackError when its files are missing.

    `on_hash` is called as raw files are hashed, unless `records` knows them.
    """
    if spec.source == "photographs":
        return PhotographSource(spec.degradations, seed=spec.seed, variants=spec.variants)
    assert spec.root is not None, "the job schema asks for a root"
    root = Path(absolute_uri(spec.root))
    if spec.source == "clean":
        return CleanSource(
            root,
            held_out=_with_absolute_files(spec.held_out),
            held_out_share=spec.held_out_share,
            licence=spec.licence,
            on_hash=on_hash,
            records=records,
        )
    if spec.source == "synthetic":
        return FolderSource(
            root,
            spec.degradations,
            held_out=_with_absolute_files(spec.held_out),
            seed=spec.seed,
            variants=spec.variants,
            licence=spec.licence,
            on_hash=on_hash,
            records=records,
        )
    if spec.source == "pairs":
        assert spec.degraded is not None, "the job schema asks for it"
        assert spec.clean is not None, "the job schema asks for it"
        assert spec.degradation is not None, "the job schema asks for it"
        return PairsSource(
            root,
            spec.degraded,
            spec.clean,
            spec.degradation,
            held_out=_with_absolute_files(spec.held_out),
            held_out_share=spec.held_out_share,
            licence=spec.licence,
            on_hash=on_hash,
            records=records,
        )
    options = PublishedOptions(
        split=spec.split,
        group=spec.group,
        listing=Path(absolute_uri(spec.list_file)) if spec.list_file else None,
        crops=spec.crops,
        exclude_leaked=spec.exclude_leaked,
        expected=spec.expected,
    )
    return PublishedSource(spec.source, root, options, on_hash, records)


def _with_absolute_files(names: Sequence[str]) -> list[str]:
    return [f"@{absolute_uri(name[1:])}" if name.startswith("@") else name for name in names]
