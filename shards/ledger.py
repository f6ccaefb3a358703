"""Ledger of the samples that a run consumed, to check that every position was consumed exactly once.

    ledger/<attempt>/<first step>-worker-<rank>-of-<world>.jsonl

A file is written once, before the checkpoint that includes its steps. One line is one batch of one worker:
`{"step", "samples": [[position, degradation, id], …], "skipped": [[position, degradation, id, why], …]}`. Every start
of a run is a new attempt. Positions that are repeated after a resume must have the same samples as before.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice
from typing import NamedTuple

from shards.errors import LedgerError
from shards.json_text import parse_json
from shards.store import Store
from shards.stream import Batch

FOLDER = "ledger"
_KEY = re.compile(rf"{FOLDER}/(\d{{4,}})/(\d+)-worker-\d+-of-\d+\.jsonl")
_EXAMPLES = 20

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

    positions: int
    """Number of positions, counted from 0, that are there; each was consumed exactly once."""
    attempts: int
    repeated: int
    """Number of positions in the ledgers of two attempts, with the same samples: repeated after a resume.

    Positions that an attempt consumed after its last checkpoint may be missing from its ledger."""
    replaced: int
    """Number of damaged samples that were replaced."""
    skipped: dict[int, tuple[str, str, str]]
    """Degradation, id and error of the first of them, by position."""

    def render(self) -> str:
        """Return the report as text."""
        lines = [
            f"positions 0 to {self.positions - 1:,}: each exactly once, over {self.attempts} attempt"
            f"{'' if self.attempts == 1 else 's'}",
            f"repeated after a resume, with the same samples: {self.repeated:,}",
            f"damaged samples that were replaced: {self.replaced:,}",
        ]
        lines += [f"  {position:>9}  {d}  {id_}: {why}" for position, (d, id_, why) in self.skipped.items()]
        return "\n".join([*lines, *(["  …"] if self.replaced > len(self.skipped) else [])])


class _File(NamedTuple):
    first_step: int
    attempt: int
    key: str


class _Line(NamedTuple):
    """One batch of one worker; lines are ordered by step, then by attempt."""

    step: int
    attempt: int
    key: str
    samples: list[tuple[int, Sample]]
    skipped: dict[int, tuple[str, str, str]]


class LedgerReader:
    """Iterator over the samples of a run's ledger, position by position, which it checks on the way.

    It reads the files of all workers and attempts side by side, step by step, so its memory does not grow with the run.
    `positions` is the number that the run has consumed. Without it the run may be in progress: positions after the
    first gap are ignored if the last attempt wrote them. Raises LedgerError unless every position is there exactly
    once.
    """

    def __init__(self, store: Store, positions: int | None = None) -> None:
        self._store, self._expected = store, positions
        self._files = _files(store)
        self._positions = self._repeated = self._replaced = 0
        self._skipped: dict[int, tuple[str, str, str]] = {}
        self._samples = self._read()

    def __iter__(self) -> Iterator[Sample]:
        return self._samples

    def report(self) -> LedgerReport:
        """Read the rest and return the summary."""
        deque(self._samples, maxlen=0)
        attempts = len({file.attempt for file in self._files})
        return LedgerReport(self._positions, attempts, self._repeated, self._replaced, self._skipped)

    def _read(self) -> Iterator[Sample]:
        last_attempt = max((file.attempt for file in self._files), default=0)
        count, end = 0, 0  # of the positions so far
        late: int | None = None  # first position after a gap that the last attempt did not write
        for lines in _steps(self._store, self._files):
            found: dict[int, tuple[Sample, int]] = {}  # sample and attempt
            skipped: dict[int, tuple[str, str, str]] = {}
            for line in lines:
                self._add(line, found, end)
                skipped |= line.skipped
            for position, (sample, attempt) in sorted(found.items()):
                if position == self._positions:
                    self._positions += 1
                    yield sample
                elif late is None and attempt < last_attempt:
                    late = position
            count, end = count + len(found), max(end - 1, *found) + 1 if found else end
            self._note_skipped(skipped)
        self._check_end(count, end, late)

    def _add(self, line: _Line, found: dict[int, tuple[Sample, int]], end: int) -> None:
        """Add a line to what other lines of its step hold; earlier steps hold positions below `end`."""
        for position, sample in line.samples:
            before, earlier = found.get(position, (sample, -1))
            if before != sample:
                raise LedgerError(
                    f"{self._store.uri}/{line.key}: position {position} is {sample}, was {before} before."
                )
            if earlier == line.attempt or position < end:
                raise LedgerError(
                    f"{self._store.uri}/{line.key}: position {position} was consumed twice, or by a later step than "
                    f"those after it: now by step {line.step}."
                )
            self._repeated += earlier >= 0
            found[position] = sample, line.attempt

    def _note_skipped(self, skipped: dict[int, tuple[str, str, str]]) -> None:
        for position in sorted(skipped):
            if position < self._positions:
                self._replaced += 1
                if len(self._skipped) < _EXAMPLES:
                    self._skipped[position] = skipped[position]

    def _check_end(self, count: int, end: int, late: int | None) -> None:
        """Raise LedgerError when nothing was found, or when a gap or the number of positions is an error."""
        uri, complete, expected = self._store.uri, self._positions, self._expected
        if count == 0:
            raise LedgerError(f"{uri} has no ledger. A run writes one under `data: {{ledger: true}}`.")
        if expected is not None and (complete < expected or count > expected):
            what = f"{complete} is missing" if complete < expected else f"{end - 1} should not be there"
            raise LedgerError(f"{uri}: the run consumed {expected} positions, and {what} in its ledger.")
        if late is not None:
            raise LedgerError(
                f"{uri}: position {complete} is missing, and later ones are there, such as {late}."
            )


def read_ledger(store: Store, positions: int | None = None) -> LedgerReport:
    """Read the ledger in a run's folder as `LedgerReader` does. Raises LedgerError."""
    return LedgerReader(store, positions).report()


def next_attempt(store: Store) -> int:
    """Return the number of the next attempt, from 0."""
    return max((file.attempt for file in _files(store)), default=-1) + 1


def _files(store: Store) -> list[_File]:
    """Return every file, in the order of its first step."""
    matches = [_KEY.fullmatch(key) for key in store.list(f"{FOLDER}/")]
    return sorted(_File(int(match[2]), int(match[1]), match[0]) for match in matches if match)


def _steps(store: Store, files: list[_File]) -> Iterator[list[_Line]]:
    """Yield the lines of each step. A file is read when its first step comes, and forgotten after its last."""
    waiting = deque(files)
    heap: list[tuple[_Line, Iterator[_Line]]] = []  # next line of each open file

    def advance(lines: Iterator[_Line]) -> None:
        following = next(lines, None)
        if following is not None:
            heappush(heap, (following, lines))

    while waiting or heap:
        steps = [file.first_step for file in islice(waiting, 1)] + [line.step for line, _ in heap[:1]]
        step = min(steps)
        while waiting and waiting[0].first_step == step:
            advance(_lines(store, waiting.popleft()))
        found = []
        while heap and heap[0][0].step == step:
            line, rest = heappop(heap)
            found.append(line)
            advance(rest)
        if found:
            yield found


def _lines(store: Store, file: _File) -> Iterator[_Line]:
    last = file.first_step
    for number, text in enumerate(store.read(file.key).splitlines(), 1):
        try:
            line = parse_json(text)
            samples = [(_position(position), _sample(*names)) for position, *names in line["samples"]]
            skipped = {_position(position): _lost(*names) for position, *names in line["skipped"]}
            step = _position(line["step"])
            if step < last:
                raise ValueError(f"step {step} comes after step {last}")
        except (ValueError, TypeError, LookupError) as error:
            raise LedgerError(
                f"{store.uri}/{file.key}, line {number}: not a line of a ledger ({error or type(error).__name__})."
            ) from error
        last = step
        yield _Line(step, file.attempt, file.key, samples, skipped)


def _position(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:40]!r} is no position")
    return value


def _sample(degradation: object, id_: object) -> Sample:
    return _text(degradation), _text(id_)


def _lost(degradation: object, id_: object, why: object) -> tuple[str, str, str]:
    return _text(degradation), _text(id_), _text(why)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a name is no text")
    return value
