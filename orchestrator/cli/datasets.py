"""Commands about packed datasets and stores: show, verify, stream, audit, gc, rm."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import (
    DATA,
    Processes,
    argument,
    command,
    complete_model,
    emit,
    emit_error,
    option,
    use_local_cluster,
)

if TYPE_CHECKING:
    from shards.audit import DuplicateGroup

Uri = Annotated[str, argument("s3://bucket/name or a folder.", metavar="DATASET")]


@command(
    DATA, "mirage show s3://mirage/demo", "mirage show DATASET -o sheet.png", "mirage show DATASET --ids"
)
def show(
    uri: Uri,
    out: Annotated[
        Path | None, option("Contact sheet to write.", "--out", "-o", default=".mirage/sheets/NAME.png")
    ] = None,
    ids: Annotated[bool, option("Print only split, degradation and id of every sample.", "--ids")] = False,
) -> None:
    """Describe a packed dataset and write a contact sheet of it."""
    use_local_cluster()
    from orchestrator.data.datasets import open_uris
    from orchestrator.data.summary import contact_sheet, describe, sample_ids
    from orchestrator.imaging.convert import encode_png
    from orchestrator.outputs import write_output
    from orchestrator.paths import home, shortened

    dataset = open_uris([uri])
    (manifest,) = dataset.manifests
    if ids:
        for line in sample_ids(manifest):
            emit(line)
        return
    emit(describe(dataset.uris[0], manifest))
    path = out or home() / "sheets" / f"{Path(manifest.name).name}.png"
    write_output(path, encode_png(contact_sheet(dataset)))
    emit(f"sheet      {shortened(path)}")


@command(DATA, "mirage verify s3://mirage/demo --decode")
def verify(
    uri: Uri,
    pixels: Annotated[bool, option("Also decode every image.", "--decode")] = False,
    jobs: Processes = None,
) -> None:
    """Read a whole packed dataset and compare every byte with its manifest."""
    use_local_cluster()
    from orchestrator.paths import absolute_uri
    from orchestrator.progress import progress
    from shards.manifest import load_manifest
    from shards.processes import ProcessPool, available_cores
    from shards.store import open_store
    from shards.verify import verify as check

    store = open_store(absolute_uri(uri))
    manifest = load_manifest(store)
    with progress(emit_error, "verifying") as (advance,):
        found = check(
            store, manifest, decode=pixels, runner=ProcessPool(jobs or available_cores()), on_progress=advance
        )
    emit(
        f"{store.uri}: verified {found.shards:,} shards, {found.bytes:,} bytes, {found.images:,} images against "
        f"manifest {manifest.digest[:16]}"
    )


@command(
    DATA,
    "mirage stream s3://mirage/demo --split train > samples.tar",
    'webdataset.WebDataset("pipe:mirage stream s3://mirage/demo", shardshuffle=False).decode("rgb8")',
)
def stream(
    uri: Uri,
    split: Annotated[
        str | None, option("Only samples of this split.", default="both", metavar="train|test")
    ] = None,
    degradation: Annotated[str | None, option("Only samples of this degradation, for example rain.")] = None,
) -> None:
    """Write the samples of a packed dataset to standard output, as a WebDataset tar of PNG and JPEG images."""
    use_local_cluster()
    from orchestrator.data.datasets import open_pipeline_at
    from orchestrator.errors import PlanError
    from shards.pipeline import write_tar

    out = typer.get_binary_stream("stdout")
    if out.isatty():
        raise PlanError("mirage stream writes a tar file. Redirect it: mirage stream DATASET > samples.tar")
    samples = open_pipeline_at(uri, split, degradation)
    try:
        write_tar(samples, out)
        out.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # nothing is left to flush at exit
        raise typer.Exit(128 + signal.SIGPIPE) from None


@command(DATA, "mirage audit s3://mirage/demo", "mirage audit TRAIN_DATASET TEST_DATASET -o audit.png")
def audit(
    uris: Annotated[list[str], argument("Packed datasets.", metavar="DATASET...")],
    out: Annotated[Path, option("Pictures of the groups to write.", "--out", "-o")] = Path("audit.png"),
    shown: Annotated[
        int, option("Maximum number of groups to list and picture.", "--max-groups", min=1)
    ] = 20,
    jobs: Processes = None,
) -> None:
    """Find photographs that occur twice, within and across datasets, and in both train and test.

    Exit status 1 when a test sample shows a training photograph.
    """
    use_local_cluster()
    from orchestrator.data.datasets import open_uris
    from orchestrator.data.summary import duplicate_sheet
    from orchestrator.imaging.convert import encode_png
    from orchestrator.outputs import write_output
    from orchestrator.progress import progress
    from shards.audit import audit as compare
    from shards.processes import ProcessPool, available_cores

    dataset = open_uris(uris)
    with progress(emit_error, "comparing") as (advance,):
        duplicates = compare(
            dataset, dataset.cache, runner=ProcessPool(jobs or available_cores()), on_progress=advance
        )
    for group in duplicates[:shown]:
        kind = "equal pixels" if group.exact else f"similar, correlation {group.correlation:.3f}"
        sides = [f"{p.uri} {p.split} {p.row.id}" for p in (group.first, group.second)]
        emit(f"{'LEAK  ' if group.leaks else '      '}{sides[0]}   {sides[1]}   {kind}{_others(group)}")
    if len(duplicates) > shown:
        emit(f"      ... and {len(duplicates) - shown:,} more groups")
    emit(
        f"{len(duplicates):,} groups of photographs ({duplicates.exact:,} with equal pixels), "
        f"{duplicates.leaks:,} between train and test; {duplicates.photographs:,} photographs in them"
    )
    if duplicates:
        write_output(out, encode_png(duplicate_sheet(dataset, duplicates[:shown])))
        emit(f"pictures   {out}")
    leaked = duplicates.leaked_test_samples()
    for uri, samples in leaked.items():
        emit(f"{uri}: {samples:,} test samples show training photographs")
    if leaked:
        raise typer.Exit(1)


def _others(group: DuplicateGroup) -> str:
    """Return how many more photographs are in a group, and the names of some."""
    more = group.size - 2
    if more == 0:
        return ""
    names = ", ".join(f"{p.split} {p.row.id}" for p in group.others)
    return f"   and {more:,} more: {names}{', ...' if more > len(group.others) else ''}"


@command(DATA, "mirage gc s3://mirage", "mirage gc s3://mirage --older-than-hours 1 --delete")
def gc(
    uri: Annotated[
        str, argument("A dataset, or a storage with all its datasets and runs: s3://bucket or a folder.")
    ],
    delete: Annotated[bool, option("Delete them. Without this nothing changes.", "--delete")] = False,
    older_than: Annotated[
        float, option("Minimum age in hours. Younger objects may be in use.", "--older-than-hours", min=0)
    ] = 24.0,
    tracking: Annotated[
        str | None,
        option("MLflow tracking URI. Its registered models keep their runs.", default="this project's"),
    ] = None,
) -> None:
    """List objects that nothing refers to: orphaned and unpublished shards, old checkpoints. --delete deletes them.

    What a manifest, a run in progress or a registered model refers to is never deleted.
    """
    use_local_cluster()
    from orchestrator.errors import PlanError
    from orchestrator.maintenance import garbage_collection
    from orchestrator.paths import absolute_uri
    from orchestrator.progress import progress
    from shards.store import LocalStore, open_store

    store = open_store(absolute_uri(uri))
    if isinstance(store, LocalStore) and not store.root.is_dir():
        raise PlanError(f"{uri}: no such folder.")
    models, registered = _registered_runs(tracking)
    with progress(emit_error, "reading references") as (advance,):
        found = garbage_collection.find(store, registered or (), grace_hours=older_than, on_progress=advance)
    if registered is None:
        emit_error(_no_registry(models))
    for item in found.garbage:
        emit(f"{item.size:>14,}  {item.key}   {item.why}")
    for note in found.notes:
        emit_error(note)
    emit(f"{len(found.garbage):,} objects, {found.bytes:,} bytes that nothing refers to in {store.uri}")
    if delete:
        with progress(emit_error, "deleting") as (advance,):
            deleted = garbage_collection.remove(store, found.garbage, advance)
        emit(f"deleted {deleted:,}")
    elif found.garbage:
        emit("nothing was deleted; delete them with --delete")


@command(
    DATA,
    "mirage rm s3://mirage/demo",
    "mirage rm .mirage/folder/runs/demo-0123456789 --yes",
    "mirage rm models:/mirage-demo/3",
)
def rm(
    what: Annotated[
        str,
        argument(
            "A packed dataset or a run: s3://bucket/name or a folder; or models:/NAME/VERSION.",
            metavar="DATASET|RUN|MODEL",
            autocompletion=complete_model,
        ),
    ],
    yes: Annotated[bool, option("Do not ask.", "--yes", "-y")] = False,
    tracking: Annotated[
        str | None,
        option("MLflow tracking URI. Its registered models keep their runs.", default="this project's"),
    ] = None,
) -> None:
    """Delete a packed dataset, a run or a version of a model. It says what it would delete and asks first.

    Refuses what a running job may use, a run that a registered model comes from or whose result waits to be registered,
    and a version that an alias other than `candidate` points to. It searches for jobs that read a dataset in the whole
    bucket, or beside the dataset's folder, and in the storages of this folder's runs, and says where it searched.
    """
    use_local_cluster()
    from orchestrator.maintenance import deletion
    from orchestrator.paths import absolute_uri
    from orchestrator.tracking.uri import resolve_tracking_uri
    from shards.store import open_store

    if what.startswith("models:/"):
        uri = resolve_tracking_uri(tracking)
        version = deletion.find_version(what, uri)
        _confirm(f"{version.uri}, which MLflow run {version.run_id} produced", yes)
        deletion.delete_version(version, uri)
        emit(f"deleted {version.uri}")
        return
    found = deletion.find(open_store(absolute_uri(what)))
    registered: set[str] = set()
    if found.kind == "run":
        models, runs = _registered_runs(tracking)
        registered = runs or set()
        if runs is None:
            emit_error(_no_registry(models))
    searched = deletion.require_unused(found, registered)
    where = [f"no job at work was found in {', '.join(searched)}"] if searched else []
    if yes and where:
        emit_error(*where)
    _confirm("\n".join([str(found), *where]), yes)
    deletion.require_unused(found, registered)  # again: the answer may have taken long
    deletion.delete(found, emit_error)
    emit(f"deleted {found}")


def _no_registry(uri: str) -> str:
    from orchestrator.masking import without_password

    return f"no model is registered at {without_password(uri)}. Name another store with --tracking."


def _confirm(what: str, yes: bool) -> None:
    """Ask whether to delete; outside a terminal `--yes` is the answer."""
    from orchestrator.errors import PlanError

    if yes:
        return
    if not sys.stdin.isatty():
        raise PlanError(f"{what}\nNothing was deleted. To delete it: --yes")
    typer.confirm(f"{what}\nDelete it?", abort=True)


def _registered_runs(tracking: str | None) -> tuple[str, set[str] | None]:
    """Return the tracking URI and the ids of runs that registered models come from; None where nothing is tracked."""
    from orchestrator.registry import versions
    from orchestrator.run_files import RUN_TAG
    from orchestrator.tracking.uri import resolve_tracking_uri, sqlite_file

    uri = resolve_tracking_uri(tracking)
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        return uri, None
    return uri, versions.tag_values(uri, RUN_TAG)
