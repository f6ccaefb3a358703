"""Commands about datasets that are packed already: verify, show, audit, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, emit, emit_error, progress_bar, use_local_cluster
from orchestrator.tracking.uri import resolve_tracking_uri, sqlite_file, without_password

Uri = Annotated[str, typer.Argument(help="s3://bucket/name or a folder.", show_default=False)]
Jobs = Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")]

_SHOWN = 20


@app.command()
def verify(
    uri: Uri,
    pixels: Annotated[bool, typer.Option("--pixels", help="Decode every image as well.")] = False,
    jobs: Jobs = None,
) -> None:
    """Read a packed dataset whole and hold every byte against its manifest."""
    use_local_cluster()
    from orchestrator.paths import absolute_uri
    from shards.manifest import load_manifest
    from shards.processes import ProcessPool, available_cores
    from shards.store import open_store
    from shards.verify import verify as check

    store = open_store(absolute_uri(uri))
    manifest = load_manifest(store)
    with progress_bar("verifying") as advance:
        found = check(
            store, manifest, decode=pixels, runner=ProcessPool(jobs or available_cores()), on_progress=advance
        )
    emit(
        f"{store.uri}: {found.shards:,} shards, {found.bytes:,} bytes and {found.images:,} images are what manifest "
        f"{manifest.digest[:16]} says"
    )


@app.command()
def show(
    uri: Uri,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Contact sheet. Default: NAME.sheet.png here.")
    ] = None,
) -> None:
    """Print what a packed dataset holds and write a contact sheet."""
    use_local_cluster()
    from orchestrator.data.datasets import open_uris
    from orchestrator.data.summary import contact_sheet, describe

    dataset = open_uris([uri])
    (manifest,) = dataset.manifests
    emit(describe(dataset.uris[0], manifest))
    path = out or Path(f"{manifest.name}.sheet.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(dataset).save(path)
    emit(f"sheet      {path}")


@app.command()
def audit(
    uris: Annotated[list[str], typer.Argument(metavar="URI...", help="Packed datasets.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Pictures of the pairs.")] = Path("audit.png"),
    shown: Annotated[int, typer.Option(min=1, help="How many pairs are listed and pictured.")] = _SHOWN,
    jobs: Jobs = None,
) -> None:
    """Find photographs that come twice, within and across datasets, and on both sides of train and test.

    The exit status is 1 when a test sample shows a photograph that is trained on.
    """
    use_local_cluster()
    from orchestrator.data.datasets import open_uris
    from orchestrator.data.summary import duplicate_sheet
    from shards.audit import audit as compare
    from shards.audit import leaked_test_samples
    from shards.processes import ProcessPool, available_cores

    dataset = open_uris(uris)
    with progress_bar("comparing") as advance:
        duplicates = compare(
            dataset, dataset.cache, runner=ProcessPool(jobs or available_cores()), on_progress=advance
        )
    for pair in duplicates[:shown]:
        kind = "equal pixels" if pair.exact else f"alike, {pair.correlation:.3f}"
        sides = [f"{p.uri} {p.split} {p.row.id}" for p in (pair.first, pair.second)]
        emit(f"{'LEAK  ' if pair.leaks else '      '}{sides[0]}   {sides[1]}   {kind}")
    if len(duplicates) > shown:
        emit(f"      ... and {len(duplicates) - shown:,} more pairs")
    leaks = sum(pair.leaks for pair in duplicates)
    exact = sum(pair.exact for pair in duplicates)
    emit(
        f"{len(duplicates):,} pairs of photographs ({exact:,} with equal pixels), "
        f"{leaks:,} of them across train and test"
    )
    if duplicates:
        out.parent.mkdir(parents=True, exist_ok=True)
        duplicate_sheet(dataset, duplicates[:shown]).save(out)
        emit(f"pictures   {out}")
    leaked = leaked_test_samples(duplicates)
    for uri, samples in leaked.items():
        emit(f"{uri}: {samples:,} test samples show photographs that are trained on")
    if leaked:
        raise typer.Exit(1)


@app.command()
def gc(
    uri: Annotated[
        str,
        typer.Argument(help="A dataset, or a whole storage: s3://bucket or a folder.", show_default=False),
    ],
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove it. Without this nothing changes.")
    ] = False,
    older_than: Annotated[
        float,
        typer.Option(min=0, help="Hours since anything unreferenced was written; younger may be in use."),
    ] = 24.0,
    tracking: Annotated[
        str | None, typer.Option(help="MLflow tracking URI whose registered models keep their runs.")
    ] = None,
) -> None:
    """List what nothing refers to: orphaned and unpublished shards, old checkpoints. With --delete, remove it.

    What a manifest, a run in progress or a registered model refers to is never touched.
    """
    use_local_cluster()
    from orchestrator.errors import PlanError
    from orchestrator.maintenance import garbage_collection
    from orchestrator.paths import absolute_uri
    from orchestrator.registry import versions
    from orchestrator.run_files import RUN_TAG
    from shards.store import LocalStore, open_store

    store = open_store(absolute_uri(uri))
    if isinstance(store, LocalStore) and not store.root.is_dir():
        raise PlanError(f"{uri}: no such folder.")
    models = resolve_tracking_uri(tracking)
    database = sqlite_file(models)
    nothing_tracked = database is not None and not database.exists()
    registered = set() if nothing_tracked else versions.tag_values(models, RUN_TAG)
    found = garbage_collection.find(store, registered, grace_hours=older_than)
    if nothing_tracked:
        emit_error(
            f"no model is registered at {without_password(models)}; if some are elsewhere, name it with --tracking"
        )
    for item in found.garbage:
        emit(f"{item.size:>14,}  {item.key}   {item.why}")
    for note in found.notes:
        emit_error(note)
    emit(f"{len(found.garbage):,} objects, {found.bytes:,} bytes that nothing refers to in {store.uri}")
    if delete:
        emit(f"removed {garbage_collection.remove(store, found.garbage):,}")
    elif found.garbage:
        emit("nothing was removed; to remove them: --delete")


@app.command()
def ledger(
    run: Annotated[
        str, typer.Argument(help="Folder of a run in the store: s3://bucket/runs/NAME or a path.")
    ],
) -> None:
    """Check that a run with `data.ledger` consumed each position exactly once."""
    use_local_cluster()
    from orchestrator.maintenance.sample_ledger import consumed

    emit(consumed(run).render())
