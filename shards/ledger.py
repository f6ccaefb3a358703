"""Which sample stood at which position of a run, written down, so that anybody can check "each exactly once".

    ledger/<attempt>/<first step>-worker-<rank>-of-<world>.jsonl

A piece is written once, before the checkpoint that counts on it. One line is one batch of one worker:
`{"step", "samples": [[position, degradation, id], …], "skipped": [[position, degradation, id, why], …]}`. Every start
of a run is a new attempt. What an attempt repeats after a resume must be what the one before it did.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from shards.errors import LedgerError
from shards.store import Store
from shards.stream import Batch

FOLDER = "ledger"
_KEY = re.compile(rf"{FOLDER}/(\d{{4,}})/\d+-worker-(\d+)-of-\d+\.jsonl")

Sample = tuple[str, str]
"""Degradation and id."""


class SampleLedger:
    """What one worker of one attempt consumed; `flush` writes what has come since the last time as one object."""

    def __init__(self, store: Store, attempt: int, rank: int = 0, world_size: int = 1) -> None:
        self._store, self._folder = store, f"{FOLDER}/{attempt:04d}"
        self._worker = f"worker-{rank}-of-{world_size}"
        self._first: int | None = None
        self._lines: list[str] = []

    def record(self, step: int, batch: Batch) -> None:
        """Note a batch that the step with this index has consumed."""
        if self._first is None:
            self._first = step
        samples = list(zip(batch.positions.tolist(), batch.degradations, batch.ids, strict=True))
        line = {"step": step, "samples": samples, "skipped": batch.skipped}
        self._lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")

    def flush(self) -> None:
        """Write down what was noted."""
        if self._lines:
            key = f"{self._folder}/{self._first:09d}-{self._worker}.jsonl"
            self._store.write(key, "".join(self._lines).encode())
        self._first, self._lines = None, []


@dataclass(frozen=True)
class LedgerReport:
    """What a ledger shows of a run."""

    samples: dict[int, Sample]
    """Degradation and id at every position."""
    attempts: int
    repeated: int
    """Positions that two attempts wrote down, with the same samples: they were consumed again after a resume.

    What an attempt consumed after its last checkpoint it did not come to write down."""
    skipped: dict[int, tuple[str, str, str]]
    """Position, and the degradation, id and damage of the sample that another one stood in for."""

    def render(self) -> str:
        """The findings in words."""
        last = max(self.samples, default=-1)
        lines = [
            f"positions 0 to {last:,}: each exactly once, over {self.attempts} attempt"
            f"{'' if self.attempts == 1 else 's'}",
            f"written down by two attempts, with the same samples: {self.repeated:,}",
            f"left out as damaged: {len(self.skipped):,}",
        ]
        told = [
            f"  {position:>9}  {d}  {id_}: {why}" for position, (d, id_, why) in sorted(self.skipped.items())
        ]
        return "\n".join([*lines, *told[:20], *(["  …"] if len(told) > 20 else [])])


def next_attempt(store: Store) -> int:
    """Number of the attempt that begins now, from 0."""
    return max((attempt for attempt, _ in _pieces(store)), default=-1) + 1


def read_ledger(store: Store, positions: int | None = None) -> LedgerReport:
    """All that the ledger in a run's folder says; LedgerError unless each position is there exactly once.

    `positions` is how many the run has consumed. Without it the run may still be under way, and what is behind
    the last one that all workers have written is left aside.
    """
    found: dict[int, tuple[Sample, int]] = {}
    shared: dict[
        tuple[Sample, int], tuple[Sample, int]
    ] = {}  # positions that show the same sample hold one object
    skipped: dict[int, tuple[str, str, str]] = {}
    attempts: set[int] = set()
    repeated = 0
    for attempt, key in _pieces(store):
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
        raise LedgerError(f"{store.uri} holds no ledger. A run writes one under `data: {{ledger: true}}`.")
    whole = next((n for n in range(len(found) + 1) if n not in found), 0)
    if positions is not None and (whole < positions or len(found) > positions):
        what = f"{whole} is missing" if whole < positions else f"{max(found)} should not be there"
        raise LedgerError(f"{store.uri}: the run consumed {positions} positions, and {what} in its ledger.")
    behind = [n for n in found if n > whole and found[n][1] < max(attempts)]
    if behind:
        raise LedgerError(
            f"{store.uri}: position {whole} is missing, and later ones are there, such as {min(behind)}."
        )
    return LedgerReport(
        {n: found[n][0] for n in range(whole)},
        len(attempts),
        repeated,
        {n: lost for n, lost in skipped.items() if n < whole},
    )


def _pieces(store: Store) -> list[tuple[int, str]]:
    """Attempt and key of every piece, attempt by attempt."""
    matches = [_KEY.fullmatch(key) for key in store.list(f"{FOLDER}/")]
    return sorted((int(match[1]), match[0]) for match in matches if match)


def _lines(store: Store, key: str, skipped: dict[int, tuple[str, str, str]]) -> Iterator[tuple[int, Sample]]:
    for number, text in enumerate(store.read(key).decode().splitlines(), 1):
        try:
            line = json.loads(text)
            samples = [(int(position), (str(d), str(id_))) for position, d, id_ in line["samples"]]
            skipped.update({int(position): (d, id_, why) for position, d, id_, why in line["skipped"]})
        except (ValueError, TypeError, KeyError) as error:
            raise LedgerError(
                f"{store.uri}/{key}, line {number}: not a line of a ledger ({error})."
            ) from error
        yield from samples
