"""Restore many photographs, each exactly once: the work of `mirage restore` and of a batch job.

plan           inputs, OUT and the index of results   → tasks: source, target, what is known of the target
RestoreWorker  a chunk of tasks, with a model         → outcomes: restored, skipped, or failed with a reason
merge_indexes  the many files of an index             → one
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import not_
from typing import Literal

from orchestrator.errors import PhotoError
from orchestrator.imaging.photos import LIMITS, Limits, Photo, decode, encode, format_for
from orchestrator.restoration.locations import (
    MAX_NAME_BYTES,
    InputPhoto,
    ObjectLocation,
    find_photographs,
    result_locations,
)
from orchestrator.restoration.restorer import Progress, Restorer
from orchestrator.restoration.result_index import ResultIndex, ResultRecord
from shards.errors import CorruptObjectError, StoreError, UnreachableStoreError

MAX_WAITING_PIXELS = 2**24
"""Pixels of photographs that wait for others of their size."""

LIST_THRESHOLD = 100
"""Check more objects than this by listing their bucket, fewer one by one."""

Status = Literal["restored", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class RestoreTask:
    """One photograph to restore."""

    source: ObjectLocation
    target: ObjectLocation
    records: tuple[ResultRecord, ...] = ()
    """Records of the target in the index."""
    exists: bool = False
    """Whether the target existed when the tasks were planned."""


@dataclass(frozen=True, slots=True)
class RestoreOutcome:
    """The end of one task."""

    task: RestoreTask
    status: Status
    reason: str = ""
    """Why it failed: a sentence with the name of the file."""
    seconds: float = 0.0


def summary(counts: Counter[Status]) -> str:
    """Return the number of photographs by status, in words."""
    skipped = f", {counts['skipped']:,} already restored" if counts["skipped"] else ""
    failed = f", {counts['failed']:,} failed" if counts["failed"] else ""
    return f"{counts['restored']:,} restored{skipped}{failed}"


def plan(
    inputs: Sequence[str], out: str | None, *, dry_run: bool = False
) -> tuple[list[RestoreTask], list[str]]:
    """Return one task per photograph, and the problems of inputs without photographs.

    Prepares the stores of the results unless `dry_run`. Raises PhotoError if a result would replace a photograph,
    StoreError if a store cannot be written.
    """
    photos, problems = find_photographs(inputs, out)
    targets = result_locations(photos, out)
    possible = [not target.has_long_name for target in targets]
    problems += [
        f"{photo.location}: the name of its result is longer than {MAX_NAME_BYTES} bytes. Name a folder with -o."
        for photo in compress(photos, map(not_, possible))
    ]
    photos, targets = list(compress(photos, possible)), list(compress(targets, possible))
    tasks: dict[ObjectLocation, RestoreTask] = {}
    by_store: dict[str, dict[ObjectLocation, InputPhoto]] = {}
    for target, photo in zip(targets, photos, strict=True):
        by_store.setdefault(target.folder, {})[target] = photo
    for folder, members in by_store.items():
        index = ResultIndex(ObjectLocation(folder, "").store)
        if not dry_run:
            index.prepare()
        records, existing = index.read(), _existing_keys(list(members))
        for target, photo in members.items():
            tasks[target] = RestoreTask(
                photo.location, target, records.get(target.key, ()), target.key in existing
            )
    return [tasks[target] for target in targets], problems


def merge_indexes(tasks: Sequence[RestoreTask]) -> None:
    """Merge the files of each index of results into one."""
    for folder in dict.fromkeys(task.target.folder for task in tasks):
        ResultIndex(ObjectLocation(folder, "").store).merge()


class RestoreWorker:
    """Restorer of tasks; it loads its model when the first photograph needs it.

    settings: digest of model and settings.
    batch_size: number of photographs of one size that go through the model together.
    """

    def __init__(
        self,
        open_model: Callable[[], Restorer],
        settings: str,
        *,
        overwrite: bool = False,
        batch_size: int = 1,
        limits: Limits = LIMITS,
    ) -> None:
        self._open_model, self._settings = open_model, settings
        self._overwrite, self._batch_size, self._limits = overwrite, batch_size, limits
        self._restorer: Restorer | None = None

    def run(self, tasks: Sequence[RestoreTask], progress: Progress | None = None) -> list[RestoreOutcome]:
        """Restore the photographs of tasks whose targets are in one store; write records, then results.

        A photograph that cannot be restored is an outcome. A store that does not answer or cannot be written is an
        error; nothing is lost, and a new plan continues from there.
        """
        outcomes: list[RestoreOutcome] = []
        restored: list[tuple[RestoreTask, ResultRecord, bytes, float]] = []
        for batch in self._batches(tasks, outcomes):
            began = time.monotonic()
            try:
                self._restorer = self._restorer or self._open_model()
                results = self._restorer.pixels_of_several([photo for _, photo, _ in batch], progress)
            except PhotoError as error:
                outcomes += [RestoreOutcome(task, "failed", str(error)) for task, _, _ in batch]
                continue
            seconds = (time.monotonic() - began) / len(batch)
            for (task, photo, digest), pixels in zip(batch, results, strict=True):
                try:
                    data = encode(pixels, photo, format_for(task.target.key, photo))
                except PhotoError as error:
                    outcomes.append(RestoreOutcome(task, "failed", str(error)))
                    continue
                record = ResultRecord(task.target.key, digest, self._settings, _digest(data))
                restored.append((task, record, data, seconds))
        if restored:
            ResultIndex(restored[0][0].target.store).add([record for _, record, _, _ in restored])
        for task, record, data, seconds in restored:
            outcomes.append(self._write(task, record, data, seconds))
        return outcomes

    def _batches(
        self, tasks: Sequence[RestoreTask], outcomes: list[RestoreOutcome]
    ) -> Iterator[list[tuple[RestoreTask, Photo, str]]]:
        """Yield batches of photographs with their digests; append what needs no restoring to `outcomes`."""
        waiting: dict[tuple[int, int], list[tuple[RestoreTask, Photo, str]]] = {}
        for task in tasks:
            try:
                data = task.source.store.read(task.source.key)
                digest = _digest(data)
                if task.exists and self._is_done(task, digest):
                    outcomes.append(RestoreOutcome(task, "skipped"))
                    continue
                photo = decode(data, str(task.source), self._limits)
                format_for(task.target.key, photo)
            except UnreachableStoreError:
                raise
            except (PhotoError, StoreError, CorruptObjectError) as error:
                outcomes.append(RestoreOutcome(task, "failed", str(error)))
                continue
            waiting.setdefault(photo.size, []).append((task, photo, digest))
            pending = sum(height * width * len(batch) for (height, width), batch in waiting.items())
            for size in list(waiting):
                if len(waiting[size]) >= self._batch_size or pending > MAX_WAITING_PIXELS:
                    yield waiting.pop(size)
        yield from waiting.values()

    def _is_done(self, task: RestoreTask, photograph: str) -> bool:
        """Return whether the target is the result of this photograph with these settings.

        Raises PhotoError if it is something else that must not be replaced.
        """
        existing = _digest(task.target.store.read(task.target.key))
        expected = ResultRecord(task.target.key, photograph, self._settings, existing)
        if expected in task.records:
            return True
        if self._overwrite:
            return False
        if existing in [record.result for record in task.records]:
            raise PhotoError(
                f"{task.target}: is the result of another model, other settings or another photograph. "
                "Choose another -o, or --overwrite."
            )
        raise PhotoError(
            f"{task.target}: exists and is not a known result. Choose another -o, or --overwrite."
        )

    def _write(self, task: RestoreTask, record: ResultRecord, data: bytes, seconds: float) -> RestoreOutcome:
        """Write a result, unless another process has written the target since the plan."""
        store, key = task.target.store, task.target.key
        if task.exists:
            store.delete(key)
        elif store.exists(key) and (existing := _digest(store.read(key))) != record.result:
            # A restarted worker may find the result of the process before it.
            ours = ResultRecord(key, record.photograph, record.settings, existing)
            if ours not in ResultIndex(store).read().get(key, ()):
                return RestoreOutcome(task, "failed", f"{task.target}: another process wrote it meanwhile.")
            return RestoreOutcome(task, "skipped")
        store.write(key, data)
        return RestoreOutcome(task, "restored", seconds=seconds)


def _existing_keys(locations: Sequence[ObjectLocation]) -> set[str]:
    """Return the keys that exist of these, all in one store."""
    folder, store = locations[0].folder, locations[0].store
    if "://" in folder and len(locations) > LIST_THRESHOLD:
        return set(store.list())
    return {location.key for location in locations if store.exists(location.key)}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
