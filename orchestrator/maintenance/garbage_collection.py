"""Find objects of a store that nothing refers to, by their references and never by age alone.

    a dataset    shards and listings that none of its manifests names (whatever the pointer says), and the records
                 of a packing that was never published
    a run        blobs that no checkpoint names; of a finished run also the checkpoints that are neither the newest
                 nor, by the job's own rule, among the best or young enough. A run that is not finished, and one whose
                 result names no rule, keeps all its checkpoints, a registered one everything
    a proof      both runs of a `mirage prove-resume` that was killed, failed, or kept its runs
    a folder     temporary files of writes that were killed

Only objects with names that MIRAGE writes are considered. A folder in which an unreferenced object was written lately
may be in use by a packing or a run, and is skipped; so is one whose records cannot be read.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import PurePosixPath
from typing import Any

from orchestrator import records
from orchestrator.errors import CheckpointError, DamagedResultError
from orchestrator.records import RecordError
from orchestrator.run_files import PROOF_RUNS, PROOFS_FOLDER, RESULT, RETENTION_RULE, read_result
from orchestrator.training.checkpoint import Retention, read_record
from shards.errors import MissingObjectError, ShardsError, StoreError
from shards.listing import listing_key
from shards.manifest import load_manifest, table_key
from shards.manifest_parquet import TABLES
from shards.progress import ProgressCallback, counted, ignore
from shards.store import Store, open_store

GRACE_HOURS = 24.0

_HEX = "[0-9a-f]{64}"
NAMES = {
    "shards": rf"shards/{_HEX}\.tar",
    "sources": rf"sources/{_HEX}\.txt",
    "packing": rf"packing/{_HEX}\.json",
    "manifests": rf"manifests/{_HEX}\.json(?:\.gz)?",
    "tables": rf"manifests/{_HEX}\.(?:shards|images|rows)\.parquet",
    "blobs": rf"blobs/{_HEX}\.safetensors",
    "weights": rf"weights/{_HEX}\.safetensors",
    "checkpoints": r"checkpoints/\d+-[0-9a-f]{12}\.json",
    "result": re.escape(RESULT),
}
"""Patterns of the keys of objects, below the folder of their dataset or run."""
_KEY = re.compile(
    r"(?P<root>(?:.*/)?)(?:" + "|".join(f"(?P<{kind}>{name})" for kind, name in NAMES.items()) + ")"
)
_PROOF = re.compile(
    rf"(?:.*/)?{PROOFS_FOLDER}/[^/]+-[0-9a-f]{{10}}--?\d+-\d+/"
    rf"(?P<rest>(?:{'|'.join(PROOF_RUNS)})/(?:(?:blobs|checkpoints|weights|ledger|profile|initial|owner|writer|damaged)/.+|{re.escape(RESULT)}))"
)
"""Key of an object of a proof; the folder is named by the run, the seed and a number."""


@dataclass(frozen=True)
class Garbage:
    """An object that nothing refers to."""

    key: str
    size: int
    why: str


@dataclass(frozen=True)
class GarbageReport:
    """The garbage in a store, and notes on what was skipped."""

    garbage: tuple[Garbage, ...]
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Total size of the garbage."""
        return sum(item.size for item in self.garbage)


def find(
    store: Store,
    registered_runs: Collection[str],
    *,
    grace_hours: float = GRACE_HOURS,
    on_progress: ProgressCallback = ignore,
) -> GarbageReport:
    """Find the garbage of a store; delete nothing. `registered_runs` are the ids of runs with registered models."""
    roots: dict[str, dict[str, list[str]]] = {}
    proofs: dict[str, list[str]] = {}
    for key in store.list():
        found = _KEY.fullmatch(key)
        proof = _PROOF.fullmatch(f"{store.uri}/{key}")
        if proof is not None:
            proofs.setdefault(key[: -len(proof["rest"])], []).append(key)
        elif found is not None:
            kind = next(kind for kind in NAMES if found[kind] is not None)
            roots.setdefault(found["root"], {}).setdefault(kind, []).append(key)
    folders: list[tuple[str, Callable[[], Iterable[tuple[str, str]]]]] = [
        *(
            (root, partial(_of_root, store, root, keys, registered_runs))
            for root, keys in sorted(roots.items())
        ),
        *((root, partial(_of_proof, keys)) for root, keys in sorted(proofs.items())),
    ]
    garbage: list[Garbage] = []
    notes: list[str] = []
    clock = cache(partial(_time_of, store))
    for root, look in counted(folders, on_progress):
        where = f"{store.uri}/{root}".rstrip("/")
        try:
            free = list(look())
            stats = {key: store.stat(key) for key, _ in free}
        except (
            *(ShardsError, CheckpointError, DamagedResultError),
            *(ValueError, LookupError, TypeError, AttributeError, RecursionError),
        ) as error:
            notes.append(f"{where}: skipped, its references cannot be read: {error}")
            continue
        newest = max((stat.modified_unix for stat in stats.values()), default=0.0)
        age_hours = (clock() - newest) / 3600 if free else 0.0
        if free and age_hours < grace_hours:
            notes.append(
                f"{where}: skipped, {len(free)} unreferenced objects, the newest {age_hours:.1f} hours old: it may "
                f"be in use. If it is not: --older-than-hours {max(age_hours - 0.1, 0):.1f}"
            )
            continue
        garbage += [Garbage(key, stats[key].size, why) for key, why in free]
    for key in store.unfinished():
        stat = store.stat(key)
        if clock() - stat.modified_unix >= grace_hours * 3600:
            garbage.append(Garbage(key, stat.size, "left by a write that was killed"))
    return GarbageReport(tuple(garbage), tuple(notes))


def _time_of(store: Store) -> float:
    """Return the time by the clock of the store, which dates its objects; by our own where nothing can be written."""
    key = f".clock-{uuid.uuid4().hex}"
    try:
        store.write(key, b"")
        return store.stat(key).modified_unix
    except StoreError:
        return time.time()
    finally:
        with suppress(StoreError):
            store.delete(key)


def remove(store: Store, garbage: Iterable[Garbage], on_progress: ProgressCallback = ignore) -> int:
    """Delete garbage, records before the objects that they name; return the number of objects."""
    order = {"packing": 0, "checkpoints": 0}
    items = sorted(garbage, key=lambda item: order.get(PurePosixPath(item.key).parent.name, 1))
    for item in counted(items, on_progress):
        store.delete(item.key)
    return len(items)


def _of_root(
    store: Store, root: str, keys: dict[str, list[str]], registered_runs: Collection[str]
) -> Iterator[tuple[str, str]]:
    where = f"{store.uri}/{root}".rstrip("/")
    yield from _of_dataset(where, root, keys)
    if where.rpartition("/")[2] not in registered_runs:
        yield from _of_run(store, root, keys)


def _of_proof(keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    for key in keys:
        yield key, "of a proof that a job resumes"


def _of_dataset(where: str, root: str, keys: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    if not any(kind in keys for kind in ("shards", "sources", "packing", "tables")):
        return
    dataset = open_store(where)
    named: set[str] = set()
    for key in keys.get("manifests", ()):
        digest = key.rpartition("/")[2].partition(".")[0]
        manifest = load_manifest(dataset, digest)
        named |= {root + table_key(digest, table) for table in TABLES}
        named |= {root + shard.key for shard in manifest.shards}
        named |= {root + listing_key(digest) for digest in manifest.provenance.get("sources", ())}
    unpublished = {
        root + key for record in keys.get("packing", ()) for key in _shards_of(dataset, record[len(root) :])
    }
    for key in keys.get("packing", ()):
        yield key, "record of a packing that was not published"
    for key in keys.get("shards", ()):
        if key not in named:
            yield (
                key,
                "shard of a packing that was not published" if key in unpublished else "shard in no manifest",
            )
    for key in keys.get("tables", ()):
        if key not in named:
            yield key, "table of a manifest that was not published"
    for key in keys.get("sources", ()):
        if key not in named:
            yield key, "listing in no manifest"


def _shards_of(dataset: Store, record: str) -> list[str]:
    try:
        content = records.read_record(dict[str, Any], dataset.read(record))
        return [shard[0] for shard in content["shards"]]
    except (RecordError, LookupError, TypeError, MissingObjectError):
        return []  # a damaged record names nothing and is garbage itself


def _retention(store: Store, root: str, content: object) -> Retention:
    try:
        return records.check_record(Retention, content)
    except RecordError as error:
        raise DamagedResultError(
            f"{store.uri}/{root}{RESULT}: {RETENTION_RULE}.{error}. Submit the job again: it is computed "
            "from the newest checkpoint."
        ) from error


def _of_run(store: Store, root: str, keys: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    if not any(kind in keys for kind in ("blobs", "checkpoints", "weights")):
        return
    records = {key: read_record(store, key) for key in sorted(keys.get("checkpoints", ()))}
    kept = set(records)
    if "result" in keys:
        result = read_result(open_store(f"{store.uri}/{root}".rstrip("/")))
        named = {root + result["weights"]}
        if RETENTION_RULE in result:
            # The newest one is enough: the older ones are backups for a run that resumes.
            rule = _retention(store, root, result[RETENTION_RULE])
            kept = replace(rule, newest=1).kept(records, time.time())
        for key in records.keys() - kept:
            yield key, "checkpoint of a finished run, neither its newest nor its best"
        for key in keys.get("weights", ()):
            if key not in named:
                yield key, "weights that the run's result does not name"
    needed = {f"{root}blobs/{blob}.safetensors" for key in kept for blob in records[key]["blobs"].values()}
    for key in keys.get("blobs", ()):
        if key not in needed:
            yield key, "tensors of no checkpoint that is kept"
