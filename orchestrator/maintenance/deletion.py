"""Delete a packed dataset, a run or a registered version, in an order that leaves nothing half-readable.

    a dataset    its pointer first: from then on it does not exist; then manifests, shards, listings, records
    a run        its result and checkpoint records first, then the tensors that they name
    a version    by MLflow; an alias other than `candidate` that points to it keeps it

Only objects with names that MIRAGE writes, directly in the folder, are deleted; datasets and runs below it stay, and
a folder that has no more than a file of such a name is neither. The reports of a run on this machine go with it. An
interrupted deletion is continued by the same command.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.cluster.local.users import users
from orchestrator.console import Echo
from orchestrator.errors import OwnedError, PlanError, RegistryError
from orchestrator.history.store import FOLDER as HISTORY
from orchestrator.history.store import REPORT, STATUS
from orchestrator.maintenance import run_list
from orchestrator.maintenance.garbage_collection import NAMES
from orchestrator.ownership import FOLDER as OWNER
from orchestrator.ownership import current_owner, owned
from orchestrator.paths import home
from orchestrator.progress import progress
from orchestrator.registry import versions
from orchestrator.registry.lease import lease
from orchestrator.registry.registration import ALIAS as CANDIDATE
from orchestrator.registry.versions import ModelVersion
from orchestrator.run_files import LOCATION, RESULT, UNPUBLISHED
from shards.errors import StoreError
from shards.manifest import POINTER
from shards.store import LocalStore, S3Store, Store, open_store

_CLAIM = rf"{OWNER}/\d{{6}}-[0-9a-f]{{32}}\.json"
_KINDS = {
    "dataset": (
        re.escape(POINTER),
        *(NAMES[kind] for kind in ("manifests", "tables", "packing", "shards", "sources")),
    ),
    "run": (
        *(NAMES[kind] for kind in ("result", "checkpoints")),
        re.escape(REPORT),
        *(NAMES[kind] for kind in ("blobs", "weights")),
        r"initial/[0-9a-f]{64}",
        r"ledger/\d{4,}/\d+-worker-\d+-of-\d+\.jsonl",
        r"profile/steps-\d+-to-\d+-[0-9a-f]{8}\.json\.gz",
        r"writer/(?:\d{6}-){3}[0-9a-f]{32}\.json",
        r"damaged/(?:\d+|result)-[0-9a-f]{12}\.json",
        rf"{HISTORY}/(?:status\.json|history\.json|sheet)",
        _CLAIM,
    ),
}
"""Patterns of keys, in the order of deletion."""
_AT_WORK = re.compile(rf"(?P<folder>(?:.*/)?(?:(?:runs|sweeps)/[^/]+|proofs/[^/]+/[^/]+))/{_CLAIM}")
_AT_WORK_HERE = [f"{kind}/{OWNER}/*.json" for kind in ("runs/*", "sweeps/*", "proofs/*/*")]
"""The same in a folder of this machine."""


@dataclass(frozen=True)
class Deletion:
    """The objects of a dataset or a run, in the order of their deletion."""

    store: Store
    kind: str
    """`dataset` or `run`."""
    keys: tuple[str, ...]
    bytes: int
    reports: Path | None
    """Folder on this machine with the reports of the run, if there is one."""

    @property
    def name(self) -> str:
        """Name of the folder: a run's id."""
        return self.store.uri.rpartition("/")[2]

    def __str__(self) -> str:
        reports = f", and its reports in {self.reports}" if self.reports else ""
        return f"{self.kind} {self.store.uri}: {len(self.keys):,} objects, {self.bytes:,} bytes{reports}"


def find(store: Store) -> Deletion:
    """Return what the deletion of the dataset or the run in `store` deletes. Raises PlanError if it is neither."""
    listed = store.list()
    for kind, is_one in (("dataset", _is_dataset), ("run", _is_run)):
        keys = _ordered(kind, listed)
        if is_one(keys, listed):
            reports = _reports(store) if kind == "run" else None
            return Deletion(store, kind, tuple(keys), sum(store.stat(key).size for key in keys), reports)
    raise PlanError(
        f"{store.uri} is neither a packed dataset nor a run. To see what is there: mirage gc {store.uri}"
    )


def _ordered(kind: str, listed: Iterable[str]) -> list[str]:
    return [key for pattern in _KINDS[kind] for key in sorted(listed) if re.fullmatch(pattern, key)]


def _is_dataset(keys: Sequence[str], listed: Sequence[str]) -> bool:
    """Return whether one of the keys can be of nothing but a dataset; others may have a file called `manifest`."""
    return any(key != POINTER for key in keys)


def _is_run(keys: Sequence[str], listed: Sequence[str]) -> bool:
    """Return whether the keys can be of nothing but a run, or of one whose deletion was interrupted."""
    named = {kind: any(re.fullmatch(NAMES[kind], key) for key in keys) for kind in ("checkpoints", "weights")}
    claims = sum(bool(re.fullmatch(_CLAIM, key)) for key in keys)
    return (
        named["checkpoints"]
        or STATUS in keys
        or (RESULT in keys and named["weights"])
        or (claims > 0 and (len(keys) > claims or len(keys) == len(listed)))
    )


def _reports(store: Store) -> Path | None:
    """Return the folder on this machine of the run in `store`, unless it belongs to a run of the same id elsewhere."""
    folder = home() / "runs" / store.uri.rpartition("/")[2]
    if not folder.is_dir() or (isinstance(store, LocalStore) and folder.samefile(store.root)):
        return None
    with suppress(OSError, UnicodeDecodeError, StoreError):
        if not _is_same(store, open_store((folder / LOCATION).read_text().strip())):
            return None
    return folder


def _is_same(one: Store, other: Store) -> bool:
    if isinstance(one, LocalStore) and isinstance(other, LocalStore):
        return os.path.realpath(one.root) == os.path.realpath(other.root)
    return one.uri == other.uri


# --- what is in use --------------------------------------------------------------------------------------------


def require_unused(deletion: Deletion, registered_runs: Collection[str]) -> list[str]:
    """Return the storages that were searched for jobs at work that may read the dataset, in words.

    Raises OwnedError if there is one, and PlanError for a run that is registered or waits to be.
    """
    store, busy, searched = deletion.store, list[str](), list[str]()
    if deletion.kind == "run":
        if deletion.name in registered_runs:
            raise PlanError(
                f"{store.uri}: a registered model comes from this run. Delete the version first: mirage rm "
                "models:/NAME/N"
            )
        if deletion.reports and (deletion.reports / UNPUBLISHED).exists():
            raise PlanError(
                f"{store.uri}: the result of this run waits to be registered. Register it first: mirage sync. Or "
                f"delete {deletion.reports / UNPUBLISHED}"
            )
        busy = _at_work(_sweep_of(deletion))
    else:
        busy = [str(user) for user in users(home())]
        for uri, folders in _storages(store):
            try:
                busy += _at_work(folders)
                searched.append(uri)
            except StoreError as error:
                searched.append(f"{uri} (left out: {error})")
    if busy:
        raise OwnedError("\n".join([f"{store.uri} may be in use:", *dict.fromkeys(busy), "Stop it first."]))
    return searched


def _at_work(folders: Iterable[str]) -> list[str]:
    owners = {folder: current_owner(open_store(folder)) for folder in dict.fromkeys(folders)}
    return [f"{folder}: {owner}. {owner.commands()}" for folder, owner in owners.items() if owner]


def _sweep_of(deletion: Deletion) -> list[str]:
    """Return the folder of the sweep that the run is a trial of, if it is one."""
    trial = run_list.TRIAL.fullmatch(deletion.name)
    storage = deletion.store.uri.rpartition("/")[0].rpartition("/")[0]
    return [f"{storage}/sweeps/{trial['sweep']}"] if trial else []


def _storages(store: Store) -> Iterator[tuple[str, Iterator[str]]]:
    """Yield where runs may be that read the dataset in `store`, each with the folders that have claims.

    That is everything in its bucket, or, on this machine, beside each of the folders that it is in and one level
    below; and the storages of the runs that were started in this project.
    """
    bucket = f"s3://{store.bucket}" if isinstance(store, S3Store) else ""
    if bucket:
        yield bucket, _claimed_above(store.uri, bucket)
    elif isinstance(store, LocalStore):
        for folder in store.root.absolute().parents[:-1]:  # without that of the whole machine
            yield str(folder), _claimed_here(folder, ("", "*/"))
    for uri in run_list.storages():
        if "://" not in uri:
            yield uri, _claimed_here(Path(uri), ("",))
        elif not bucket or not f"{uri}/".startswith(f"{bucket}/"):
            yield uri, _claimed(uri)


def _claimed_above(uri: str, bucket: str) -> Iterator[str]:
    """Yield the folders with claims of the bucket, or of the highest folder of `uri` that may be listed."""
    above = [uri]
    while above[-1] != bucket:
        above.append(above[-1].rpartition("/")[0])
    while True:
        try:
            yield from _claimed(above.pop())
            return
        except StoreError:
            if not above:
                raise


def _claimed(uri: str) -> Iterator[str]:
    for key in open_store(uri).list():
        if found := _AT_WORK.fullmatch(key):
            yield f"{uri}/{found['folder']}"


def _claimed_here(folder: Path, prefixes: Iterable[str]) -> Iterator[str]:
    for prefix in prefixes:
        for pattern in _AT_WORK_HERE:
            for claim in folder.glob(prefix + pattern):
                yield str(claim.parent.parent)


# --- deletion --------------------------------------------------------------------------------------------------


def delete(deletion: Deletion, echo: Echo) -> None:
    """Delete the objects. Raises OwnedError for a run that is at work."""
    store = deletion.store
    if deletion.kind == "run":
        with owned(store, f"run {deletion.name}", echo) as claim:
            keys = _ordered("run", store.list())
            _delete(deletion, [key for key in keys if not (_is_claim(key) and key >= claim.key)], echo)
            if deletion.reports:
                shutil.rmtree(deletion.reports, ignore_errors=True)
        store.delete(claim.key)  # those of others are never deleted: a driver may have just taken the run
    else:
        _delete(deletion, _ordered("dataset", store.list()), echo)
    _delete_empty_folders(store, _KINDS[deletion.kind])


def _is_claim(key: str) -> bool:
    return re.fullmatch(_CLAIM, key) is not None


def _delete(deletion: Deletion, keys: Sequence[str], echo: Echo) -> None:
    with progress(echo, "deleting") as (advance,):
        for number, key in enumerate(keys, 1):
            deletion.store.delete(key)
            advance(number, len(keys), key)
    _delete_empty_folders(deletion.store, keys)


def _delete_empty_folders(store: Store, keys: Iterable[str]) -> None:
    """Delete the folders of these keys, or of patterns of keys, where they are empty."""
    if not isinstance(store, LocalStore):
        return
    folders = {parent for key in keys for parent in PurePosixPath(key).parents}
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        with suppress(OSError):  # it holds something else
            (store.root / folder).rmdir()


def find_version(model: str, tracking_uri: str) -> ModelVersion:
    """Return the version that `models:/NAME/VERSION` names. Raises RegistryError if it may not be deleted."""
    if not re.fullmatch(r"models:/[^/@]+/\d+", model):
        raise RegistryError(f"{model}: name one version to delete, for example models:/mirage-demo/3.")
    version = versions.describe(model, tracking_uri)
    _require_no_alias(version, tracking_uri)
    return version


def delete_version(version: ModelVersion, tracking_uri: str) -> None:
    """Delete a registered version; `candidate` then points to the newest of the others. Raises RegistryError."""
    with lease(tracking_uri, version.name):  # no other alias moves meanwhile
        _require_no_alias(version, tracking_uri)
        versions.delete(version, tracking_uri)
        newest = versions.newest(tracking_uri, version.name)
        if newest is not None and CANDIDATE not in versions.aliases(tracking_uri, version.name):
            versions.set_aliases(tracking_uri, version.name, {CANDIDATE: newest})


def _require_no_alias(version: ModelVersion, tracking_uri: str) -> None:
    """Raise RegistryError if an alias that someone chose points to the version; `candidate` is the newest version."""
    aliases = versions.aliases(tracking_uri, version.name)
    pointing = sorted(alias for alias, number in aliases.items() if number == version.version)
    chosen = [alias for alias in pointing if alias != CANDIDATE]
    if chosen:
        raise RegistryError(
            f"{version.uri}: the alias {', '.join(chosen)} points to it. Move it to another version first "
            f"(mirage promote models:/{version.name}/N --alias {chosen[0]}), or remove it on MLflow's page (mirage ui)."
        )
