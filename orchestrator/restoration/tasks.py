"""Restore many photographs, each once: what the command does here and the batch job does on a cluster.

plan      inputs, OUT and the ledger           → tasks: which photograph, where to, what is known of its result
Workshop  a few tasks at a time, with a model  → outcomes: restored, done already, or failed and why
finish    the ledger's many files              → one
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import PhotoError
from orchestrator.imaging.photos import LIMITS, Limits, Photo, decode, encode, format_for
from orchestrator.restoration.locations import Found, Place, find_photographs, folders, targets
from orchestrator.restoration.restorer import Progress, Restorer
from orchestrator.restoration.result_index import Ledger, Record
from shards.errors import StoreError, UnreachableStoreError

PENDING_PIXELS = 2**24
"""Photographs that wait for others of their size hold at most so many pixels."""

ASKED_ONE_BY_ONE = 100
"""A bucket is listed where more objects than that are looked for."""


@dataclass(frozen=True, slots=True)
class Task:
    """One photograph to be restored."""

    source: Place
    target: Place
    records: tuple[Record, ...] = ()
    """What the ledger says of the target."""
    exists: bool = False
    """Whether there was something at the target when the work was planned."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one photograph."""

    task: Task
    status: Literal["restored", "done", "failed"]
    reason: str = ""
    """Why it failed, as a sentence with the name of the file."""
    seconds: float = 0.0


def plan(inputs: Sequence[str], out: str | None, *, look: bool = False) -> tuple[list[Task], list[str]]:
    """Return a task per photograph, and what is wrong with inputs that stand for none.

    Prepares the places of the results, unless this is but a `look`. Raises PhotoError where results would replace
    photographs, StoreError where they cannot be written.
    """
    found, complaints = find_photographs(inputs, out)
    places = targets(found, out)
    tasks: dict[Place, Task] = {}
    by_folder: dict[str, dict[Place, Found]] = {}
    for place, photograph in zip(places, found, strict=True):
        by_folder.setdefault(place.folder, {})[place] = photograph
    for folder, here in by_folder.items():
        ledger = Ledger(Place(folder, "").store)
        if not look:
            ledger.prepare()
        records, there = ledger.read(), _existing(list(here))
        for place, photograph in here.items():
            tasks[place] = Task(photograph.place, place, records.get(place.key, ()), place.key in there)
    return [tasks[place] for place in places], complaints


def finish(tasks: Sequence[Task]) -> None:
    """Make one file of the ledger's many, wherever results were written."""
    for folder in folders(task.target for task in tasks):
        Ledger(Place(folder, "").store).merge()


class Workshop:
    """Restores tasks with a model that is opened when the first photograph needs it."""

    def __init__(
        self,
        open_model: Callable[[], Restorer],
        settings: str,
        *,
        overwrite: bool = False,
        at_once: int = 1,
        limits: Limits = LIMITS,
    ) -> None:
        """`settings` is the digest of model and settings; `at_once` photographs of one size go through together."""
        self._open_model, self._settings = open_model, settings
        self._overwrite, self._at_once, self._limits = overwrite, at_once, limits
        self._restorer: Restorer | None = None

    def work(self, tasks: Sequence[Task], progress: Progress | None = None) -> list[Outcome]:
        """Restore photographs whose results lie in one store, and write records and results.

        A photograph that cannot be restored is an outcome. A store that does not answer or cannot be written is an
        error, which loses nothing: whoever calls again with a new plan goes on from there.
        """
        outcomes: list[Outcome] = []
        made: list[tuple[Task, Record, bytes, float]] = []
        for batch in self._batches(tasks, outcomes):
            began = time.monotonic()
            try:
                restored = self._restore([photo for _, photo, _ in batch], progress)
            except PhotoError as error:
                outcomes += [Outcome(task, "failed", str(error)) for task, _, _ in batch]
                continue
            seconds = (time.monotonic() - began) / len(batch)
            for (task, photo, digest), pixels in zip(batch, restored, strict=True):
                try:
                    data = encode(pixels, photo, format_for(task.target.key, photo))
                except PhotoError as error:
                    outcomes.append(Outcome(task, "failed", str(error)))
                    continue
                record = Record(task.target.key, digest, self._settings, _digest(data))
                made.append((task, record, data, seconds))
        if made:
            Ledger(made[0][0].target.store).add([record for _, record, _, _ in made])
        for task, record, data, seconds in made:
            outcomes.append(self._deliver(task, record, data, seconds))
        return outcomes

    def _batches(
        self, tasks: Sequence[Task], outcomes: list[Outcome]
    ) -> Iterator[list[tuple[Task, Photo, str]]]:
        """Yield photographs that are to be restored together; what needs no restoring goes to `outcomes`."""
        waiting: dict[tuple[int, int], list[tuple[Task, Photo, str]]] = {}
        for task in tasks:
            try:
                data = task.source.store.read(task.source.key)
                digest = _digest(data)
                if task.exists and self._is_done(task, digest):
                    outcomes.append(Outcome(task, "done"))
                    continue
                photo = decode(data, str(task.source), self._limits)
                format_for(task.target.key, photo)
            except UnreachableStoreError:
                raise
            except (PhotoError, StoreError) as error:
                outcomes.append(Outcome(task, "failed", str(error)))
                continue
            waiting.setdefault(photo.size, []).append((task, photo, digest))
            pending = sum(height * width * len(batch) for (height, width), batch in waiting.items())
            for size in list(waiting):
                if len(waiting[size]) >= self._at_once or pending > PENDING_PIXELS:
                    yield waiting.pop(size)
        yield from waiting.values()

    def _is_done(self, task: Task, photograph: str) -> bool:
        """Whether the target is the result of this photograph with these settings; PhotoError when it is not ours."""
        there = _digest(task.target.store.read(task.target.key))
        wanted = Record(task.target.key, photograph, self._settings, there)
        if wanted in task.records:
            return True
        if self._overwrite:
            return False
        if there in [record.result for record in task.records]:
            raise PhotoError(
                f"{task.target}: is the result of another model, other settings or another photograph. "
                "Choose another -o, or --overwrite."
            )
        raise PhotoError(
            f"{task.target}: exists, and is no result that is known here. Choose another -o, or --overwrite."
        )

    def _restore(self, photos: list[Photo], progress: Progress | None) -> list[NDArray[np.float32]]:
        if self._restorer is None:
            self._restorer = self._open_model()
        if len(photos) == 1:
            return [self._restorer.pixels(photos[0], progress)]
        return self._restorer.pixels_of_several(photos)

    def _deliver(self, task: Task, record: Record, data: bytes, seconds: float) -> Outcome:
        """Write a result, once."""
        store, key = task.target.store, task.target.key
        if task.exists:
            store.delete(key)
        elif store.exists(key) and _digest(store.read(key)) != record.result:
            # Written since the plan: by this very work before its process was killed and started again, or by others.
            made = Ledger(store).read().get(key, ())
            ours = Record(key, record.photograph, record.settings, _digest(store.read(key)))
            if ours not in made:
                return Outcome(task, "failed", f"{task.target}: something else was written there meanwhile.")
            return Outcome(task, "done")
        store.write(key, data)
        return Outcome(task, "restored", seconds=seconds)


def _existing(places: Sequence[Place]) -> set[str]:
    """Return which keys of one store are taken: asked one by one, or by a listing where that is quicker."""
    folder, store = places[0].folder, places[0].store
    if "://" in folder and len(places) > ASKED_ONE_BY_ONE:
        return set(store.list())
    return {place.key for place in places if store.exists(place.key)}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
