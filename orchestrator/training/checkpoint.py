"""Write and read checkpoints: the complete state of a run, verified by checksums, without pickle.

Layout below the run's own folder in the store:

    blobs/<sha256>.safetensors          model, EMA and optimiser tensors, named by their content
    checkpoints/<step>-<digest>.json    one per checkpoint: its blobs, position and run

The blob of the EMA, or of the model in a run without one, is a weights file that `mirage.load` reads: its header
holds the configuration. The record names it as `weights`.

The JSON is written last and has its own checksum, so a checkpoint is complete or invisible. Sample order,
augmentation, noise and DropPath depend on (seed, position) alone, and the learning rate on the step, so no state of
random generators or schedulers is stored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
from torch import Tensor

from mirage.weights import to_bytes
from orchestrator.errors import CheckpointError, DamagedCheckpointError
from orchestrator.evaluation.ranking import rank_value
from shards.errors import MissingObjectError, ObjectExistsError
from shards.store import Store

log = logging.getLogger(__name__)

FORMAT = 1
METRIC = "val/psnr"
"""Validation metric that ranks checkpoints; larger is better."""


@dataclass(frozen=True)
class RunIdentity:
    """The run and data that a checkpoint belongs to; it cannot resume any other."""

    run_id: str
    manifests: tuple[str, ...]
    """Digests of the packed datasets."""


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
        young = [name for name in records if now - records[name].get("written_unix", 0) < 3600 * self.hours]
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
        header: Mapping[str, str] | None = None,
    ) -> None:
        """Open the checkpoints in `store`, the run's folder.

        `header` is written into the blob with the weights, so that it is a weights file.
        """
        self._store = store
        self._identity = identity
        self._keep = keep
        self._code_version = code_version
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
        """Return the checkpoints' names, oldest first."""
        return [
            key.removeprefix("checkpoints/").removesuffix(".json") for key in self._store.list("checkpoints/")
        ]

    def metrics(self) -> dict[int, Mapping[str, float]]:
        """Return step -> metrics of every valid record."""
        found: dict[int, Mapping[str, float]] = {}
        for name in self.names():
            try:
                record = self._record(name)
            except (DamagedCheckpointError, MissingObjectError):
                continue  # `load_newest` reports it
            found[int(record["step"])] = record["metrics"]
        return found

    def load_newest(self) -> tuple[str, CheckpointState] | None:
        """Return name and content of the newest valid checkpoint, or None. Damaged ones are logged and skipped."""
        for name in reversed(self.names()):
            try:
                return name, self.load(name)
            except (DamagedCheckpointError, MissingObjectError) as error:
                log.warning("checkpoint %s is damaged; trying the one before: %s", name, error)
        return None

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
        tensors = {}
        for part, blob in record["blobs"].items():
            data = self._store.read(_blob_key(blob))
            if hashlib.sha256(data).hexdigest() != blob:
                raise DamagedCheckpointError(
                    f"{self._store.uri}/{_blob_key(blob)} does not match its checksum."
                )
            tensors[part] = safetensors.torch.load(data)
        return CheckpointState(
            step=record["step"],
            position=record["position"],
            skipped_steps=record["skipped_steps"],
            tensors=tensors,
            metrics=record["metrics"],
            world_size=record["world_size"],
            gradient_scale=record.get("gradient_scale", {}),
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
        kept = self._prune()
        self.write_seconds = time.monotonic() - began
        return WrittenCheckpoint(name, state.step, {name: record["metrics"] for name, record in kept.items()})

    def _put_record(self, state: CheckpointState, blobs: Mapping[str, str], weights: str) -> str:
        """Write the record and return its name."""
        record = {
            "format": FORMAT,
            "identity": asdict(self._identity),
            "code_version": self._code_version,
            "step": state.step,
            "position": state.position,
            "skipped_steps": state.skipped_steps,
            "world_size": state.world_size,
            "metrics": dict(state.metrics),
            "gradient_scale": dict(state.gradient_scale),
            "blobs": dict(blobs),
            "weights": _blob_key(blobs[weights]),
            "written_unix": int(time.time()),
        }
        digest = _digest(record)
        name = f"{state.step:09d}-{digest[:12]}"
        self._put(_record_key(name), json.dumps({**record, "sha256": digest}, indent=1).encode())
        return name

    def _recorded(self, step: int, blobs: Mapping[str, str]) -> str:
        """Return the name of the same checkpoint if an earlier attempt wrote it, else ""."""
        for name in self.names():
            if name.startswith(f"{step:09d}-"):
                try:
                    return name if self._record(name)["blobs"] == blobs else ""
                except DamagedCheckpointError:
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
        key = _record_key(name)
        try:
            record = json.loads(self._store.read(key))
            claimed = record.pop("sha256")
        except (ValueError, KeyError, AttributeError) as error:
            raise DamagedCheckpointError(
                f"{self._store.uri}/{key} is not a checkpoint record: {error!r}."
            ) from error
        if _digest(record) != claimed:
            raise DamagedCheckpointError(f"{self._store.uri}/{key} does not match its own checksum.")
        if record["format"] != FORMAT:
            raise CheckpointError(
                f"{self._store.uri}/{key} has format {record['format']}; this version reads {FORMAT}."
            )
        return record  # type: ignore[no-any-return]

    def _prune(self) -> dict[str, dict[str, Any]]:
        """Delete checkpoints that no rule keeps, each record before its blobs; return the kept records by name."""
        records = {}
        for name in self.names():
            try:
                records[name] = self._record(name)
            except DamagedCheckpointError as error:
                log.warning("checkpoint %s is damaged; not deleting it: %s", name, error)
        kept = self._keep.kept(records, time.time())
        needed = {blob for name in kept for blob in records[name]["blobs"].values()}
        for name in records.keys() - kept:
            self._store.delete(_record_key(name))
        for name in records.keys() - kept:
            for blob in set(records[name]["blobs"].values()) - needed:
                self._store.delete(_blob_key(blob))
        return {name: records[name] for name in sorted(kept)}


def step_of(name: str) -> int:
    """Return the step of the checkpoint `name`."""
    return int(name.partition("-")[0])


def _age(key: str) -> tuple[int, str]:
    """Sort names and keys of checkpoints by step, oldest first; steps above 999,999,999 have more digits."""
    name = key.rpartition("/")[2]
    return step_of(name), name


def _blob_key(digest: str) -> str:
    return f"blobs/{digest}.safetensors"


def _record_key(name: str) -> str:
    return f"checkpoints/{name}.json"


def _digest(record: Mapping[str, object]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
