"""Write and read checkpoints: the complete state of a run, verified by checksums, without pickle.

Layout below the run's own folder in the store:

    blobs/<sha256>.safetensors          model, EMA and optimiser tensors, named by their content
    checkpoints/<step>-<digest>.json    one per checkpoint: its blobs, position and run
    damaged/<step>-<digest>.json        records of checkpoints that were found damaged

The blob of the EMA, or of the model in a run without one, is a weights file that `mirage.load` reads: its header
holds the configuration. The record names it as `weights`.

The JSON is written last and has its own checksum, so a checkpoint is complete or invisible. A damaged checkpoint is set
aside: it resumes nothing, and no rule counts it.

Sample order, augmentation, noise and DropPath depend on (seed, position) alone, and the learning rate on the step, so
no state of random generators or schedulers is stored but that of schedule `plateau`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, NotRequired

import safetensors.torch
from pydantic import ConfigDict, Field, TypeAdapter
from safetensors import SafetensorError
from torch import Tensor
from typing_extensions import TypedDict

from mirage.weights import to_bytes
from orchestrator import records
from orchestrator.config.schedule import Plateau
from orchestrator.config.schema import METRIC
from orchestrator.errors import CheckpointError, DamagedCheckpointError
from orchestrator.evaluation.ranking import rank_value
from shards.errors import CorruptObjectError, MissingObjectError, ObjectExistsError
from shards.store import Store
from shards.store.checked import read_checked, read_named, record_digest

log = logging.getLogger(__name__)

FORMAT = 1
_LISTINGS = 3
"""How often a store is asked for its list if it names records that are gone."""


@dataclass(frozen=True)
class RunIdentity:
    """The run and data that a checkpoint belongs to; it cannot resume any other."""

    run_id: str
    manifests: tuple[str, ...]
    """Digests of the packed datasets."""


_Whole = Annotated[int, Field(ge=0)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Identity(TypedDict):
    run_id: str
    manifests: list[str]


class _Plateau(TypedDict):
    best: float | None
    waited: _Whole
    reductions: _Whole


class _Record(TypedDict):
    """What a record must hold to resume a run; it may hold more."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    identity: _Identity
    step: _Whole
    position: _Whole
    skipped_steps: _Whole
    world_size: _Whole
    metrics: dict[str, float]
    blobs: dict[str, _Digest]
    plateau: NotRequired[_Plateau]


_RECORD = TypeAdapter(_Record)
RECORD_KEY = re.compile(r"checkpoints/(\d+-[0-9a-f]{12})\.json")
"""Key of a record; its group is the checkpoint's name."""


@dataclass(frozen=True)
class CheckpointState:
    """A snapshot of a run. Tensors are on the CPU and must not change."""

    step: int
    position: int
    skipped_steps: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    """`model`, `optimizer` and, if the run has one, `ema`: name -> tensor."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the newest validation; they rank the checkpoint."""
    world_size: int = 1
    gradient_scale: Mapping[str, float] = field(default_factory=dict)
    """State of the fp16 loss scale; empty in other precisions."""
    plateau: Plateau = field(default_factory=Plateau)
    """State of schedule `plateau`; that before the first validation in other schedules."""


@dataclass(frozen=True)
class WrittenCheckpoint:
    """A checkpoint that is complete in the store."""

    name: str
    step: int
    kept: Mapping[str, Mapping[str, float]]
    """Metrics of each checkpoint in the store after old ones were deleted, by name."""


@dataclass(frozen=True)
class Retention:
    """Rules for keeping checkpoints; one is kept if any rule keeps it."""

    newest: int = 3
    best: int = 1
    metric: str = METRIC
    """Validation metric that ranks the best."""
    larger_is_better: bool = True
    hours: float = 0.0
    """Keep all checkpoints younger than this, in hours."""

    def kept(self, records: Mapping[str, Mapping[str, Any]], now: float) -> set[str]:
        """Return the names of the records to keep; `now` is Unix time."""
        names = sorted(records, key=_age)
        newest = names[-self.newest :]
        sign = 1 if self.larger_is_better else -1
        scores = {name: records[name]["metrics"].get(self.metric) for name in names}
        scored = [name for name in names if rank_value(scores[name]) > -math.inf]
        # The earliest of equals: a later checkpoint without a new validation must not replace it.
        best = sorted(scored, key=lambda name: -sign * rank_value(scores[name]))[: self.best]
        # A clock that was set back makes checkpoints of the future: they are as young as can be.
        ages = {name: max(0, now - records[name].get("written_unix", 0)) for name in records}
        young = [name for name, age in ages.items() if age < 3600 * self.hours]
        return {*newest, *best, *young}


class Checkpoints:
    """The checkpoints of one run in a store.

    `save` returns at once and writes in the background, one at a time; `wait` returns when all is written.
    """

    def __init__(
        self,
        store: Store,
        identity: RunIdentity,
        *,
        keep: Retention,
        code_version: str = "",
        model_source: str = "",
        may_change_model: bool = False,
        header: Mapping[str, str] | None = None,
    ) -> None:
        """Open the checkpoints in `store`, the run's folder.

        `model_source` is the digest of a user-defined model's source, which a checkpoint must share unless it
        `may_change_model`; "" compares nothing. `header` is written into the blob with the weights, so that it is a
        weights file.
        """
        self._store = store
        self._identity = identity
        self._keep = keep
        self._code_version = code_version
        self._model_source = model_source
        self._may_change_model = may_change_model
        self._unknown_files: set[str] = set()
        self._records: dict[str, dict[str, Any]] = {}
        """Records that were read or written, so that each is read once: they never change."""
        self._header = dict(header or {})
        self.write_seconds = 0.0
        """Duration of the latest write, in the background."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[WrittenCheckpoint] | None = None

    def save(self, state: CheckpointState) -> None:
        """Start writing `state` after waiting for the previous write, so that only one snapshot is in memory."""
        self.wait()
        self._pending = self._writer.submit(self._write, state)

    def wait(self) -> WrittenCheckpoint | None:
        """Wait for the newest `save` and return what it wrote; None if there is none to wait for. Raises its error."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    def names(self) -> list[str]:
        """Return the checkpoints' names, oldest first. Other files beside them are ignored with a warning."""
        found = []
        for key in self._store.list("checkpoints/"):
            if match := RECORD_KEY.fullmatch(key):
                found.append(match[1])
            elif key not in self._unknown_files:
                self._unknown_files.add(key)
                log.warning("%s/%s is no checkpoint, it is ignored", self._store.uri, key)
        return sorted(found, key=_age)

    def metrics(self) -> dict[int, Mapping[str, float]]:
        """Return step -> metrics of every valid record."""
        found: dict[int, Mapping[str, float]] = {}
        for name in self.names():
            try:
                record = self._record(name)
            except (DamagedCheckpointError, MissingObjectError):
                continue  # `load_newest` sets it aside
            found[int(record["step"])] = record["metrics"]
        return found

    def load_newest(self, *, start_over: bool = False) -> tuple[str, CheckpointState] | None:
        """Return name and content of the newest whole checkpoint, None if there is no checkpoint.

        Damaged ones that are newer are set aside. If all are damaged, raises CheckpointError and leaves them in place,
        or, to `start_over`, sets them aside and returns None.
        """
        for _ in range(_LISTINGS):
            found, damaged, gone = self._newest_whole()
            if not gone:
                break
            log.warning("%s lists checkpoints that are gone; listing again", self._store.uri)
        unusable = [*damaged, *gone]
        if unusable and found is None and not start_over:
            raise CheckpointError(
                f"no checkpoint of this run in {self._store.uri} is whole; damaged or gone: {', '.join(unusable)}. "
                "Restore them from a copy, or start at step 0: --set checkpoint.if_all_damaged=restart. The damaged "
                "records are then kept in damaged/."
            )
        for name, why in damaged.items():
            self._set_aside(name, why)
        return found

    def _newest_whole(self) -> tuple[tuple[str, CheckpointState] | None, dict[str, str], list[str]]:
        """Return the newest whole checkpoint, why newer ones are damaged, and the listed ones that are gone."""
        damaged: dict[str, str] = {}
        gone: list[str] = []
        for name in reversed(self.names()):
            try:
                return (name, self.load(name)), damaged, gone
            except DamagedCheckpointError as error:
                log.warning("checkpoint %s is damaged; trying the one before: %s", name, error)
                damaged[name] = str(error)
            except MissingObjectError:
                gone.append(name)
        return None, damaged, gone

    def _set_aside(self, name: str, why: str) -> None:
        """Move a damaged record out of the way, so that it neither resumes a run nor counts as one that is kept."""
        aside = f"damaged/{name}.json"
        try:
            self._put(aside, self._store.read(_record_key(name)))
            self._store.delete(_record_key(name))
        except MissingObjectError:
            return  # another process did it
        log.warning("checkpoint %s is set aside as %s/%s: %s", name, self._store.uri, aside, why)

    def load(self, name: str) -> CheckpointState:
        """Return the checkpoint `name` after verifying its checksums. Raises CheckpointError."""
        record = self._record(name)
        owner = record["identity"]
        mine = json.loads(json.dumps(asdict(self._identity)))
        if owner != mine:
            raise CheckpointError(
                f"checkpoint {name} in {self._store.uri} belongs to run {owner['run_id']} on data "
                f"{owner['manifests']}, not to {mine['run_id']} on {mine['manifests']}. Give the job another name."
            )
        self._compare_code(name, record)
        tensors = {}
        for part, blob in record["blobs"].items():
            try:
                tensors[part] = safetensors.torch.load(read_named(self._store, _blob_key(blob)))
            except (CorruptObjectError, MissingObjectError, SafetensorError) as error:
                raise DamagedCheckpointError(str(error)) from error
        if "model" not in tensors:
            raise DamagedCheckpointError(f"checkpoint {name} in {self._store.uri} holds no model.")
        return CheckpointState(
            step=record["step"],
            position=record["position"],
            skipped_steps=record["skipped_steps"],
            tensors=tensors,
            metrics=record["metrics"],
            world_size=record["world_size"],
            gradient_scale=record.get("gradient_scale", {}),
            plateau=Plateau(**record.get("plateau", {})),
        )

    def _compare_code(self, name: str, record: Mapping[str, Any]) -> None:
        """Warn if other code wrote the record; raise CheckpointError if the user's model has changed."""
        source, version = record.get("model_source", ""), record.get("code_version", "")
        known = source and self._model_source
        if known and source != self._model_source and not self._may_change_model:
            raise CheckpointError(
                f"the source of model.class is not that of checkpoint {name} in {self._store.uri} (sha256 "
                f"{source[:12]}, now {self._model_source[:12]}). Restore it, give the job another name, or continue "
                "with the changed model: --set checkpoint.if_model_changed=continue."
            )
        if version and self._code_version and version != self._code_version:
            log.warning(
                "checkpoint %s was written by version %s, this is %s: the run continues, but its steps may round "
                "differently",
                name,
                version,
                self._code_version,
            )

    def _write(self, state: CheckpointState) -> WrittenCheckpoint:
        began = time.monotonic()
        weights = "ema" if "ema" in state.tensors else "model"
        blobs = {}
        for part, tensors in state.tensors.items():
            data = to_bytes(tensors, self._header if part == weights else None)
            blobs[part] = hashlib.sha256(data).hexdigest()
            self._put(_blob_key(blobs[part]), data)
        name = self._recorded(state.step, blobs) or self._put_record(state, blobs, weights)
        kept = self._prune(name)
        self.write_seconds = time.monotonic() - began
        return WrittenCheckpoint(name, state.step, {name: record["metrics"] for name, record in kept.items()})

    def _put_record(self, state: CheckpointState, blobs: Mapping[str, str], weights: str) -> str:
        """Write the record and return its name."""
        record = {
            "format": FORMAT,
            "identity": asdict(self._identity),
            "code_version": self._code_version,
            **({"model_source": self._model_source} if self._model_source else {}),
            "step": state.step,
            "position": state.position,
            "skipped_steps": state.skipped_steps,
            "world_size": state.world_size,
            "metrics": dict(state.metrics),
            "gradient_scale": dict(state.gradient_scale),
            **({"plateau": asdict(state.plateau)} if state.plateau != Plateau() else {}),
            "blobs": dict(blobs),
            "weights": _blob_key(blobs[weights]),
            "written_unix": int(time.time()),
        }
        digest = record_digest(record)
        name = f"{state.step:09d}-{digest[:12]}"
        self._put(_record_key(name), json.dumps({**record, "sha256": digest}, indent=1).encode())
        self._records[name] = json.loads(json.dumps(record))  # as one that was read
        return name

    def _recorded(self, step: int, blobs: Mapping[str, str]) -> str:
        """Return the name of the same checkpoint if an earlier attempt wrote it, else ""."""
        for name in self.names():
            if name.startswith(f"{step:09d}-"):
                try:
                    return name if self._record(name)["blobs"] == blobs else ""
                except (DamagedCheckpointError, MissingObjectError):
                    continue
        return ""

    def _put(self, key: str, data: bytes) -> None:
        """Write an object named by its content; replace one with other content, which is damaged."""
        try:
            self._store.write(key, data)
        except ObjectExistsError:
            log.warning("%s/%s is damaged; writing it again", self._store.uri, key)
            self._store.delete(key)
            self._store.write(key, data)

    def _record(self, name: str) -> dict[str, Any]:
        if name not in self._records:
            self._records[name] = read_record(self._store, _record_key(name))
        return self._records[name]

    def _prune(self, written: str) -> dict[str, dict[str, Any]]:
        """Delete checkpoints that no rule keeps, each record before its blobs; return the kept records by name.

        The one that was just `written` is kept, whatever others there are.
        """
        records = {}
        for name in self.names():
            try:
                records[name] = self._record(name)
            except DamagedCheckpointError as error:
                self._set_aside(name, str(error))
            except MissingObjectError:
                continue  # the list is older than its deletion
        kept = self._keep.kept(records, time.time()) | ({written} & records.keys())
        needed = {blob for name in kept for blob in records[name]["blobs"].values()}
        for name in records.keys() - kept:
            self._store.delete(_record_key(name))
        self._records = {name: records[name] for name in kept}
        for name in records.keys() - kept:
            for blob in set(records[name]["blobs"].values()) - needed:
                self._store.delete(_blob_key(blob))
        return {name: records[name] for name in sorted(kept, key=_age)}


def step_of(name: str) -> int:
    """Return the step of the checkpoint `name`."""
    return int(name.partition("-")[0])


def read_record(store: Store, key: str) -> dict[str, Any]:
    """Return the whole record under a key.

    Raises MissingObjectError, DamagedCheckpointError, and CheckpointError for another format.
    """
    name = key.rpartition("/")[2].removesuffix(".json")
    return read_checked(
        store, key, lambda data: _parse(data, f"{store.uri}/{key}", name), DamagedCheckpointError
    )


def _parse(data: bytes, where: str, name: str) -> dict[str, Any]:
    """Return the record in these bytes. Raises DamagedCheckpointError, and CheckpointError for another format."""
    try:
        record = records.read_record(dict[str, Any], data)
        claimed = record.pop("sha256")
        if record_digest(record) != claimed:
            raise DamagedCheckpointError(f"{where} does not match its own checksum.")
        if record["format"] != FORMAT:
            raise CheckpointError(f"{where} has format {record['format']}; this version reads {FORMAT}.")
        _RECORD.validate_python(record)
    except (ValueError, KeyError) as error:
        problem = str(error).partition("\n")[0]
        raise DamagedCheckpointError(
            f"{where} is not a checkpoint record ({type(error).__name__}: {problem})."
        ) from error
    if record["step"] != step_of(name):
        raise DamagedCheckpointError(f"{where} is of step {record['step']}, but its name is of another step.")
    return record


def _age(key: str) -> tuple[int, str]:
    """Sort names and keys of checkpoints by step, oldest first; steps above 999,999,999 have more digits."""
    name = key.rpartition("/")[2]
    return step_of(name), name


def _blob_key(digest: str) -> str:
    return f"blobs/{digest}.safetensors"


def _record_key(name: str) -> str:
    return f"checkpoints/{name}.json"
