"""Delete a packed dataset, a run or a registered version, in an order that leaves nothing half-readable.

    a dataset    its pointer first: from then on it does not exist; then manifests, shards, listings, records
    a run        its result and checkpoint records first, then the tensors that they name
    a version    by MLflow; an alias that points to it keeps it

Only objects with names that MIRAGE writes, directly in the folder, are deleted; datasets and runs below it stay. An
interrupted deletion is continued by the same command.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.console import Echo
from orchestrator.errors import OwnedError, PlanError, RegistryError
from orchestrator.history.store import FOLDER as HISTORY
from orchestrator.history.store import REPORT
from orchestrator.ownership import FOLDER as OWNER
from orchestrator.ownership import current_owner, owned
from orchestrator.progress import progress
from orchestrator.registry import versions
from orchestrator.registry.lease import lease
from orchestrator.run_files import RESULT
from shards.manifest import POINTER
from shards.store import LocalStore, Store, open_store

_HEX = "[0-9a-f]{64}"
_DATASET = (
    re.escape(POINTER),
    rf"manifests/{_HEX}\.json\.gz",
    rf"packing/{_HEX}\.json",
    rf"shards/{_HEX}\.tar",
    rf"sources/{_HEX}\.txt",
)
_RUN = (
    re.escape(RESULT),
    r"checkpoints/[^/]+\.json",
    re.escape(REPORT),
    rf"(blobs|weights|initial|ledger|profile|writer|damaged|{HISTORY})/.+",
    rf"{OWNER}/[^/]+\.json",
)
"""Patterns of keys, in the order of deletion."""
_KINDS = {"dataset": _DATASET, "run": _RUN}
_RUN_KEY = re.compile(rf"(?P<run>(?:.*/)?(?:runs|proofs)/[^/]+(?:/[^/]+)?)/{OWNER}/[^/]+\.json")


@dataclass(frozen=True)
class Deletion:
    """The objects of a dataset or a run, in the order of their deletion."""

    store: Store
    kind: str
    """`dataset` or `run`."""
    keys: tuple[str, ...]
    bytes: int

    def __str__(self) -> str:
        return f"{self.kind} {self.store.uri}: {len(self.keys):,} objects, {self.bytes:,} bytes"


def find(store: Store) -> Deletion:
    """Return what the deletion of the dataset or the run in `store` deletes. Raises PlanError if it is neither."""
    listed = store.list()
    for kind, patterns in _KINDS.items():
        ordered = [key for pattern in patterns for key in sorted(listed) if re.fullmatch(pattern, key)]
        if any(not key.startswith(f"{OWNER}/") for key in ordered):
            return Deletion(store, kind, tuple(ordered), sum(store.stat(key).size for key in ordered))
    raise PlanError(
        f"{store.uri} is neither a packed dataset nor a run. To see what is there: mirage gc {store.uri}"
    )


def users_of(deletion: Deletion, storage: Store) -> list[str]:
    """Return the runs in `storage` that are at work and may read the dataset."""
    if deletion.kind != "dataset":
        return []
    runs = {found["run"] for key in storage.list() if (found := _RUN_KEY.fullmatch(key))}
    owners = {run: current_owner(open_store(f"{storage.uri}/{run}")) for run in sorted(runs)}
    return [f"run {run}: {owner}. {owner.commands()}" for run, owner in owners.items() if owner]


def delete(deletion: Deletion, registered_runs: Collection[str], busy: Sequence[str], echo: Echo) -> None:
    """Delete the objects. Raises PlanError for the run of a registered model, OwnedError for what is in use."""
    store, name = deletion.store, deletion.store.uri.rpartition("/")[2]
    if deletion.kind == "run" and name in registered_runs:
        raise PlanError(
            f"{store.uri}: a registered model comes from this run. Delete the version first: mirage rm models:/NAME/N"
        )
    if busy:
        raise OwnedError("\n".join([f"{store.uri} may be in use:", *busy, "Stop it first."]))
    what = f"{deletion.kind} {name}"
    claim = owned(store, what, echo) if deletion.kind == "run" else nullcontext()
    with claim, progress(echo, "deleting") as (advance,):
        for number, key in enumerate(deletion.keys, 1):
            store.delete(key)
            advance(number, len(deletion.keys), key)
    for key in store.list(f"{OWNER}/"):
        store.delete(key)
    if isinstance(store, LocalStore):
        _delete_empty_folders(store.root)


def _delete_empty_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root, topdown=False):
        with suppress(OSError):  # it holds something else
            os.rmdir(folder)


def delete_version(model: str, tracking_uri: str) -> str:
    """Delete a registered version and return it in words. Raises RegistryError while an alias points to it."""
    if not re.fullmatch(r"models:/[^/@]+/\d+", model):
        raise RegistryError(f"{model}: name one version to delete, for example models:/mirage-demo/3.")
    version = versions.describe(model, tracking_uri)
    with lease(tracking_uri, version.name):  # no alias moves meanwhile
        aliases = versions.aliases(tracking_uri, version.name)
        pointing = sorted(alias for alias, number in aliases.items() if number == version.version)
        if pointing:
            raise RegistryError(
                f"{version.uri}: the alias {', '.join(pointing)} points to it. Move it to another version first: "
                f"mirage promote models:/{version.name}/N --to {pointing[0]}"
            )
        versions.delete(version, tracking_uri)
    return version.uri
