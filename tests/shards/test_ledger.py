"""The ledger: what was consumed is written down, and holes, doubles and contradictions are found."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import LedgerError, StoreError
from shards.ledger import LedgerReader, SampleLedger, next_attempt, read_ledger
from shards.store import LocalStore, Store
from shards.stream import Batch

STEP = 4
"""Images of a step."""


def batch(first: int, count: int, shift: int = 0, skipped: tuple = ()) -> Batch:
    """Some workers' share: sample `i<position>` at every position."""
    positions = torch.arange(first, first + count)
    none = torch.zeros(count)
    ids = [f"i{int(p) + shift}" for p in positions]
    return Batch(none, none, none, positions, ["rain"] * count, ids, (0, STEP), list(skipped))


def attempt(store: Store, first_step: int, last_step: int, world: int = 1, flush: bool = True, **of) -> None:
    number = next_attempt(store)
    ledgers = [SampleLedger(store, number, rank, world) for rank in range(world)]
    for step in range(first_step, last_step):
        for rank, ledger in enumerate(ledgers):
            ledger.record(step, batch(step * STEP + rank * STEP // world, STEP // world, **of))
    if flush:
        for ledger in ledgers:
            ledger.flush()


def test_every_position_is_found_once_across_kills_and_resizes(each_store: Store):
    attempt(each_store, 0, 5, world=2)
    attempt(each_store, 3, 8)  # two steps are repeated, as after a crash
    attempt(each_store, 8, 9, world=4)
    reader = LedgerReader(each_store, positions=9 * STEP)
    assert list(reader) == [("rain", f"i{n}") for n in range(9 * STEP)]
    found = reader.report()
    assert (found.positions, found.attempts, found.repeated) == (9 * STEP, 3, 2 * STEP)
    assert "0 to 35: each exactly once, over 3 attempts" in found.render()


def test_a_hole_is_found(each_store: Store):
    attempt(each_store, 0, 3)
    attempt(each_store, 4, 6)
    with pytest.raises(LedgerError, match="24 positions, and 12 is missing"):
        read_ledger(each_store, positions=24)


def test_a_hole_that_nobody_filled_later_is_found(tmp_path):
    store = LocalStore(tmp_path)
    attempt(store, 0, 2)
    attempt(store, 3, 4)
    attempt(store, 4, 5)
    with pytest.raises(LedgerError, match="position 8 is missing"):
        read_ledger(store)


def test_more_positions_than_the_run_consumed_are_found(tmp_path):
    store = LocalStore(tmp_path)
    attempt(store, 0, 3)
    with pytest.raises(LedgerError, match="consumed 8 positions, and 11 should not be there"):
        read_ledger(store, positions=8)


def test_steps_under_way_are_left_aside_until_the_run_has_ended(tmp_path):
    store = LocalStore(tmp_path)
    attempt(store, 0, 2, world=2)
    SampleLedger(store, 1, 1, 2).flush()
    late = SampleLedger(store, 1, 1, 2)  # worker 1 has written its part of step 2, worker 0 not yet
    late.record(2, batch(10, 2))
    late.flush()
    assert read_ledger(store).positions == 8


def test_what_is_consumed_twice_in_one_attempt_is_found(tmp_path):
    store = LocalStore(tmp_path)
    ledger = SampleLedger(store, 0)
    ledger.record(0, batch(0, 4))
    ledger.record(1, batch(3, 4))
    ledger.flush()
    with pytest.raises(LedgerError, match="position 3 was consumed twice"):
        read_ledger(store)


def test_a_contradiction_between_attempts_is_found(tmp_path):
    store = LocalStore(tmp_path)
    attempt(store, 0, 2)
    attempt(store, 1, 3, shift=1)
    with pytest.raises(LedgerError, match=r"position 4 is \('rain', 'i5'\), was \('rain', 'i4'\)"):
        read_ledger(store)


def test_what_was_left_out_is_told(tmp_path):
    store = LocalStore(tmp_path)
    ledger = SampleLedger(store, 0)
    ledger.record(0, batch(0, 4, skipped=((2, "rain", "broken", "its shard is truncated"),)))
    ledger.flush()
    found = read_ledger(store, 4)
    assert found.replaced == 1
    assert found.skipped == {2: ("rain", "broken", "its shard is truncated")}
    assert (
        "damaged samples that were replaced: 1\n          2  rain  broken: its shard is truncated"
        in found.render()
    )


def test_a_report_lists_twenty_damaged_samples_and_says_that_there_are_more(tmp_path):
    for count in (20, 21):
        store = LocalStore(tmp_path / str(count))
        ledger = SampleLedger(store, 0)
        skipped = tuple((n, "rain", f"broken{n}", "it is truncated") for n in range(count))
        ledger.record(0, batch(0, count, skipped=skipped))
        ledger.flush()
        text = read_ledger(store, count).render()
        assert text.count("it is truncated") == 20
        assert text.endswith("…") == (count > 20)


def test_pieces_are_written_once_and_a_run_without_any_is_said(tmp_path):
    store = LocalStore(tmp_path)
    with pytest.raises(LedgerError, match="ledger: true"):
        read_ledger(store)
    attempt(store, 0, 1)
    again = SampleLedger(store, 0)
    again.record(0, batch(0, 4, shift=9))
    with pytest.raises(StoreError, match="already holds other bytes"):
        again.flush()
    (key,) = store.list()
    assert json.loads(store.read(key)) == {
        "step": 0,
        "samples": [[n, "rain", f"i{n}"] for n in range(4)],
        "skipped": [],
    }


def test_a_line_that_is_none_is_named(tmp_path):
    store = LocalStore(tmp_path)
    store.write("ledger/0000/000000000-worker-0-of-1.jsonl", b"<html>\n")
    with pytest.raises(LedgerError, match=r"worker-0-of-1\.jsonl, line 1"):
        read_ledger(store)


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"\xff\xfe",
            b"[" * 50_000,
            b"null",
            b"[]",
            b'"x"',
            b"9" * 5000,
            b"{}",
            b'{"samples": 5, "skipped": []}',
        ),
        *(
            b'{"step": 0, "samples": [[%s, "rain", "a"]], "skipped": []}' % p
            for p in (b"-1", b"true", b"1.5", b"1e999", b'"1"')
        ),
        *(
            b'{"step": 0, "samples": [%s], "skipped": []}' % s
            for s in (b"[0]", b'[0, "rain"]', b"[0, 1, 2]", b"5", b"{}", b"null")
        ),
        *(
            b'{"step": 0, "samples": [], "skipped": [%s]}' % s
            for s in (b'[0, "rain", "a"]', b"[0, 1, 2, 3]", b"[]", b"null")
        ),
        *(
            b'{%s"samples": [], "skipped": []}' % s
            for s in (b"", b'"step": -1, ', b'"step": true, ', b'"step": "0", ')
        ),
    ],
)
def test_a_hostile_line_is_one_error_with_its_number(tmp_path, line: bytes):
    store = LocalStore(tmp_path)
    store.write("ledger/0000/000000000-worker-0-of-1.jsonl", line + b"\n")
    with pytest.raises(LedgerError, match="line 1: not a line of a ledger"):
        read_ledger(store)


def test_names_may_hold_any_sign_of_unicode(tmp_path):
    store = LocalStore(tmp_path)
    odd = "a\u2028b\x85c\x1dd\nä😀"
    share = batch(0, STEP)
    share.ids[0] = odd
    ledger = SampleLedger(store, 0)
    ledger.record(0, share)
    ledger.flush()
    assert next(iter(LedgerReader(store, STEP))) == ("rain", odd)


def test_steps_that_go_back_within_a_file_are_named(tmp_path):
    store = LocalStore(tmp_path)
    ledger = SampleLedger(store, 0)
    ledger.record(5, batch(20, STEP))
    ledger.record(4, batch(16, STEP))
    ledger.flush()
    with pytest.raises(LedgerError, match=r"line 2: .*step 4 comes after step 5"):
        read_ledger(store)


def test_a_position_in_two_steps_of_two_attempts_is_found(tmp_path):
    store = LocalStore(tmp_path)
    attempt(store, 0, 2)
    late = SampleLedger(store, 1)
    late.record(2, batch(4, STEP))  # positions of step 1
    late.flush()
    with pytest.raises(LedgerError, match=r"0001/.*position 4 was consumed twice.*by step 2"):
        read_ledger(store)


def all_at_once(store: Store, positions: int | None) -> tuple[int, int, int] | None:
    """The report as a table of all positions gives it: positions, attempts, repeated; None for an error."""
    found: dict[int, tuple[tuple[str, str], int]] = {}
    keys, repeated = sorted(store.list("ledger/")), 0
    for key in keys:
        number = int(key.split("/")[1])
        for line in map(json.loads, store.read(key).splitlines()):
            for position, *sample in line["samples"]:
                before, earlier = found.get(position, (tuple(sample), -1))
                if before != tuple(sample) or earlier == number:
                    return None
                repeated += earlier >= 0
                found[position] = before, number
    complete = next(n for n in range(len(found) + 1) if n not in found)
    attempts = {int(key.split("/")[1]) for key in keys}
    wrong = positions is not None and (complete < positions or len(found) > positions)
    if not found or wrong or any(n > complete and a < max(attempts) for n, (_, a) in found.items()):
        return None
    return complete, len(attempts), repeated


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 6), st.sampled_from([1, 2, 4])), min_size=1, max_size=4
    ),
    st.sets(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 3)), max_size=2),
    st.sets(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 3)), max_size=1),
    st.sampled_from([None, 8, 16, 24]),
)
def test_step_by_step_gives_what_a_table_of_all_positions_gives(attempts, lost, changed, positions):
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        for number, (first, steps, world) in enumerate(attempts):
            for rank in range(world):
                ledger = SampleLedger(store, number, rank, world)
                for step in range(first, first + steps):
                    share = STEP // world
                    if (number, step, rank) not in lost:
                        ledger.record(
                            step, batch(step * STEP + rank * share, share, (number, step, rank) in changed)
                        )
                    if step % 3 == 2:
                        ledger.flush()
                ledger.flush()
        try:
            found = read_ledger(store, positions)
        except LedgerError:
            assert all_at_once(store, positions) is None
        else:
            assert (found.positions, found.attempts, found.repeated) == all_at_once(store, positions)
