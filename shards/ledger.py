"""Ledger of the samples that a run consumed, to check that every position was consumed exactly once.

    ledger/<attempt>/<first step>-worker-<rank>-of-<world>.jsonl

A file is written once, before the checkpoint that includes its steps. One line is one batch of one worker:
`{"step", "samples": [[position, degradation, id], …], "skipped": [[position, degradation, id, why], …]}`. Every start
of a run is a new attempt. Positions that are repeated after a resume must have the same samples as before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from shards.errors import LedgerError
from shards.json_text import parse_json
from shards.store import Store
from shards.stream import Batch

FOLDER = "ledger"
_KEY = re.compile(rf"{FOLDER}/(\d{{4,}})/\d+-worker-(\d+)-of-\d+\.jsonl")

Sample = tuple[str, str]
"""Degradation and id."""


class SampleLedger:
    """Writer of one worker's ledger in one attempt; each `flush` writes one object."""

    def __init__(self, store: Store, attempt: int, rank: int = 0, world_size: int = 1) -> None:
        self._store, self._folder = store, f"{FOLDER}/{attempt:04d}"
        self._worker = f"worker-{rank}-of-{world_size}"
        self._first: int | None = None
        self._lines: list[str] = []

    def record(self, step: int, batch: Batch) -> None:
        """Record a batch that a step has consumed."""
        if self._first is None:
            self._first = step
        samples = list(zip(batch.positions.tolist(), batch.degradations, batch.ids, strict=True))
        line = {"step": step, "samples": samples, "skipped": batch.skipped}
        self._lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")

    def flush(self) -> None:
        """Write the batches recorded since the last flush."""
        if self._lines:
            key = f"{self._folder}/{self._first:09d}-{self._worker}.jsonl"
            self._store.write(key, "".join(self._lines).encode())
        self._first, self._lines = None, []


@dataclass(frozen=True)
class LedgerReport:
    """Summary of a run's ledger."""

    samples: dict[int, Sample]
    """Degradation and id of the sample at every position."""
    attempts: int
    repeated: int
    """Number of positions in the ledgers of two attempts, with the same samples: repeated after a resume.

    Positions that an attempt consumed after its last checkpoint may be missing from its ledger."""
    skipped: dict[int, tuple[str, str, str]]
    """Degradation, id and error of each damaged sample that was replaced, by position."""

    def render(self) -> str:
        """Return the report as text."""
        last = max(self.samples, default=-1)
        lines = [
            f"positions 0 to {last:,}: each exactly once, over {self.attempts} attempt"
            f"{'' if self.attempts == 1 else 's'}",
            f"repeated after a resume, with the same samples: {self.repeated:,}",
            f"damaged samples that were replaced: {len(self.skipped):,}",
        ]
        replaced = [
            f"  {position:>9}  {d}  {id_}: {why}" for position, (d, id_, why) in sorted(self.skipped.items())
        ]
        return "\n".join([*lines, *replaced[:20], *(["  …"] if len(replaced) > 20 else [])])


def next_attempt(store: Store) -> int:
    """Return the number of the next attempt, from 0."""
    return max((attempt for attempt, _ in _files(store)), default=-1) + 1


def read_ledger(store: Store, positions: int | None = None) -> LedgerReport:
    """Read the ledger in a run's folder. Raises LedgerError unless every position is there exactly once.

    `positions` is the number that the run has consumed. Without it the run may be in progress: positions after the
    first gap are ignored if the last attempt wrote them.
    """
    found: dict[int, tuple[Sample, int]] = {}  # sample and attempt
    # One object for all positions with equal content.
    shared: dict[tuple[Sample, int], tuple[Sample, int]] = {}
    skipped: dict[int, tuple[str, str, str]] = {}
    attempts: set[int] = set()
    repeated = 0
    for attempt, key in _files(store):
        attempts.add(attempt)
        for position, sample in _lines(store, key, skipped):
            before, earlier = found.get(position, (sample, -1))
            if before != sample:
                raise LedgerError(f"{store.uri}/{key}: position {position} is {sample}, was {before} before.")
            if earlier == attempt:
                raise LedgerError(f"{store.uri}/{key}: position {position} was consumed twice.")
            repeated += earlier >= 0
            found[position] = shared.setdefault((sample, attempt), (sample, attempt))
    if not found:
        raise LedgerError(f"{store.uri} has no ledger. A run writes one under `data: {{ledger: true}}`.")
    complete = _complete_positions(store, found, max(attempts), positions)
    return LedgerReport(
        {position: found[position][0] for position in range(complete)},
        len(attempts),
        repeated,
        {position: lost for position, lost in skipped.items() if position < complete},
    )


def _complete_positions(
    store: Store, found: dict[int, tuple[Sample, int]], last_attempt: int, positions: int | None
) -> int:
    """Return the number of positions before the first gap. Raises LedgerError when the gap is an error."""
    complete = next((n for n in range(len(found) + 1) if n not in found), 0)
    if positions is not None and (complete < positions or len(found) > positions):
        what = f"{complete} is missing" if complete < positions else f"{max(found)} should not be there"
        raise LedgerError(f"{store.uri}: the run consumed {positions} positions, and {what} in its ledger.")
    later = [n for n, (_, attempt) in found.items() if n > complete and attempt < last_attempt]
    if later:
        raise LedgerError(
            f"{store.uri}: position {complete} is missing, and later ones are there, such as {min(later)}."
        )
    return complete


def _files(store: Store) -> list[tuple[int, str]]:
    """Return attempt and key of every file, attempt by attempt."""
    matches = [_KEY.fullmatch(key) for key in store.list(f"{FOLDER}/")]
    return sorted((int(match[1]), match[0]) for match in matches if match)


def _lines(store: Store, key: str, skipped: dict[int, tuple[str, str, str]]) -> Iterator[tuple[int, Sample]]:
    for number, text in enumerate(store.read(key).splitlines(), 1):
        try:
            line = parse_json(text)
            samples = [(_position(position), _texts(*sample)) for position, *sample in line["samples"]]
            lost = {_position(position): _texts(*sample) for position, *sample in line["skipped"]}
            skipped.update({position: (d, id_, why) for position, (d, id_, why) in lost.items()})
            pairs = [(position, (d, id_)) for position, (d, id_) in samples]
        except (ValueError, TypeError, LookupError) as error:
            raise LedgerError(
                f"{store.uri}/{key}, line {number}: not a line of a ledger ({error or type(error).__name__})."
            ) from error
        yield from pairs


def _position(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:40]!r} is no position")
    return value


def _texts(*values: object) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values):
        raise ValueError("a name is no text")
    return tuple(map(str, values))
