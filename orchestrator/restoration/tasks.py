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
from orchestrator.imaging.photos import LIMITS, Limits, Photo, decode, encode, format_for, losses
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

MAX_WAITING_RESULTS, MAX_WAITING_SECONDS, MAX_WAITING_BYTES = 64, 10.0, 2**28
"""How many results, and for how long, wait to be recorded by one object. A kill loses at most these."""

MAX_NAMED_PICTURES = 10


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
    note: str = ""
    """What the result does not keep of the photograph's file."""


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What there is to do."""

    tasks: list[RestoreTask]
    """One per photograph."""
    problems: list[str]
    """Why an input has no photograph, or a photograph has no task."""
    others: list[ObjectLocation]
    """Pictures whose formats are not read."""

    def named_others(self) -> str:
        """Return the pictures that are not read as one sentence, or "" if there is none."""
        if not self.others:
            return ""
        names = ", ".join(map(str, self.others[:MAX_NAMED_PICTURES]))
        more = len(self.others) - MAX_NAMED_PICTURES
        return f"not read, since of another format: {names}{f' and {more:,} more' if more > 0 else ''}."


def summary(counts: Counter[Status]) -> str:
    """Return the number of photographs by status, in words."""
    skipped = f", {counts['skipped']:,} already restored" if counts["skipped"] else ""
    failed = f", {counts['failed']:,} failed" if counts["failed"] else ""
    return f"{counts['restored']:,} restored{skipped}{failed}"


@dataclass(frozen=True, slots=True)
class _Result:
    """A restored photograph that is not written yet."""

    task: RestoreTask
    record: ResultRecord
    data: bytes
    seconds: float
    note: str


def plan(inputs: Sequence[str], out: str | None, *, dry_run: bool = False) -> RestorePlan:
    """Return what there is to do. A problem of one input or photograph does not hinder the others.

    Prepares the stores of the results unless `dry_run`. Raises PhotoError if a result would replace a photograph,
    StoreError if a store cannot be written.
    """
    found = find_photographs(inputs, out)
    photos, problems = found.photos, found.problems
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
        records, existing = index.read(), _existing_keys(list(members), problems)
        for target, photo in members.items():
            if target.key in existing:
                known = records.get(target.key, ())
                tasks[target] = RestoreTask(photo.location, target, known, existing[target.key])
    return RestorePlan([tasks[target] for target in targets if target in tasks], problems, found.others)


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
        self._waiting: list[_Result] = []
        self._written = -MAX_WAITING_SECONDS

    def run(self, tasks: Sequence[RestoreTask], progress: Progress | None = None) -> list[RestoreOutcome]:
        """Restore the photographs of tasks; return the outcomes so far, also those of earlier calls.

        Results wait for others, so that one object records many. Call `finish` at the end. A photograph that cannot be
        restored is an outcome. A store that does not answer or whose records cannot be written is an error; nothing
        is lost, and a new plan continues from there.
        """
        outcomes: list[RestoreOutcome] = []
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
                    kind = format_for(task.target.key, photo)
                    data = encode(pixels, photo, kind)
                except PhotoError as error:
                    outcomes.append(RestoreOutcome(task, "failed", str(error)))
                    continue
                record = ResultRecord(task.target.key, digest, self._settings, _digest(data))
                self._waiting.append(_Result(task, record, data, seconds, losses(photo, kind)))
        size = sum(len(result.data) for result in self._waiting)
        waited = time.monotonic() - self._written
        if (
            len(self._waiting) >= MAX_WAITING_RESULTS
            or size >= MAX_WAITING_BYTES
            or waited >= MAX_WAITING_SECONDS
        ):
            outcomes += self.finish()
        return outcomes

    def finish(self) -> list[RestoreOutcome]:
        """Write the records of the results that wait, then the results; return their outcomes."""
        waiting, self._waiting = self._waiting, []
        by_store: dict[str, list[_Result]] = {}
        for result in waiting:
            by_store.setdefault(result.task.target.folder, []).append(result)
        for members in by_store.values():
            ResultIndex(members[0].task.target.store).add([result.record for result in members])
        self._written = time.monotonic()
        return [self._write(result) for result in waiting]

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

    def _write(self, result: _Result) -> RestoreOutcome:
        try:
            return self._write_unless_other(result)
        except UnreachableStoreError:
            raise
        except StoreError as error:  # its store took the record, so the problem is this result's own
            return RestoreOutcome(result.task, "failed", str(error))

    def _write_unless_other(self, result: _Result) -> RestoreOutcome:
        """Write a result, unless another process has written the target since the plan."""
        task, record = result.task, result.record
        store, key = task.target.store, task.target.key
        if task.exists:
            store.delete(key)
        elif store.exists(key) and (existing := _digest(store.read(key))) != record.result:
            # A restarted worker may find the result of the process before it.
            ours = ResultRecord(key, record.photograph, record.settings, existing)
            if ours not in ResultIndex(store).read().get(key, ()):
                return RestoreOutcome(task, "failed", f"{task.target}: another process wrote it meanwhile.")
            return RestoreOutcome(task, "skipped")
        store.write(key, result.data)
        return RestoreOutcome(task, "restored", seconds=result.seconds, note=result.note)


def _existing_keys(locations: Sequence[ObjectLocation], problems: list[str]) -> dict[str, bool]:
    """Return whether each of these keys, all in one store, exists; a key that cannot be asked for is a problem."""
    folder, store = locations[0].folder, locations[0].store
    if "://" in folder and len(locations) > LIST_THRESHOLD:
        existing = set(store.list())
        return {location.key: location.key in existing for location in locations}
    found = {}
    for location in locations:
        try:
            found[location.key] = store.exists(location.key)
        except UnreachableStoreError:
            raise
        except StoreError as error:
            problems.append(str(error))
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
